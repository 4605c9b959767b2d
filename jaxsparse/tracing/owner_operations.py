"""Operations on the owners of values: the leaf that each entry of a result is made from.

Blocks move exactly where a value is joined, cut, padded, flipped, transposed or reshaped. Every
other operation is taken to compute entry by entry, or to mix all that it reads.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxsparse.tracing.owners import (
    Owners,
    averaged,
    broadcast,
    concatenated,
    constant,
    joined,
    mix,
    mixed,
    reshaped,
    taken,
    transposed,
    uniform,
)


def of_equation(eqn: Any, operands: Sequence[Owners]) -> list[Owners]:
    """Returns the owners of what an operation on parameters and constants gives."""
    params, name = eqn.params, eqn.primitive.name
    shapes = [getattr(var.aval, "shape", ()) for var in eqn.outvars]  # a token has none
    shape, x = (shapes or [()])[0], (operands or [constant(())])[0]
    if name == "transpose":
        found = [transposed(x, params["permutation"])]
    elif name == "broadcast_in_dim":
        found = [broadcast(x, shape, params["broadcast_dimensions"])]
    elif name in ("reshape", "squeeze", "expand_dims"):
        found = [reshaped(x, shape)]
    elif name in ("concatenate", "stack"):
        found = [_put_together(name, operands, shape, params)]
    elif name in ("slice", "rev", "pad", "split", "unstack"):
        cuts = [_along_axes(x, at) for at in _positions(name, x.shape, params)]
        found = [reshaped(cut, shape) for cut in cuts] if name == "unstack" else cuts
    elif name.startswith("reduce_") and "axes" in params:
        found = [averaged(x, params["axes"])]
    elif name.startswith(("scatter", "dynamic_update_slice")):
        found = [_updated(x, operands[1 if name.startswith("dynamic") else 2])]
    else:  # the condition of a select_n says nothing of the entries that are chosen
        found = [joined(operands[name == "select_n" :], shape) for shape in shapes]
    return [x._replace(entries=min(x.entries, math.prod(x.shape))) for x in found]


def _put_together(name: str, operands: Sequence[Owners], shape: Any, params: Any) -> Owners:
    if name == "concatenate":
        return concatenated(operands, params["dimension"])
    axis = params["axis"]
    slices = [reshaped(x, (*shape[:axis], 1, *shape[axis + 1 :])) for x in operands]
    return concatenated(slices, axis)


def _updated(x: Owners, update: Owners) -> Owners:
    """Returns the owners of a value some of whose entries, unknown which, are written over."""
    size = max(math.prod(x.shape), 1)
    part = min(math.prod(update.shape), size)
    share = mix([mixed(update), mixed(x)], [part, size - part])
    return uniform(share, x.shape, x.entries + update.entries)


def _along_axes(x: Owners, positions: Sequence[np.ndarray | None]) -> Owners:
    for axis, at in enumerate(positions):
        x = x if at is None else taken(x, axis, at)
    return x


def _positions(
    name: str, shape: tuple[int, ...], params: dict[str, Any]
) -> list[list[np.ndarray | None]]:
    """Returns the positions that each result takes along each axis; None if it takes all."""
    if name == "rev":
        return [
            [np.arange(n)[::-1] if a in params["dimensions"] else None for a, n in _axes(shape)]
        ]
    if name == "slice":
        strides = params["strides"] or (1,) * len(shape)
        ends = zip(params["start_indices"], params["limit_indices"], strides, strict=True)
        return [[np.arange(*end) for end in ends]]
    if name == "pad":
        config = zip(shape, params["padding_config"], strict=True)
        return [[_padded(size, *each) for size, each in config]]
    sizes = params["sizes"] if name == "split" else [1] * shape[params["axis"]]
    stops = np.cumsum([0, *sizes]).tolist()
    ranges = [np.arange(*ends) for ends in itertools.pairwise(stops)]
    return [[each if a == params["axis"] else None for a, _ in _axes(shape)] for each in ranges]


def _axes(shape: tuple[int, ...]) -> list[tuple[int, int]]:
    return list(enumerate(shape))


def _padded(size: int, low: int, high: int, interior: int) -> np.ndarray:
    """Returns the positions along a padded axis; negative padding crops."""
    at = np.arange(-low, max((size - 1) * (interior + 1) + 1, 0) + high)
    is_entry = (at >= 0) & (at % (interior + 1) == 0) & (at // (interior + 1) < size)
    return np.where(is_entry, at // (interior + 1), -1)
