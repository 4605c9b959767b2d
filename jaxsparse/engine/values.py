"""Arrays of a forward pass as planes: which axes count images, rows, columns and planes."""

import math
from typing import Any, NamedTuple

import numpy as np

from jaxsparse.engine.network import Network
from jaxsparse.engine.operations import ONE_PIXEL, Planes, Size


class Unsupported(Exception):
    """The engine does not do this operation, for the reason that the message gives."""


class Value(NamedTuple):
    """An array whose numbers are the pixels of planes.

    Attributes:
      axes: a letter for each axis: n (images), y, x (pixels) or c (planes). Planes of one pixel
        have neither y nor x.
      planes: one axis for each c, in their order.
      size: of the planes.
      home: number of the segment that they belong to.
    """

    axes: str
    planes: Planes
    size: Size
    home: int = 0

    def shape(self, batch: int) -> tuple[int, ...]:
        """The array's shape."""
        of_planes = iter(self.planes.shape)
        lengths = {"n": batch, "y": self.size.height, "x": self.size.width}
        return tuple(next(of_planes) if a == "c" else lengths[a] for a in self.axes)

    def place(self, axis: int) -> int:
        """Which axis of `planes` an axis c of the array is."""
        return self.axes[:axis].count("c")

    def with_planes(self, planes: Planes) -> "Value":
        """The same with other planes of the same size."""
        return self._replace(planes=planes)


def natural_axes(rank: int, channels_first: bool) -> str:
    """Returns what the axes of an array mean if no operation has said so.

    Args:
      rank: at least 1.
      channels_first: whether images have their channels before their rows.

    >>> natural_axes(4, False), natural_axes(3, False), natural_axes(2, False)
    ('nyxc', 'nxc', 'nc')
    >>> natural_axes(4, True), natural_axes(5, True)
    ('ncyx', 'nccyx')
    """
    pixels = {1: "", 2: "", 3: "x"}.get(rank, "yx")
    planes = "c" * (rank - 1 - len(pixels))
    if channels_first or not planes:
        return "n" + planes + pixels
    return "n" + planes[1:] + pixels + "c"


def flat(net: Network, value: Value) -> Value:
    """Returns the same array as planes of one pixel each."""
    if value.size == ONE_PIXEL and not set("yx") & set(value.axes):
        return value
    height, width = value.size
    letters = value.axes.replace("n", "")
    # Planes with the pixels behind them, then every axis where the array has it.
    order = "c" * value.planes.ndim + "yx"
    shape = (*value.planes.shape, height, width)
    y = np.broadcast_to(np.arange(height)[:, None], shape)
    x = np.broadcast_to(np.arange(width), shape)
    planes = np.broadcast_to(value.planes[..., None, None], shape)
    places = _places(letters, order)
    parts = [
        np.transpose(part, places + [i for i in range(len(order)) if i not in places])
        for part in (planes, y, x)
    ]
    parts = [part.reshape(part.shape[: len(letters)]) for part in parts]
    flat_planes, flat_y, flat_x = (part.ravel() for part in parts)
    outs = net.copy(ONE_PIXEL, flat_planes.astype(np.int32), (0, 0), flat_y, flat_x)
    axes = "".join("n" if a == "n" else "c" for a in value.axes)
    return Value(axes, outs.reshape(parts[0].shape), ONE_PIXEL)


def with_planes_along(net: Network, value: Value, axis: int) -> Value:
    """Returns the same array with planes along an axis of rows or columns.

    If the columns go, the rows become the columns of images with one row.
    """
    letter, (height, width) = value.axes[axis], value.size
    num = height if letter == "y" else width
    size = Size(1, width) if letter == "y" else Size(height, 1)
    at = value.axes[:axis].count("c")
    planes = np.repeat(np.expand_dims(value.planes, at), num, at)
    where = np.arange(num).reshape([-1 if i == at else 1 for i in range(planes.ndim)])
    first = np.broadcast_to(where, planes.shape).ravel()
    y, x = (first, 0) if letter == "y" else (0, first)
    made = net.copy(size, planes.ravel(), (1, 1), y, x)
    axes = value.axes[:axis] + "c" + value.axes[axis + 1 :]
    if letter == "x":
        axes, size = axes.replace("y", "x"), Size(1, height)
        made = net.reflow(size, made) if height > 1 else made
    return Value(axes, made.reshape(planes.shape), size)


