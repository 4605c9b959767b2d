"""Convolutions and matrix products with constants: their weights that are not 0 become taps."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from jaxsparse.engine.network import Network
from jaxsparse.engine.operations import ONE_PIXEL, Planes, Size
from jaxsparse.engine.values import Unsupported, Value, flat, known, with_planes_along

MOST_TAPS = 1 << 24
"""A layer with more weights than this is left to XLA."""


def convolution(net: Network, eqn: Any, operands: list[Any]) -> Value:
    """Returns the outputs of a convolution with a constant kernel."""
    x, kernel = operands
    params, spec = eqn.params, eqn.params["dimension_numbers"]
    if known(x) or not known(kernel):
        raise Unsupported("its kernel is computed from the inputs")
    if any(d != 1 for d in params["lhs_dilation"]) or params["batch_group_count"] != 1:
        raise Unsupported("it is a transposed convolution, or one of groups of images")
    spatial = list(spec.lhs_spec[2:])
    x = _with_rows(x, spec.lhs_spec)
    weights = np.transpose(np.asarray(kernel, np.float64), spec.rhs_spec)
    out = _axes(spec.out_spec, len(spatial))
    in_two = lambda values, fill: (*((fill,) * (2 - len(spatial))), *values)
    weights = weights.reshape(*weights.shape[:2], *in_two(weights.shape[2:], 1))
    shape = eqn.outvars[0].aval.shape
    size = Size(*in_two([shape[axis] for axis in spec.out_spec[2:]], 1))
    window = Window(
        size,
        in_two(params["window_strides"], 1),
        in_two([low for low, _ in params["padding"]], 0),
        in_two(params["rhs_dilation"], 1),
    )
    groups = params["feature_group_count"]
    planes = convolved(net, x.planes.ravel(), weights, window, groups)
    return settled(Value(out, planes, size))


class Window(NamedTuple):
    """How a convolution goes over images.

    Attributes:
      size: of its outputs.
      stride, dilation: in rows and columns.
      pad: zeros before the image.
    """

    size: Size
    stride: tuple[int, int]
    pad: tuple[int, int]
    dilation: tuple[int, int] = (1, 1)


def convolved(
    net: Network, sources: Planes, weights: np.ndarray, window: Window, groups: int
) -> Planes:
    """Adds a convolution and returns its planes, int32[output channels].

    Args:
      net: gets the operations.
      sources: int32[input channels].
      weights: float64[output channels, input channels of a group, height, width].
      window: of the convolution.
      groups: of channels.
    """
    (size, stride, pad, dilation), source_size = window, net.size(sources)
    out, channel, *taps = np.nonzero(weights)
    if len(out) > MOST_TAPS:
        raise Unsupported(f"it has {len(out):,} active weights")
    channel = channel + out // (len(weights) // groups) * weights.shape[1]
    # A tap reads pixel y * stride + reach, which is pixel y + shift of phase `rest` of the image.
    reach = [t * d - p for t, d, p in zip(taps, dilation, pad, strict=True)]
    inside = np.ones(len(out), bool)
    for r, length, outs, s in zip(reach, source_size, size, stride, strict=True):
        inside &= (r < length) & (r + (outs - 1) * s >= 0)
    out, channel, reach = out[inside], channel[inside], [r[inside] for r in reach]
    values = weights[np.nonzero(weights)][inside]
    (dy, rest_y), (dx, rest_x) = (divmod(r, s) for r, s in zip(reach, stride, strict=True))
    read = sources[channel]
    if size == ONE_PIXEL != source_size:  # as a matrix product of the pixels that are read
        pixels, which = np.unique(np.stack([read, *reach]), axis=1, return_inverse=True)
        made = net.copy(size, pixels[0].astype(np.int32), (0, 0), pixels[1], pixels[2])
        read, dy, dx, stride = made[which.ravel()], 0, 0, (1, 1)
    if stride != (1, 1):
        phases, which = np.unique(np.stack([read, rest_y, rest_x]), axis=1, return_inverse=True)
        part = Size(*(-(-length // s) for length, s in zip(source_size, stride, strict=True)))
        made = net.copy(part, phases[0].astype(np.int32), stride, phases[1], phases[2])
        read = made[which.ravel()]
    start = np.searchsorted(out, np.arange(len(weights) + 1))
    return net.linear(size, start, read, values, dy=dy, dx=dx)


def matrix_product(net: Network, eqn: Any, operands: list[Any]) -> Value:
    """Returns the product of an array and a constant, along axes of planes."""
    (left, right), (left_batch, right_batch) = eqn.params["dimension_numbers"]
    x, matrix = operands
    if left_batch or right_batch:
        raise Unsupported("it is a batch of products")
    is_left = not known(x)
    if not is_left:
        x, matrix, left, right = matrix, x, right, left
    if known(x) or not known(matrix):
        raise Unsupported("it multiplies two arrays that depend on the inputs")
    if any(x.axes[axis] == "n" for axis in left):
        raise Unsupported("it adds up over the images")
    pixels = [axis for axis in left if x.axes[axis] in "yx"]
    if len(pixels) == len(set("yx") & set(x.axes)) > 0:
        x = flat(net, x)
    elif pixels:
        x = with_planes_along(net, x, pixels[0])
    inner = [x.place(axis) for axis in left]
    outer = [i for i in range(x.planes.ndim) if i not in inner]
    rows = np.transpose(x.planes, outer + inner)
    kept = rows.shape[: len(outer)]
    rows = rows.reshape(int(np.prod(kept)), -1)
    columns = [i for i in range(np.ndim(matrix)) if i not in right]
    weights = np.transpose(np.asarray(matrix, np.float64), list(right) + columns)
    widths = weights.shape[len(right) :]
    weights = weights.reshape(rows.shape[1], -1).T
    out, channel = np.nonzero(weights)
    if len(out) * len(rows) > MOST_TAPS:
        raise Unsupported(f"it has {len(out) * len(rows):,} active products")
    start = np.searchsorted(out, np.arange(len(weights) + 1))
    counts = np.tile(np.diff(start), len(rows))
    planes = net.linear(
        x.size,
        np.concatenate([[0], np.cumsum(counts)]),
        rows[:, channel].ravel(),
        np.tile(weights[out, channel], len(rows)),
    ).reshape(*kept, *widths)
    axes = "".join(a for i, a in enumerate(x.axes) if i not in left)
    new = "c" * len(widths)
    if is_left:
        return Value(axes + new, planes, x.size)
    order = list(range(len(kept), planes.ndim)) + list(range(len(kept)))
    return Value(new + axes, np.transpose(planes, order), x.size)


def _axes(spec: Any, num: int) -> str:
    """The letters of axes of which a convolution says which is what."""
    letters = ["n", "c", *"yx"[2 - num :]]
    found = [""] * len(spec)
    for letter, axis in zip(letters, spec, strict=True):
        found[axis] = letter
    return "".join(found)


def _with_rows(x: Value, spec: Any) -> Value:
    """Returns images with the axes that a convolution says; single pixels may lack y and x."""
    if len(spec) > 4:
        raise Unsupported("it is over more than two axes")
    wanted = _axes(spec, len(spec) - 2)
    if x.axes == wanted:
        return x
    if x.axes == wanted.replace("y", "c").replace("x", "c") and x.size == ONE_PIXEL:
        spatial = [x.place(axis) for axis in spec[2:]]
        if any(x.planes.shape[axis] != 1 for axis in spatial):
            raise Unsupported("its images lie in planes of one pixel each")
        return Value(wanted, x.planes.squeeze(tuple(spatial)), x.size)
    raise Unsupported(f"its images have axes {x.axes}, not {wanted}")


def settled(x: Value) -> Value:
    """Returns images of one pixel with axes of planes in place of rows and columns."""
    if x.size != ONE_PIXEL:
        return x
    planes = x.planes
    for axis, letter in enumerate(x.axes):
        if letter in "yx":
            planes = np.expand_dims(planes, len(x.axes[:axis].replace("n", "")))
    return Value("".join("n" if a == "n" else "c" for a in x.axes), planes, x.size)


def rules(net: Network) -> dict[str, Callable[[Any, list[Any]], Value]]:
    """Returns the rules by the name of a primitive: functions of (equation, operands)."""
    return {
        "conv_general_dilated": lambda eqn, xs: convolution(net, eqn, xs),
        "dot_general": lambda eqn, xs: matrix_product(net, eqn, xs),
    }
