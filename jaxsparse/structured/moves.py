"""Operations that move, cut, repeat or join arrays: where the units of each axis go."""

import itertools
from typing import Any

import numpy as np

from jaxsparse.structured.record import Axis, Record, Value, shapes_of
from jaxsparse.structured.relations import Axes, Relation


def _transpose(eqn: Any, operands: list[Value], record: Record) -> list[Axes]:
    del record
    return [tuple(operands[0].axes[axis] for axis in eqn.params["permutation"])]


def _broadcast(eqn: Any, operands: list[Value], record: Record) -> list[Axes]:
    del record
    axes: list[Axis] = [None] * len(eqn.params["shape"])
    for units, axis in zip(operands[0].axes, eqn.params["broadcast_dimensions"], strict=True):
        axes[axis] = units
    return [tuple(axes)]


def _squeeze(eqn: Any, operands: list[Value], record: Record) -> list[Axes]:
    del record
    gone = eqn.params["dimensions"]
    return [tuple(units for axis, units in enumerate(operands[0].axes) if axis not in gone)]


def _rev(eqn: Any, operands: list[Value], record: Record) -> list[Axes]:
    del record
    axes = list(operands[0].axes)
    for axis in eqn.params["dimensions"]:
        units = axes[axis]
        axes[axis] = None if units is None else units[::-1]
    return [tuple(axes)]


def _iota(eqn: Any, operands: list[Value], record: Record) -> list[Axes]:
    """Freezes the axis that is counted: its entries are the indices themselves."""
    del operands
    along, shape = eqn.params["dimension"], eqn.params["shape"]
    why = record.reason_at(eqn, "an iota, which counts the indices")
    return [tuple(record.frozen(n, why) if axis == along else None for axis, n in enumerate(shape))]


# Cutting and joining.


def taken(record: Record, eqn: Any, axis: Axis, positions: np.ndarray) -> Axis:
    """Returns the units at positions of an axis.

    An axis of which a single index is picked stays whole: that index has a meaning of its own, as a
    class token or one of three stacked projections has.
    """
    if axis is None or len(positions) == len(axis) == 1:
        return None
    if len(positions) == 1:
        why = record.reason_at(eqn, f"a single index picked by {eqn.primitive.name}")
        record.freeze([axis], why)
        return None
    if not np.array_equal(positions, np.arange(len(axis))):
        record.cut(axis, eqn)
    return axis[positions]


def _slice(eqn: Any, operands: list[Value], record: Record) -> list[Axes]:
    p, x = eqn.params, operands[0]
    strides = p["strides"] or (1,) * len(x.axes)
    ends = zip(x.axes, p["start_indices"], p["limit_indices"], strides, strict=True)
    return [tuple(taken(record, eqn, axis, np.arange(*end)) for axis, *end in ends)]


def _split(eqn: Any, operands: list[Value], record: Record) -> list[Axes]:
    along, x = eqn.params["axis"], operands[0]
    stops = np.cumsum([0, *eqn.params["sizes"]]).tolist()
    return [
        (
            *x.axes[:along],
            taken(record, eqn, x.axes[along], np.arange(*ends)),
            *x.axes[along + 1 :],
        )
        for ends in itertools.pairwise(stops)
    ]


def _unstack(eqn: Any, operands: list[Value], record: Record) -> list[Axes]:
    along, axes = eqn.params["axis"], operands[0].axes
    record.freeze([axes[along]], record.reason_at(eqn, "single indices picked by unstack"))
    return [(*axes[:along], *axes[along + 1 :])] * len(eqn.outvars)


def _stack(eqn: Any, operands: list[Value], record: Record) -> list[Axes]:
    along, shape = eqn.params["axis"], shapes_of(eqn)[0]
    inner = record.join_values(operands, (*shape[:along], *shape[along + 1 :]))
    why = record.reason_at(eqn, "arrays put beside each other by stack")
    new = record.frozen(shape[along], why)
    return [(*inner[:along], new, *inner[along:])]


def _concatenate(eqn: Any, operands: list[Value], record: Record) -> list[Axes]:
    """Puts units one after the other; constants beside them get units of their own."""
    along = eqn.params["dimension"]
    axes = [record.join(each) for each in zip(*(_without(x, along) for x in operands), strict=True)]
    why = record.reason_at(eqn, "constants put beside each other by concatenate")
    is_tied = any(x.axes[along] is not None for x in operands)
    parts = []
    for x, var in zip(operands, eqn.invars, strict=True):
        size, units = var.aval.shape[along], x.axes[along]
        if units is None:
            is_new = is_tied and size != 1
            units = record.units.new(size) if is_new else record.units.frozen(size, why)
        parts.append(units)
    new = np.concatenate(parts)
    return [(*axes[:along], new if len(new) > 1 else None, *axes[along:])]


def _without(x: Value, axis: int) -> Axes:
    return (*x.axes[:axis], *x.axes[axis + 1 :])


def _pad(eqn: Any, operands: list[Value], record: Record) -> list[Axes]:
    """Gives the padding new units, which go with whatever they are added to."""
    axes = []
    shapes = zip(eqn.invars[0].aval.shape, shapes_of(eqn)[0], strict=True)
    config = zip(operands[0].axes, shapes, eqn.params["padding_config"], strict=True)
    for units, (old, new), (low, _, interior) in config:
        if (low, new, interior) == (0, old, 0):
            axes.append(units)
        elif units is None or new == 1:
            why = record.reason_at(eqn, "a single index or a constant padded by pad")
            record.freeze([units], why)
            axes.append(record.frozen(new, why))
        else:
            padded, at = record.units.new(new), np.arange(old) * (interior + 1) + low
            is_in = (at >= 0) & (at < new)  # negative padding crops
            padded[at[is_in]] = units[is_in]
            record.cut(padded, eqn)
            axes.append(padded)
    return [tuple(axes)]


def _tile(eqn: Any, operands: list[Value], record: Record) -> list[Axes]:
    del record
    repeats = zip(operands[0].axes, eqn.params["reps"], strict=True)
    return [tuple(None if units is None else np.tile(units, n) for units, n in repeats)]


MOVES: dict[str, Relation] = {
    "transpose": _transpose,
    "broadcast_in_dim": _broadcast,
    "squeeze": _squeeze,
    "rev": _rev,
    "iota": _iota,
    "slice": _slice,
    "split": _split,
    "unstack": _unstack,
    "stack": _stack,
    "concatenate": _concatenate,
    "pad": _pad,
    "tile": _tile,
}
"""By the name of the primitive: the axes of its results."""