def _places(letters: str, order: str) -> list[int]:
    """For each letter its place in `order`; the c come in turn."""
    seen, places = 0, []
    for letter in letters:
        if letter == "c":
            places.append(seen)
            seen += 1
        else:
            places.append(order.index(letter))
    return places


def transposed(value: Value, permutation: tuple[int, ...]) -> Value:
    """Returns the array with its axes in another order."""
    axes = "".join(value.axes[i] for i in permutation)
    places = [value.place(i) for i in permutation if value.axes[i] == "c"]
    return value._replace(axes=axes, planes=np.transpose(value.planes, places))


def reshaped(net: Network, value: Value, shape: tuple[int, ...], batch: int) -> Value:
    """Returns the array in another shape that keeps its images apart.

    Rows and columns stay if they come again, joined to one axis or cut into two; planes stay if
    their axes are split or joined. Otherwise every number becomes a plane.
    """
    old = value.shape(batch)
    if not shape or value.axes[0] != "n" or shape[0] != batch:
        raise Unsupported(f"a reshape from {old} to {shape} mixes images")
    axes, size, lengths = "n", value.size, []
    left, new = list(zip(value.axes[1:], old[1:], strict=True)), list(shape[1:])
    while left or new:
        rows = axes + "".join(letter for letter, _ in left)  # no second axis of rows
        joined, cut = _joined(left, new), "y" not in rows and _cut(left, new, size)
        if left and left[0][0] in "yx" and new and new[0] == left[0][1]:
            axes += left.pop(0)[0]
            new.pop(0)
        elif joined or cut:
            size = Size(1, new[0]) if joined else Size(*new[:2])
            axes += "x" if joined else "yx"
            del left[: 2 if joined else 1], new[: 1 if joined else 2]
        else:
            group = _same_planes(left, new)
            if group is None:
                return _from_flat(net, value, shape)
            axes += "c" * len(group)
            lengths += group
    order = [value.place(k) for k, a in enumerate(value.axes) if a == "c"]
    planes = np.transpose(value.planes, order).reshape(lengths)
    if size != value.size:
        planes = net.reflow(size, planes)
    return Value(axes, planes, size)


def _joined(left: list[tuple[str, int]], new: list[int]) -> bool:
    """Whether rows and columns come next, and then one axis of all pixels."""
    letters = "".join(letter for letter, _ in left[:2])
    return letters == "yx" and bool(new) and new[0] == left[0][1] * left[1][1]


def _cut(left: list[tuple[str, int]], new: list[int], size: Size) -> bool:
    """Whether one axis of all pixels comes next, and then rows and columns."""
    is_row = bool(left) and left[0][0] == "x" and size.height == 1
    return is_row and len(new) > 1 and new[0] * new[1] == left[0][1] and new[0] != left[0][1]


def _same_planes(left: list[tuple[str, int]], new: list[int]) -> list[int] | None:
    """Takes the axes of planes that come next from both shapes, and returns the new ones.

    Returns None if they have not the same number of planes.
    """
    length, group, num = 1, [], len(left)
    while left and left[0][0] == "c":
        length *= left.pop(0)[1]
    while new and math.prod(group) < length:
        group.append(new.pop(0))
    while new and new[0] == 1 and not (left and left[0][1] == 1):
        group.append(new.pop(0))
    is_same = math.prod(group) == length and (group or len(left) < num)
    return group if is_same else None


def _from_flat(net: Network, value: Value, shape: tuple[int, ...]) -> Value:
    found = flat(net, value)
    return Value("n" + "c" * (len(shape) - 1), found.planes.reshape(shape[1:]), ONE_PIXEL)


def known(value: Any) -> bool:
    """Whether an array does not depend on the images."""
    return not isinstance(value, Value)
