"""The timetable: which steps have an event, and the density and drop fraction of each.

It is made once, on the host in float64, from schedules of density and drop fraction. `plan` prints
it and events index it, so that a run cannot differ from its plan.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import NamedTuple

from jax.core import Tracer

from jaxsparse.checks import check_in, check_whole
from jaxsparse.types import OptionError, PlannedEvent, StepSchedule

MAX_DENOMINATOR = 46340
"""Largest q with q*q below 2**31: the products in `event_rows.take_fraction` stay within int32."""


class Segment(NamedTuple):
    """Steps start+1, ..., stop, without an event before the last one.

    Attributes:
      start: completed steps before the segment.
      stop: completed steps after it.
      event: whether an event is due at `stop`.
    """

    start: int
    stop: int
    event: bool


class Timetable(NamedTuple):
    """All events of a run.

    Attributes:
      total_steps: length of the run, in optimizer steps.
      events: ascending in step, each within [1, total_steps].
      initial_density: density of the masks that training starts with, in (0, 1].
      update_interval: steps between the points of the grid of events; None if there was no grid. A
        timetable with cycles has the interval of the method's own events, after them.
    """

    total_steps: int
    events: tuple[PlannedEvent, ...]
    initial_density: float = 1.0
    update_interval: int | None = None

    def __repr__(self) -> str:
        """One line: JAX prints static parts of trees in its errors."""
        return f"Timetable({len(self.events):,} events in {self.total_steps:,} steps)"

    def is_due(self, step: int) -> bool:
        """Whether an event follows optimizer step `step`, a Python int counted from 1."""
        if isinstance(step, Tracer):
            raise ValueError(
                "is_due was asked for a traced step, and the answer decides what is compiled: ask "
                "it outside of jit and pass it on as a static argument, or walk method.segments()"
            )
        i = bisect_left(self.events, step, key=lambda event: event.step)
        return i < len(self.events) and self.events[i].step == step

    def segments(self, start: int = 0) -> Iterator[Segment]:
        """Cuts the steps after `start` at the events: one `lax.scan` each, say.

        If a segment has an event, its last step is the one with `event=True`.

        >>> events = tuple(PlannedEvent(t, None, Fraction(1, 2)) for t in (2, 4))
        >>> [tuple(s) for s in Timetable(5, events).segments()]
        [(0, 2, True), (2, 4, True), (4, 5, False)]
        """
        for event in self.events:
            if event.step > start:
                yield Segment(start, event.step, True)
                start = event.step
        if start < self.total_steps:
            yield Segment(start, self.total_steps, False)


def make_timetable(
    *,
    total_steps: int,
    update_interval: int,
    also_at: Iterable[int] = (),
    start_step: int = 0,
    initial_density: float = 1.0,
    density: StepSchedule | None = None,
    drop_fraction: StepSchedule | None = None,
) -> Timetable:
    """Lays the events on the grid of multiples of `update_interval`, and on given steps.

    Every such step within [start_step, total_steps] has an event if there is something to do: a
    density that differs from the event before (else the count is held), or a drop fraction above 0.
    The last step of training drops nothing: weights that an exchange grew there could never train.

    Args:
      total_steps: length of the run, at least 1.
      update_interval: steps between events, at least 1.
      also_at: more steps, on the grid or not.
      start_step: no event before it; never one at step 0.
      initial_density: density of the masks that training starts with, in (0, 1]; 1 is dense.
      density: target density over steps, in (0, 1]; None holds the initial density.
      drop_fraction: share of active weights to replace over steps, in [0, 1]; None replaces none.

    Raises:
      ValueError: a number outside its range, with its name.

    >>> table = make_timetable(
    ...     total_steps=5, update_interval=2, drop_fraction=lambda t: 0.3, initial_density=0.1
    ... )
    >>> [(e.step, e.density, str(e.drop_fraction)) for e in table.events]
    [(2, None, '3/10'), (4, None, '3/10')]
    """
    total_steps, update_interval = check_steps(
        total_steps=total_steps, update_interval=update_interval
    )
    first = check_whole("start_step", start_step, 0, of="steps")
    check_in("initial_density", initial_density, "(0, 1]")
    for name, schedule in (("density", density), ("drop_fraction", drop_fraction)):
        if schedule is not None and not callable(schedule):
            raise ValueError(f"{name} {schedule!r} must be a function of the step")
    events = []
    current = initial_density
    grid = range(update_interval, total_steps + 1, update_interval)
    steps = sorted({*grid, *also_at})
    for step in steps[bisect_left(steps, max(first, 1)) : bisect_right(steps, total_steps)]:
        target = float(density(step)) if density else current
        share = float(drop_fraction(step)) if drop_fraction and step < total_steps else 0.0
        if not 0.0 < target <= 1.0:
            raise ValueError(f"density {target} at step {step} must be in (0, 1]")
        if not 0.0 <= share <= 1.0:
            raise ValueError(f"drop_fraction {share} at step {step} must be in [0, 1]")
        ratio = Fraction(share).limit_denominator(MAX_DENOMINATOR)
        if target != current or ratio:
            events.append(PlannedEvent(step, target if target != current else None, ratio))
        current = target
    return Timetable(total_steps, tuple(events), initial_density, update_interval)


def check_steps(**steps: int) -> tuple[int, ...]:
    """Returns numbers of steps as Python's integers, in which no product can overflow.

    Raises:
      ValueError: names the first one that is no integer of at least 1.

    >>> import numpy as np
    >>> check_steps(total_steps=np.uint16(40_000), update_interval=100)
    (40000, 100)
    """
    numbers = []
    for name, value in steps.items():
        number = check_whole(name, value, 1, of="steps")
        if number >= 2**31:
            raise OptionError(name, value, "must be below 2**31")
        numbers.append(number)
    return tuple(numbers)
