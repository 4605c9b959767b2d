"""The integer timetable: which steps have an event, and exactly how many weights it concerns.

Everything is decided once, on the host, in float64, from schedules of density and drop fraction.
`plan` prints it, events index it, so that what runs cannot differ from what was planned.
"""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping
from fractions import Fraction
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxsparse.checks import check_in, check_whole
from jaxsparse.distributions import count_together, leaf_counts
from jaxsparse.types import (
    Distribution,
    OptionError,
    PlannedEvent,
    Rounding,
    Row,
    Scope,
    Shapes,
    StepSchedule,
)

HOLD = 2**31 - 1
"""In place of a target: the event leaves the number of active weights as it is."""

MAX_DENOMINATOR = 46340
"""Largest q with q*q below 2**31: the products in `take_fraction` stay within int32."""


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
      update_interval: steps of the grid that the events were laid on, None where there was none;
        with cycles of density that of the method's own events, after them.
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

        Where a segment has an event, its last step is the one with `event=True`.

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

    There is an event at every such step within [start_step, total_steps] that has something to do:
    a density that differs from the event before (else the count is held), or a drop fraction above
    0. At the last step of training nothing is dropped: what an exchange would grow there could
    never train.

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


def event_rows(
    timetable: Timetable,
    shapes: Shapes,
    *,
    scope: Scope,
    distribution: Distribution,
    min_keep: int | None,
) -> Row:
    """Returns the rows of all events stacked: a `Row` whose entries are np.int32[events].

    A target is `HOLD` where the event does not change the number of active weights. Targets per
    leaf go up and down together: none falls where the density rises, none rises where it falls, and
    where the events come back to the lowest density so far, they are what they were then.

    Args:
      timetable: the events.
      shapes: shapes of the prunable leaves, by path.
      scope: "global": one target for all leaves together; "layer": one per leaf.
      distribution: shares out a layer target; not used for "global".
      min_keep: fewest active weights of a leaf; None is 1 with scope "layer", 0 with "global".

    Raises:
      ValueError: a target below `min_keep` a leaf or below 1, or more weights than int32 counts.
    """
    if min_keep is None:
        min_keep = int(scope == "layer")
    if scope == "global":
        check_countable(shapes)
    if scope == "layer":
        targets = list(_layer_targets(timetable, shapes, distribution, min_keep))
    else:
        targets = [_global_target(event, shapes, min_keep) for event in timetable.events]
    stacked = {
        path: np.array([t[path] for t in targets], np.int32)
        for path in (shapes if scope == "layer" else [""])
    }
    ratios = [event.drop_fraction for event in timetable.events]
    drop = (
        np.array([r.numerator for r in ratios], np.int32),
        np.array([r.denominator for r in ratios], np.int32),
    )
    return Row(stacked if scope == "layer" else stacked[""], drop, min_keep)


def _global_target(event: PlannedEvent, shapes: Shapes, min_keep: int) -> dict[str, int]:
    if event.density is None:
        return {"": HOLD}
    when = f" at step {event.step}"
    return {"": count_together(shapes, event.density, minimum=min_keep, when=when)}


def _layer_targets(
    timetable: Timetable, shapes: Shapes, distribution: Distribution, min_keep: int
) -> Iterator[dict[str, int]]:
    if all(event.density is None for event in timetable.events):
        yield from (dict.fromkeys(shapes, HOLD) for _ in timetable.events)
        return
    density = lowest = timetable.initial_density
    counts = fewest = leaf_counts(distribution, shapes, density, minimum=min_keep)
    for event in timetable.events:
        if event.density is None:
            yield dict.fromkeys(shapes, HOLD)
            continue
        # Pruning adds no weight and growth takes none: no leaf may round the wrong way, or the
        # total would be missed.
        rises, density = event.density > density, event.density
        counts = leaf_counts(
            distribution,
            shapes,
            density,
            minimum=min_keep,
            at_least=counts if rises else fewest if density >= lowest else None,
            at_most=None if rises else counts,
        )
        if density < lowest:
            lowest, fewest = density, counts
        yield counts


def row_at(
    timetable: Timetable, rows: Row, step: int | jax.Array, active: Mapping[str, jax.Array]
) -> Row:
    """Returns the row of the last event at or before `step` (the first one before any), traceable.

    Args:
      timetable: the events; at least one.
      rows: what `event_rows` made of them.
      step: int32[], may be traced.
      active: int32[] by path, active weights before the event: the target where it is held.
    """
    steps = jnp.array([event.step for event in timetable.events], jnp.int32)
    index = jnp.maximum(jnp.searchsorted(steps, jnp.asarray(step, jnp.int32), side="right") - 1, 0)
    numerator, denominator = (jnp.asarray(column)[index] for column in rows.drop)
    now = jnp.stack(list(active.values()))
    # All leaves in one vector: small operations by leaf take long to compile.
    if isinstance(rows.target, dict):
        planned = jnp.asarray(np.stack([rows.target[path] for path in active], 1))[index]
        target = dict(zip(active, jnp.where(planned == HOLD, now, planned), strict=True))
    else:
        planned = jnp.asarray(rows.target)[index]
        target = jnp.where(planned == HOLD, now.sum(dtype=jnp.int32), planned)
    return rows._replace(target=target, drop=(numerator, denominator))


def take_fraction(
    count: jax.Array, ratio: tuple[jax.Array, jax.Array], rounding: Rounding
) -> jax.Array:
    """Returns floor or ceil of count * numerator / denominator in exact int32 arithmetic.

    With count = a*q + b the product is a*p + b*p/q, and b*p < q*q < 2**31 cannot overflow.

    Args:
      count: int32[...], at least 0.
      ratio: (p, q), int32[], 0 <= p <= q <= 46340.
      rounding: "floor" (RigL) or "ceil" (GraNet, ITOP).

    >>> import jax.numpy as jnp
    >>> half = (jnp.int32(1), jnp.int32(2))
    >>> (
    ...     int(take_fraction(jnp.int32(5), half, "floor")),
    ...     int(take_fraction(jnp.int32(5), half, "ceil")),
    ... )
    (2, 3)
    """
    p, q = ratio
    whole, rest = count // q, count % q
    return whole * p + (rest * p + (q - 1 if rounding == "ceil" else 0)) // q


def check_countable(shapes: Shapes) -> None:
    """Raises a ValueError for more weights than one number can count."""
    size = sum(math.prod(shape) for shape in shapes.values())
    if size >= HOLD:
        raise ValueError(f"{size} weights are too many for scope='global', at most {HOLD - 1}")


def check_steps(**steps: int) -> tuple[int, ...]:
    """Returns numbers of steps as Python's integers, in which no product can overflow.

    Raises:
      ValueError: names the first one that is no integer of at least 1.

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
