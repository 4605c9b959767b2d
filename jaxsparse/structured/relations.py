"""Relations: what an operation ties, from the axes of its operands to those of its results.

Here are the simplest: entry by entry, nothing at all, and the barrier of an unknown operation.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from jaxsparse.structured.record import Axis, Record, Value, shapes_of

Axes: TypeAlias = tuple[Axis, ...]
Relation: TypeAlias = Callable[[Any, list[Value], Record], list[Axes]]
"""Function of (equation, operands, record) that returns the axes of every result."""


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


def barrier(eqn: Any, operands: Sequence[Value], record: Record) -> list[Axes]:
    """Freezes all axes that meet an operation of which nothing is known."""
    why = record.reason_at(eqn, f"{eqn.primitive.name}, which the analysis does not see through")
    for x in operands:
        record.freeze(x.axes, why)
    return [tuple(record.frozen(n, why) for n in shape) for shape in shapes_of(eqn)]
