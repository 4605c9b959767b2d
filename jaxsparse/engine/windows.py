"""Sums and maxima over pixels, windows and planes."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxsparse.engine.network import Network
from jaxsparse.engine.operations import ONE_PIXEL, Pool, Size, Sum
from jaxsparse.engine.products import Window, convolved, settled
from jaxsparse.engine.values import Unsupported, Value

MOST_SPAN = 1 << 20
"""Pixels of a row that the windows of a max pool may see; kMostSpan of program.h."""


def reduced(net: Network, x: Value, axes: Sequence[int], *, largest: bool) -> Value:
    """Returns the sum or the largest along axes of an array."""
    letters = [x.axes[axis] for axis in axes]
    if "n" in letters:
        raise Unsupported("it reduces over the images")
    over = [x.place(axis) for axis in axes if x.axes[axis] == "c"]
    kept_axes = "".join(a for i, a in enumerate(x.axes) if i not in axes)
    planes = x.planes
    if over:
        outer = [i for i in range(planes.ndim) if i not in over]
        planes = np.transpose(planes, outer + over)
        planes = planes.reshape(*planes.shape[: len(outer)], -1)
        if largest:
            planes = net.largest(planes)
        else:
            num, terms = math.prod(planes.shape[:-1]), planes.shape[-1]
            flat = planes.ravel()
            made = net.linear(x.size, np.arange(num + 1) * terms, flat, np.ones(len(flat)))
            planes = made.reshape(planes.shape[:-1])
    if not set(letters) & set("yx"):
        return Value(kept_axes, planes, x.size)
    if set("yx") & set(kept_axes) and x.size[0 if "y" in kept_axes else 1] > 1:
        raise Unsupported("it reduces over rows or columns alone")
    flat = planes.ravel()
    outs = net.new(ONE_PIXEL, len(flat))
    if largest:
        net.operations.append(Pool(outs, flat, x.size, (1, 1), (0, 0)))
    else:
        net.operations.append(Sum(outs, flat))
    return settled(Value(kept_axes, outs.reshape(planes.shape), ONE_PIXEL))


def smallest(net: Network, x: Value, axes: Sequence[int]) -> Value:
    """Returns the smallest along axes of an array."""
    negated = lambda value: value.with_planes(net.each(value.planes, -1.0))
    return negated(reduced(net, negated(x), axes, largest=True))


def windowed(net: Network, x: Value, eqn: Any, *, largest: bool) -> Value:
    """Returns the sum or the largest of windows of pixels."""
    params = eqn.params
    dilated = [d for name in ("base_dilation", "window_dilation") for d in params[name]]
    if any(d != 1 for d in dilated):
        raise Unsupported("its windows are dilated")
    by_axis = dict(window=1, stride=1, first=0, out=1)
    found = {letter: dict(by_axis) for letter in "yx"}
    for axis, letter in enumerate(x.axes):
        window, stride = params["window_dimensions"][axis], params["window_strides"][axis]
        low, high = params["padding"][axis]
        if letter in "nc":
            if (window, stride, low, high) != (1, 1, 0, 0):
                raise Unsupported("its windows span images or channels")
            continue
        out = eqn.outvars[0].aval.shape[axis]
        found[letter] = dict(window=window, stride=stride, first=-low, out=out)
    pair = lambda name: (found["y"][name], found["x"][name])
    size, flat = Size(*pair("out")), x.planes.ravel()
    if largest:
        if any(w > 2 * length + 64 for w, length in zip(pair("window"), x.size, strict=True)):
            raise Unsupported("its windows are much larger than the image")  # parser.h
        if (size.width - 1) * pair("stride")[1] + pair("window")[1] > MOST_SPAN:
            raise Unsupported("its windows see too many pixels")
        outs = net.new(size, len(flat))
        net.operations.append(Pool(outs, flat, pair("window"), pair("stride"), pair("first")))
    else:
        first_y, first_x = pair("first")
        weights = np.ones((len(flat), 1, *pair("window")))
        over = Window(size, pair("stride"), (-first_y, -first_x))
        outs = convolved(net, flat, weights, over, groups=len(flat))
    return settled(Value(x.axes, outs.reshape(x.planes.shape), size))


def rules(net: Network) -> dict[str, Callable[[Any, list[Any]], Value]]:
    """Returns the rules by the name of a primitive: functions of (equation, operands)."""
    reduce = lambda largest: (
        lambda eqn, xs: reduced(net, xs[0], eqn.params["axes"], largest=largest)
    )
    window = lambda largest: lambda eqn, xs: windowed(net, xs[0], eqn, largest=largest)
    return {
        "reduce_sum": reduce(False),
        "reduce_max": reduce(True),
        "reduce_min": lambda eqn, xs: smallest(net, xs[0], eqn.params["axes"]),
        "reduce_window_sum": window(False),
        "reduce_window_max": window(True),
    }
