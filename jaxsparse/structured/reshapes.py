"""Reshapes: neighbouring axes are joined, and axes are split into neighbours."""

import math
from typing import Any

import numpy as np

from jaxsparse.structured.record import Axis, Record, Value, shapes_of
from jaxsparse.structured.relations import Axes, barrier
from jaxsparse.tracing.owners import axis_groups


def reshape(eqn: Any, operands: list[Value], record: Record) -> list[Axes]:
    """Splits and joins neighbouring axes; one factor of each carries the units, chosen later."""
    old, new = tuple(eqn.invars[0].aval.shape), shapes_of(eqn)[0]
    if eqn.params.get("dimensions") is not None or not math.prod(old):
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
        return np.repeat(given[0][:1], math.prod(sizes))
    whole = record.units.new(math.prod(sizes))
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
