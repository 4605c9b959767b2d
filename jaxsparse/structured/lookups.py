"""Reading and writing at indices, which move units if they are constants, and else freeze them."""

from typing import Any

import numpy as np

from jaxsparse.structured.moves import taken
from jaxsparse.structured.record import Axis, Record, Value, shapes_of
from jaxsparse.structured.relations import Axes, Relation
from jaxsparse.structured.units import Reason


def _gather(eqn: Any, operands: list[Value], record: Record) -> list[Axes]:
    """Follows the axes that are taken whole, and one that constant indices are taken from.

    Other axes that indices choose from are frozen, such as the tokens of an embedding.
    """
    x, indices = operands
    numbers, sizes, shape = (
        eqn.params["dimension_numbers"],
        eqn.params["slice_sizes"],
        shapes_of(eqn)[0],
    )
    why = record.reason_at(eqn, "looked up by index")
    batching = set(numbers.operand_batching_dims)
    dropped = {*numbers.collapsed_slice_dims, *batching}
    picked = [axis for axis in numbers.start_index_map if axis not in batching]
    constant = _constant_positions(eqn, x, indices)
    found: list[Axis] = [None] * len(shape)
    kept = [axis for axis in range(len(x.axes)) if axis not in dropped]
    for axis, place in zip(kept, numbers.offset_dims, strict=True):
        found[place] = _window(record, x.axes[axis], sizes[axis], why)
        if not x.is_data and indices.is_data:
            record.use(found[place], "output", eqn.primitive.name)
    for axis in dropped:
        if constant is None or axis not in picked:
            record.freeze([x.axes[axis]], why)
    places = [i for i in range(len(shape)) if i not in numbers.offset_dims]
    if constant is not None:
        found[places[0]] = taken(record, eqn, x.axes[picked[0]], constant)
    else:
        for place, units in zip(places, indices.axes[:-1], strict=True):
            record.freeze([units], why)
            found[place] = units
    return [tuple(found)]


def _constant_positions(eqn: Any, x: Value, indices: Value) -> np.ndarray | None:
    """Returns the positions along the only axis that constant indices choose from, if so."""
    numbers, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
    known = indices.known
    if known is None or known.ndim != 2 or known.shape[1] != 1 or numbers.operand_batching_dims:
        return None
    (axis,) = numbers.start_index_map
    size = eqn.invars[0].aval.shape[axis]
    if numbers.collapsed_slice_dims != (axis,) or sizes[axis] != 1 or x.axes[axis] is None:
        return None
    at = known[:, 0]
    return at if ((at >= 0) & (at < size)).all() else None


def _window(record: Record, units: Axis, size: int, why: Reason) -> Axis:
    """Returns the units along a window of an axis: the whole axis, or a part, which freezes it."""
    if units is None or size == len(units):
        return units
    record.freeze([units], why)
    return record.frozen(size, why)


def _dynamic_slice(eqn: Any, operands: list[Value], record: Record) -> list[Axes]:
    """Cuts at constant starts as a slice does; other starts freeze an axis that is cut."""
    x, *starts = operands
    why = record.reason_at(eqn, "cut at an index by dynamic_slice")
    found = []
    shape = eqn.invars[0].aval.shape
    for units, start, size, whole in zip(
        x.axes, starts, eqn.params["slice_sizes"], shape, strict=True
    ):
        if size == whole:
            found.append(units)
        elif start.known is None:
            found.append(_window(record, units, size, why))
        else:
            at = min(max(int(start.known), 0), whole - size)  # as XLA clamps it
            found.append(taken(record, eqn, units, np.arange(at, at + size)))
    return [tuple(found)]


def _dynamic_update_slice(eqn: Any, operands: list[Value], record: Record) -> list[Axes]:
    """Joins the axes that are written whole, and freezes the others, as in a cache of keys."""
    x, update = operands[:2]
    why = record.reason_at(eqn, "written at an index by dynamic_update_slice")
    shape, written = (eqn.invars[i].aval.shape for i in (0, 1))
    found = []
    for axis, (size, part) in enumerate(zip(shape, written, strict=True)):
        pair = [x.axes[axis], update.axes[axis]]
        if size == part:
            found.append(record.join(pair))
        else:
            record.freeze(pair, why)
            found.append(record.frozen(size, why))
    return [tuple(found)]


LOOKUPS: dict[str, Relation] = {
    "gather": _gather,
    "dynamic_slice": _dynamic_slice,
    "dynamic_update_slice": _dynamic_update_slice,
}
"""By the name of the primitive: the axes of its results."""
