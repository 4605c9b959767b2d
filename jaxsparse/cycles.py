"""Cyclic sparsity: the density rises and falls before the method's own events begin."""

import itertools
from bisect import bisect_right

from jaxsparse.event import Cycles
from jaxsparse.method import Method, recipe_of, remade
from jaxsparse.schedules import cycle_ends, cyclic
from jaxsparse.scores import gradient, magnitude, random
from jaxsparse.stages import grow as grow_by
from jaxsparse.stages import prune
from jaxsparse.timetable import Timetable, check_steps, make_timetable
from jaxsparse.types import CycleShape, OptionError, Score, StepSchedule


def with_cycles(
    method: Method,
    *,
    num_cycles: int = 2,
    cycle_steps: int | None = None,
    growth: float = 1.0,
    multiplier: float = 3.0,
    shape: CycleShape = "cosine",
    cycle_interval: int = 100,
    drop: Score = magnitude,
    grow: Score = gradient,
) -> Method:
    """Returns the method with cycles of density in front: weights grow, and then are pruned again.

        jaxsparse.with_cycles(jaxsparse.set_(sparsity=0.999, ...), num_cycles=3)

    The density in a cycle is that of the method's own timetable times `schedules.cyclic`, at most
    1. Events at which it rises grow weights by `grow`, from 0. Events at which it falls prune the
    lowest by `drop`. Nothing is exchanged. The number of weights is exactly the method's own at the
    last step of every cycle, on the grid or not.

    The method's own events go on after the last cycle, unchanged. Those before it do not run; only
    the density that they set counts. If the cycles last to the end of training, the method itself
    exchanges nothing; `plan` shows it.

    Every layer rises and falls with scope "layer", to its share by the method's distribution, and
    ends a cycle with the number it had before. Weights grow and go wherever they are worth most or
    least with scope "global".

    Args:
      method: one that `compose` made, as all published ones are.
      num_cycles: at least 0; with 0 the method is returned as it is.
      cycle_steps: steps of the first cycle; None is a fifth of training.
      growth: length of a cycle over that of the one before, above 0.
      multiplier: the density in the middle of a cycle over the method's own, at least 1; with 1 the
        method is returned as it is.
      shape: "cosine" or "triangular".
      cycle_interval: mask updates in cycles lie on its multiples; every cycle has to hold one.
      drop: what an active weight is worth.
      grow: what an inactive position is worth. If it is not `scores.random`, a method whose
        `dense_gradient` was "never" gets "events", for all of its events: the plan's FLOPs of SET
        and GMP are then a little above the true ones.

    Raises:
      ValueError: a number outside its range; cycles that do not fit into training; no method of
        `compose`, or one that has cycles already. When called with params: an N:M pattern, which
        fixes the density.

    Differs from the official code of EAST in: counts are exact, above all at the end of a cycle (at
    an interval of 4000 steps that code goes on with 1.585 times its budget); the layers' add up,
    where the code rounds each down; they are compared as integers, layer by layer, where the code
    compares densities, with weight sharing in two units; pruning chooses among active weights
    alone, where the code lets weights of 0 win ties; and as `schedules.cyclic`.

    Reference: Li et al., "Pushing the Limits of Sparsity: A Bag of Tricks for Extreme Pruning"
    (EAST), TMLR 2025.

    >>> from jaxsparse import static, with_cycles
    >>> method = with_cycles(static(sparsity=0.9, total_steps=1000), cycle_interval=50)
    >>> method.name, [(e.step, round(e.density, 3)) for e in method.timetable.events[:4]]
    ('static cycles', [(50, 0.2), (100, 0.3), (150, 0.2), (200, 0.1)])
    """
    recipe, table = recipe_of(method), method.timetable
    (cycle_interval,) = check_steps(cycle_interval=cycle_interval)
    if cycle_steps is None:
        cycle_steps = max(table.total_steps // 5, 1)
    lengths = {"num_cycles": num_cycles, "cycle_steps": cycle_steps, "growth": growth}
    factor = cyclic(**lengths, multiplier=multiplier, shape=shape)
    ends = cycle_ends(**lengths)
    if not ends or multiplier == 1.0:
        return method
    if recipe.cycles is not None:
        raise ValueError(f"method {method.name} has cycles already")
    _check_ends(ends, cycle_interval, table.total_steps)

    own = _density(table)
    rises_and_falls = make_timetable(
        total_steps=ends[-1],
        update_interval=cycle_interval,
        also_at=ends,
        initial_density=table.initial_density,
        density=lambda step: min(factor(step) * own(step), 1.0),
    )
    after = tuple(event for event in table.events if event.step > ends[-1])
    cycles = Cycles((prune(drop), grow_by(grow)), ends, cycle_interval, multiplier)
    recipe = recipe._replace(
        timetable=table._replace(events=rises_and_falls.events + after), cycles=cycles
    )
    needs_gradient = method.dense_gradient == "never" and grow is not random
    return remade(
        method,
        recipe,
        name=f"{method.name} cycles",
        dense_gradient="events" if needs_gradient else method.dense_gradient,
    )


def _density(table: Timetable) -> StepSchedule:
    """The density of a timetable after each step, which the last event that changed it has set."""
    changes = [(0, table.initial_density)]
    changes += [(e.step, e.density) for e in table.events if e.density is not None]
    return lambda step: changes[bisect_right(changes, step, key=lambda change: change[0]) - 1][1]


def _check_ends(ends: tuple[int, ...], cycle_interval: int, total_steps: int) -> None:
    if ends[-1] > total_steps:
        raise ValueError(
            f"the {len(ends)} cycles, of which the first has {ends[0]} steps, end at step "
            f"{ends[-1]}, after total_steps {total_steps}; take fewer or shorter ones"
        )
    for start, stop in itertools.pairwise((0, *ends)):
        if (start // cycle_interval + 1) * cycle_interval >= stop:
            raise OptionError(
                "cycle_interval",
                cycle_interval,
                f"has no multiple between the steps {start} and {stop}, where a cycle starts and "
                f"ends; take one of at most {(stop - start) // 2}",
            )
