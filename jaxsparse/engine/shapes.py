"""Operations that move numbers: reshapes, transposes, slices, joins, pads, broadcasts."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxsparse.engine.elementwise import by_plane
from jaxsparse.engine.network import Network
from jaxsparse.engine.operations import ONE_PIXEL, Size
from jaxsparse.engine.products import settled
from jaxsparse.engine.values import (
    Unsupported,
    Value,
    known,
    natural_axes,
    reshaped,
    transposed,
)


class Shapes:
    """The rules for one network.

    Args:
      net: gets the operations.
      batch: of the arrays.
      channels_first: whether images come so.
    """

    def __init__(self, net: Network, batch: int, channels_first: bool) -> None:
        self.net, self.batch, self.channels_first = net, batch, channels_first

    def broadcast(self, x: Value, shape: tuple[int, ...], where: Sequence[int]) -> Value:
        """Returns an array of a new shape, of which the old axes are those of `where`.

        An axis that becomes longer, or is new, gets the meaning that it naturally has.
        """
        old = x.shape(self.batch)
        if x.axes[:1] != "n" or not where or where[0] != 0 or shape[0] != self.batch:
            raise Unsupported("it moves or makes an axis of images")
        natural, axes, grown = natural_axes(len(shape), self.channels_first), "", {}
        planes, at = x.planes, 0
        for axis, length in enumerate(shape):
            source = where.index(axis) if axis in where else None
            letter = "c" if source is None else x.axes[source]
            stays = source is not None and old[source] == length
            if letter == "c" and not stays and natural[axis] in "yx":
                grown[natural[axis]] = length
                letter = natural[axis]
                if source is not None:
                    planes = planes.squeeze(at)
            elif letter == "c":
                planes = planes if source is not None else np.expand_dims(planes, at)
                planes = np.repeat(planes, length, at) if not stays else planes
                at += 1
            elif not stays:
                raise Unsupported("it repeats rows or columns")
            axes += letter
        if not grown:
            return Value(axes, planes, x.size)
        if x.size != ONE_PIXEL:
            raise Unsupported("it repeats planes along an axis of pixels")
        size = Size(grown.get("y", 1), grown.get("x", 1))
        if size == ONE_PIXEL:
            return settled(Value(axes, planes, size))
        flat = planes.ravel()
        made = self.net.copy(size, flat, (0, 0), 0, 0)
        return Value(axes, made.reshape(planes.shape), size)

    def slice(self, x: Value, begin: Sequence[int], end: Sequence[int], steps: Any) -> Value:
        """Returns a slice of an array."""
        steps = steps or (1,) * len(begin)
        cuts = [slice(*cut) for cut in zip(begin, end, steps, strict=True)]
        shape = x.shape(self.batch)
        whole = [cut.indices(n) == (0, n, 1) for cut, n in zip(cuts, shape, strict=True)]
        if not whole[x.axes.index("n")]:
            raise Unsupported("it takes some of the images")
        planes = x.planes[
            tuple(cut for cut, letter in zip(cuts, x.axes, strict=True) if letter == "c")
        ]
        if all(w for w, letter in zip(whole, x.axes, strict=True) if letter in "yx"):
            return x.with_planes(planes)
        rows, columns = (cuts[x.axes.index(a)] if a in x.axes else slice(0, 1, 1) for a in "yx")
        size = Size(*(len(range(c.start, c.stop, c.step)) for c in (rows, columns)))
        made = self.net.copy(
            size, planes.ravel(), (rows.step, columns.step), rows.start, columns.start
        )
        return settled(Value(x.axes, made.reshape(planes.shape), size))

    def pad(self, x: Value, filler: Any, config: Sequence[tuple[int, int, int]]) -> Value:
        """Returns an array with zeros around it, or without its borders."""
        if not known(filler) or np.any(np.asarray(filler) != 0):
            raise Unsupported("it pads with something else than 0")
        if any(inner for _, _, inner in config):
            raise Unsupported("it pads between numbers")
        if config[x.axes.index("n")][:2] != (0, 0):
            raise Unsupported("it adds or removes images")
        by_letter = {a: config[x.axes.index(a)][:2] for a in "yx" if a in x.axes}
        (top, bottom), (left, right) = (by_letter.get(a, (0, 0)) for a in "yx")
        planes, size = x.planes, x.size
        if (top, bottom, left, right) != (0, 0, 0, 0):
            size = Size(size.height + top + bottom, size.width + left + right)
            planes = self.net.copy(size, planes.ravel(), (1, 1), -top, -left)
            planes = planes.reshape(x.planes.shape)
        along = [config[i][:2] for i, a in enumerate(x.axes) if a == "c"]
        if any(low or high for low, high in along):
            cut = tuple(
                slice(max(-low, 0), n - max(-high, 0))
                for (low, high), n in zip(along, planes.shape, strict=True)
            )
            zero = self.net.constant(size, np.zeros((1, *size), np.float32))[0]
            planes = np.pad(
                planes[cut],
                [(max(low, 0), max(high, 0)) for low, high in along],
                constant_values=zero,
            )
        return settled(Value(x.axes, planes, size))

    def join(self, parts: list[Any], axis: int) -> Value:
        """Returns arrays one after the other along an axis of planes."""
        like = next(part for part in parts if isinstance(part, Value))
        if like.axes[axis] != "c":
            raise Unsupported("it joins arrays along an axis of pixels or images")
        planes = []
        for part in parts:
            if known(part):
                length = np.shape(part)[axis]
                shape = list(like.planes.shape)
                shape[like.place(axis)] = length
                blank = like.with_planes(np.zeros(shape, np.int32))
                array, by_pixel = by_plane(blank, part, self.batch)
                if not by_pixel:
                    array = np.broadcast_to(array[..., None, None], (*shape, *like.size))
                made = self.net.constant(like.size, array.reshape(-1, *like.size))
                planes.append(made.reshape(shape))
            elif (part.axes, part.size) == (like.axes, like.size):
                planes.append(part.planes)
            else:
                raise Unsupported("it joins arrays whose axes differ in meaning")
        return like.with_planes(np.concatenate(planes, like.place(axis)))

    def split(self, x: Value, sizes: Sequence[int], axis: int) -> list[Value]:
        """Returns the parts of an array along an axis."""
        found, first = [], 0
        for length in sizes:
            begin, end = [0] * len(x.axes), list(x.shape(self.batch))
            begin[axis], end[axis] = first, first + length
            found.append(self.slice(x, begin, end, None))
            first += length
        return found

    def turn(self, x: Value, axes: Sequence[int]) -> Value:
        """Returns an array with some axes of planes backwards."""
        if any(x.axes[axis] != "c" for axis in axes):
            raise Unsupported("it turns pixels or images round")
        return x.with_planes(np.flip(x.planes, tuple(x.place(axis) for axis in axes)))

    def rules(self) -> dict[str, Callable[[Any, list[Any]], Any]]:
        """Returns the rules by the name of a primitive: functions of (equation, operands)."""
        to_shape = lambda eqn, xs: reshaped(self.net, xs[0], eqn.outvars[0].aval.shape, self.batch)
        return {
            "reshape": to_shape,
            "squeeze": to_shape,
            "expand_dims": to_shape,
            "transpose": lambda eqn, xs: transposed(xs[0], eqn.params["permutation"]),
            "broadcast_in_dim": lambda eqn, xs: self.broadcast(
                xs[0], eqn.params["shape"], tuple(eqn.params["broadcast_dimensions"])
            ),
            "slice": lambda eqn, xs: self.slice(
                xs[0],
                eqn.params["start_indices"],
                eqn.params["limit_indices"],
                eqn.params["strides"],
            ),
            "pad": lambda eqn, xs: self.pad(xs[0], xs[1], eqn.params["padding_config"]),
            "concatenate": lambda eqn, xs: self.join(xs, eqn.params["dimension"]),
            "split": lambda eqn, xs: self.split(xs[0], eqn.params["sizes"], eqn.params["axis"]),
            "rev": lambda eqn, xs: self.turn(xs[0], eqn.params["dimensions"]),
        }
