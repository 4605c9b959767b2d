"""What a walk over a jaxpr knows of each array, and the record that it fills in."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from jax.extend import source_info_util

from jaxsparse.structured.units import Reason, Units

Axis: TypeAlias = np.ndarray | None
"""The units along an axis. None if nothing is tied to its indices: the axis is of size 1, or all
entries along it are alike (a broadcast), so that it is as long as what it meets."""

Role: TypeAlias = Literal["output", "input"]


class Value(NamedTuple):
    """Knowledge of an array.

    Attributes:
      axes: the units along each axis.
      is_data: whether it depends on the inputs, not on parameters and constants alone.
      known: int or bool[shape], the entries of a small constant; None if they are not known.
      unplaced: the reason that its axes are frozen by, if it is a constant that no operation has
        used yet.
    """

    axes: tuple[Axis, ...]
    is_data: bool
    known: np.ndarray | None = None
    unplaced: Reason | None = None


class Split(NamedTuple):
    """An axis whose indices are those of several factors, the outermost first.

    To remove an index of one factor removes a block or a strided set of the axis. To do so for two
    factors would remove nearly everything, so one factor carries the units and the others stay.

    Attributes:
      whole: units of the axis. None if the factors are axes of a kernel side by side, such as heads
        and head size, that no reshape joins.
      factors: units along each factor. None for a factor along which entries are repeated.
      sizes: of the factors.
      what: what splits it.
    """

    whole: Axis
    factors: tuple[Axis, ...]
    sizes: tuple[int, ...]
    what: Reason


class Use(NamedTuple):
    """A product's use of a kernel's axis.

    Attributes:
      units: along the axis.
      role: whether the product gives this axis to its result, or sums over it.
      kind: the operation, and the window if it has one.
    """

    units: np.ndarray
    role: Role
    kind: str


class Record:
    """What the walk finds.

    Attributes:
      units: all units, joined and frozen as far as the walk knows.
      splits: axes of which one factor has yet to be chosen.
      notes: units that can be removed, and what else changes with their number.
      cuts: units along an axis that an operation cuts at places which the function fixes.
      uses: of kernels in products, in the order of the program.
      called_at: the place of the last call that was entered. A jitted function of a library keeps
        no place of its own.
    """

    def __init__(self):
        self.units = Units()
        self.splits: list[Split] = []
        self.notes: list[tuple[np.ndarray, Reason]] = []
        self.cuts: list[tuple[np.ndarray, Reason]] = []
        self.uses: list[Use] = []
        self.called_at = ""

    def reason_at(self, eqn: Any, what: str) -> Reason:
        """Returns a reason with the place of an equation."""
        return Reason(what, self.place_of(eqn))

    def place_of(self, eqn: Any) -> str:
        """Returns the scope and source line of an equation, or else those of its call."""
        return _place_of(eqn) or self.called_at

    def join(self, axes: Sequence[Axis]) -> Axis:
        """Joins axes index by index, and returns the units of the result."""
        given = [axis for axis in axes if axis is not None]
        for other in given[1:]:
            self.units.join(given[0], other)
        return given[0] if given else None

    def join_values(self, values: Sequence[Value], shape: Sequence[int]) -> tuple[Axis, ...]:
        """Joins all axes of values of one shape; single numbers among them have none."""
        whole = [x.axes for x in values if len(x.axes) == len(shape)]
        return tuple(self.join(axes) for axes in zip(*whole, strict=True)) if whole else ()

    def freeze(self, axes: Sequence[Axis], reason: Reason) -> None:
        """Freezes all units of the axes."""
        for axis in axes:
            if axis is not None:
                self.units.freeze(axis, reason)

    def frozen(self, size: int, reason: Reason) -> Axis:
        """Returns an axis that is frozen, unless it has but one index."""
        return self.units.frozen(size, reason) if size > 1 else None

    def note(self, axis: Axis, reason: Reason) -> None:
        """Notes what else changes if units of an axis are removed."""
        if axis is not None:
            self.notes.append((axis, reason))

    def cut(self, axis: Axis, eqn: Any) -> None:
        """Records that an operation cuts an axis."""
        if axis is not None:
            self.cuts.append((axis, self.reason_at(eqn, f"{eqn.primitive.name} cuts them")))

    def use(self, axis: Axis, role: Role, kind: str) -> None:
        """Records the use of a kernel's axis."""
        if axis is not None:
            self.uses.append(Use(axis, role, kind))

    def split(self, whole: Axis, factors: Sequence[Axis], sizes: Sequence[int], what: Reason):
        """Records an axis that is made of factors."""
        self.splits.append(Split(whole, tuple(factors), tuple(sizes), what))


def shapes_of(eqn: Any) -> list[tuple[int, ...]]:
    """Returns the shape of every output; a token has none."""
    return [tuple(getattr(var.aval, "shape", ())) for var in eqn.outvars]


def _place_of(eqn: Any) -> str:
    """Returns the scope and source line of an equation, such as "in block1 (net.py:12)"."""
    scope = str(eqn.source_info.name_stack)
    source = source_info_util.summarize(eqn.source_info).split(" (")[0]
    file, _, rest = source.rpartition("/")[2].partition(":")
    line = f"{file}:{rest.split(':')[0]}" if rest else file
    if not scope:
        return f"at {line}" if line else ""
    return f"in {scope} ({line})" if line else f"in {scope}"
