"""Operations that move, cut, repeat or join arrays: where the units of each axis go."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np

from jaxsparse.structured.record import Axis, Record, Value, num_entries, shapes_of
from jaxsparse.tracing.owners import axis_groups

Axes: TypeAlias = tuple[Axis, ...]
Relation: TypeAlias = Callable[[Any, list[Value], Record], list[Axes]]


def elementwise(eqn: Any, operands: list[Value], record: Record) -> list[Axes]:
    """Joins all operands index by index; single numbers have no axes."""
    return [record.join_values(operands, shape) for shape in shapes_of(eqn)[:1]]


def bitcast(eqn: Any, operands: list[Value], record: Record) -> list[Axes]:
    """Keeps the axes if entries are read as others of the same size."""
    same = eqn.invars[0].aval.shape == shapes_of(eqn)[0]
    return (elementwise if same else barrier)(eqn, operands, record)


def separate(eqn: Any, operands: list[Value], record: Record) -> list[Axes]:
    """Hands each operand on."""
    del eqn, record
    return [x.axes for x in operands]


def alike(eqn: Any, operands: list[Value], record: Record) -> list[Axes]:
    """Ties nothing: random entries are all drawn alike, as many as the shape asks for."""
    del operands, record
    return [(None,) * len(shape) for shape in shapes_of(eqn)]


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
    flip = lambda axis, units: units[::-1] if axis in eqn.params["dimensions"] else units
    return [
        tuple(None if u is None else flip(axis, u) for axis, u in enumerate(operands[0].axes)),
    ]


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
    return axis[positions]


def _slice(eqn: Any, operands: list[Value], record: Record) -> list[Axes]:
    p, x = eqn.params, operands[0]
    strides = p["strides"] or (1,) * len(x.axes)
    ends = zip(x.axes, p["start_indices"], p["limit_indices"], strides, strict=True)
    return [
        tuple(taken(record, eqn, axis, np.arange(*end)) for axis, *end in ends),
    ]


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
    """Puts units one after the other; parts that nothing is tied to get units of their own."""
    along = eqn.params["dimension"]
    axes = [
        *record.join_values(
            [x._replace(axes=_without(x, along)) for x in operands], _shape(eqn, along)
        )
    ]
    why = record.reason_at(eqn, "single entries put beside each other by concatenate")
    parts = []
    for x, var in zip(operands, eqn.invars, strict=True):
        size, units = var.aval.shape[along], x.axes[along]
        if units is None:
            units = record.units.new(size) if size != 1 else record.units.frozen(1, why)
        parts.append(units)
    axes.insert(along, np.concatenate(parts))
    return [tuple(axes)]


def _without(x: Value, axis: int) -> Axes:
    return (*x.axes[:axis], *x.axes[axis + 1 :])


def _shape(eqn: Any, axis: int) -> tuple[int, ...]:
    shape = shapes_of(eqn)[0]
    return (*shape[:axis], *shape[axis + 1 :])


def _pad(eqn: Any, operands: list[Value], record: Record) -> list[Axes]:
    """Gives the padding new units, which go with whatever they are added to."""
    axes = []
    config = zip(operands[0].axes, shapes_of(eqn)[0], eqn.params["padding_config"], strict=True)
    for units, size, (low, _, interior) in config:
        if units is not None and (low, size, interior) != (0, len(units), 0):
            padded = record.units.new(size)
            at = np.arange(len(units)) * (interior + 1) + low
            is_in = (at >= 0) & (at < size)  # negative padding crops
            padded[at[is_in]] = units[is_in]
            units = padded
        elif units is None and size > 1 and eqn.invars[0].aval.shape[len(axes)] == 1:
            why = record.reason_at(eqn, "a single entry put into padding by pad")
            units = record.frozen(size, why)
        axes.append(units)
    return [tuple(axes)]


def _tile(eqn: Any, operands: list[Value], record: Record) -> list[Axes]:
    del record
    repeats = zip(operands[0].axes, eqn.params["reps"], strict=True)
    return [tuple(None if units is None else np.tile(units, n) for units, n in repeats)]


# Reshapes.


def _reshape(eqn: Any, operands: list[Value], record: Record) -> list[Axes]:
    """Splits and joins neighbouring axes; one factor of each carries the units, chosen later."""
    old, new = tuple(eqn.invars[0].aval.shape), shapes_of(eqn)[0]
    if eqn.params.get("dimensions") is not None or not num_entries(old):
        return barrier(eqn, operands, record)
    axes: list[Axis] = []
    for before, after in axis_groups(old, new):
        given = [i for i in range(before.start, before.stop) if old[i] > 1]
        wanted = [i for i in range(after.start, after.stop) if new[i] > 1]
        found = dict.fromkeys(range(after.start, after.stop))
        factors = [operands[0].axes[i] for i in given]
        if all(units is None for units in factors):
            pass
        elif len(given) == len(wanted) == 1:
            found[wanted[0]] = factors[0]
        else:
            shown = f"reshape {tuple(old[before])} to {tuple(new[after])}"
            whole = _merged(eqn, record, factors, [old[i] for i in given], shown)
            parts = _divided(eqn, record, whole, [new[i] for i in wanted], shown)
            found.update(zip(wanted, parts, strict=True))
        axes += [found[i] for i in range(after.start, after.stop)]
    return [tuple(axes)]


def _merged(
    eqn: Any, record: Record, factors: list[Axis], sizes: list[int], shown: str
) -> np.ndarray:
    """Returns the units of neighbouring axes that are joined into one."""
    if len(factors) == 1 and factors[0] is not None:
        return factors[0]
    given = [units for units in factors if units is not None]
    if not any(record.units.is_free(units).any() for units in given):
        return np.repeat(given[0][:1], num_entries(sizes))
    whole = record.units.new(num_entries(sizes))
    record.split(whole, factors, sizes, record.reason_at(eqn, shown))
    return whole


def _divided(
    eqn: Any, record: Record, whole: np.ndarray, sizes: list[int], shown: str
) -> list[Axis]:
    """Returns the units of the axes that an axis is split into."""
    if len(sizes) == 1:
        return [whole]
    if not record.units.is_free(whole).any():
        return [np.repeat(whole[:1], size) for size in sizes]
    factors: list[Axis] = [record.units.new(size) for size in sizes]
    record.split(whole, factors, sizes, record.reason_at(eqn, shown))
    return factors


# Operations along an axis.


def barrier(eqn: Any, operands: Sequence[Value], record: Record) -> list[Axes]:
    """Freezes all axes that meet an operation of which nothing is known."""
    why = record.reason_at(eqn, f"{eqn.primitive.name}, which the analysis does not see through")
    for x in operands:
        record.freeze(x.axes, why)
    return [tuple(record.frozen(n, why) for n in shape) for shape in shapes_of(eqn)]


def _reduce(eqn: Any, operands: list[Value], record: Record) -> list[Axes]:
    """Ends the axes that are reduced, with a note: a mean over channels depends on their number."""
    gone, x = eqn.params["axes"], operands[0]
    for axis in gone:
        record.note(x.axes[axis], record.reason_at(eqn, f"{eqn.primitive.name} runs over them"))
    return [tuple(units for axis, units in enumerate(x.axes) if axis not in gone)]


def _along(eqn: Any, operands: list[Value], record: Record) -> list[Axes]:
    """Freezes the axis that an operation runs along, such as cumsum or sort; others go on."""
    p, name = eqn.params, eqn.primitive.name
    along = p["axis"] if "axis" in p else p.get("dimension", p.get("axis", -1))
    outputs = []
    joined = record.join_values(operands, eqn.invars[0].aval.shape)
    along %= len(joined)
    why = record.reason_at(eqn, f"{name} runs along it")
    record.freeze([joined[along]], why)
    for shape in shapes_of(eqn):
        end = record.frozen(shape[along], why)
        outputs.append((*joined[:along], end, *joined[along + 1 :]))
    return outputs


def _reduce_window(eqn: Any, operands: list[Value], record: Record) -> list[Axes]:
    """Freezes the axes that a window slides over, such as those of pooling; others go on."""
    p, out = eqn.params, shapes_of(eqn)
    num = len(out)
    joined = record.join_values(operands[:num], eqn.invars[0].aval.shape)
    why = record.reason_at(eqn, f"a window of {eqn.primitive.name}")
    axes = []
    for i, units in enumerate(joined):
        window = (p["window_dimensions"][i], p["window_strides"][i], *p["padding"][i])
        dilation = (p.get("base_dilation") or (1,) * len(joined))[i]
        if (*window, dilation) != (1, 1, 0, 0, 1):
            record.freeze([units], why)
            units = record.frozen(out[0][i], why)
        axes.append(units)
    return [tuple(axes)] * num


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
    "reshape": _reshape,
    **dict.fromkeys(
        """argmax argmin reduce_and reduce_max reduce_min reduce_or reduce_prod reduce_sum
        reduce_xor""".split(),
        _reduce,
    ),
    **dict.fromkeys("cumlogsumexp cummax cummin cumprod cumsum sort top_k".split(), _along),
    **dict.fromkeys(
        "reduce_window reduce_window_max reduce_window_min reduce_window_sum".split(),
        _reduce_window,
    ),
}
"""By the name of the primitive: the axes of its results."""
