"""Numbers over optimizer steps: target densities and drop fractions, in float64 on the host.

A schedule is a function of the step, counted from 1. It never runs on the device: the timetable
turns it into integers once. (A cubic schedule evaluated in float32 misses targets.)
"""

import itertools
import math
import operator
from bisect import bisect_left
from typing import get_args

from jaxsparse.checks import check_in, check_whole
from jaxsparse.types import CycleShape, OptionError, StepSchedule


def constant(value: float) -> StepSchedule:
    """The same value at every step.

    >>> constant(0.3)(7)
    0.3
    """
    return lambda step: value


def cubic_sparsity(
    *,
    initial_sparsity: float,
    sparsity: float,
    start_step: int,
    stop_step: int,
    update_interval: int,
    legacy_end: bool = False,
) -> StepSchedule:
    """Zhu and Gupta's cubic schedule, counted in events: steep at first, flat at the end.

        s(i) = s_f + (s_i - s_f) * (1 - i / T)^3,   i = floor(t/D) - floor(t0/D),  0 <= i <= T

    Here t is the step, D the update interval, t0 the start step, tf the stop step and
    T = floor(tf/D) - floor(t0/D). The sparsity is s_i before the start and s_f from the stop on.

    Args:
      initial_sparsity: s_i in [0, 1).
      sparsity: s_f in [0, 1).
      start_step: t0, the event at t0 itself still has s_i.
      stop_step: tf, the last event within it has s_f.
      update_interval: D, in optimizer steps.
      legacy_end: leave out the last event (i = T), as GraNet's code does since 2022: the schedule
        then ends at s_f - (s_f - s_i) / T^3.

    Raises:
      ValueError: s_i differs from s_f and the grid has no event after the start and up to the stop
        (T < 1, or T < 2 with `legacy_end`), so the target would never be reached.

    Reference:
      Zhu and Gupta, "To prune, or not to prune", 2017, eq. 1; GraNet counts events, not steps.

    >>> s = cubic_sparsity(
    ...     initial_sparsity=0, sparsity=0.9, start_step=0, stop_step=4, update_interval=1
    ... )
    >>> [round(s(t), 7) for t in range(6)]
    [0.0, 0.5203125, 0.7875, 0.8859375, 0.9, 0.9]
    """
    if initial_sparsity == sparsity:  # there already, with or without an event
        return constant(sparsity)
    first = start_step // update_interval
    num_events = stop_step // update_interval - first
    last = num_events - 1 if legacy_end else num_events
    if last < 1:
        raise ValueError(
            f"sparsity {sparsity} is never reached: update_interval {update_interval} leaves no "
            f"event between start_step {start_step} and stop_step {stop_step}; take an interval of "
            f"at most {max(stop_step - start_step, 1) // (2 if legacy_end else 1)} steps"
        )

    def schedule(step: int) -> float:
        i = min(max(step // update_interval - first, 0), last)
        if i == 0:  # exactly s_i: a rounding error would make an event that prunes nothing
            return float(initial_sparsity)
        return sparsity + (initial_sparsity - sparsity) * (1.0 - i / num_events) ** 3

    return schedule


def cosine(initial: float, final: float, total_steps: int) -> StepSchedule:
    """Half a cosine from `initial` at step 0 to `final` at `total_steps`, then `final`.

        r(t) = r_min + (r_0 - r_min) * (1 + cos(pi t / T)) / 2

    Differs from RigL's code, which divides by T_end minus the first step of its events.

    Reference:
      RigL (Evci et al. 2020, section 3) with final = 0 and T = T_end; GraNet (Liu et al. 2021) and
      ITOP with 0.5 to 0.005 over all steps.

    >>> r = cosine(0.5, 0.005, 100)
    >>> [round(r(t), 6) for t in (0, 25, 50, 75, 100, 200)]
    [0.5, 0.427509, 0.2525, 0.077491, 0.005, 0.005]
    """
    initial, final, length = float(initial), float(final), float(total_steps)

    def schedule(step: int) -> float:
        progress = min(max(step / length, 0.0), 1.0)
        return final + (initial - final) * (1.0 + math.cos(math.pi * progress)) / 2.0

    return schedule


def until(schedule: StepSchedule, stop_step: int) -> StepSchedule:
    """The schedule before `stop_step`, 0 from `stop_step` on (RigL stops updating at T_end).

    >>> [until(constant(0.3), 5)(t) for t in (4, 5)]
    [0.3, 0.0]
    """
    return lambda step: schedule(step) if step < stop_step else 0.0


def cyclic(
    *,
    num_cycles: int,
    cycle_steps: int,
    growth: float = 1.0,
    multiplier: float = 3.0,
    shape: CycleShape = "cosine",
) -> StepSchedule:
    """A factor that swings from 1 to `multiplier` and back once a cycle, such as one of a density.

        f(t) = 1 + (m - 1) / 2 * (1 - cos 2 pi p),   p = (t - c) / T

    in the cycle that starts after step c and has T steps. The shape "triangular" rises and falls in
    straight lines instead. The factor is exactly 1 at both ends of every cycle and after the last
    one, and m in the middle of a cycle.

    Args:
      num_cycles: at least 0; with 0 the factor is 1 everywhere.
      cycle_steps: length of the first cycle, at least 1.
      growth: length of a cycle over that of the one before, above 0; rounded to whole steps.
      multiplier: m, at least 1.
      shape: "cosine" or "triangular".

    Raises:
      ValueError: a number outside its range.

    Differs from the official code of EAST in: p counts completed steps, where the code counts those
    before the update, (t - 1 - c) / T; and p is within [0, 1] for either shape, where the code's
    triangle goes below the target.

    Reference: Li et al., "Pushing the Limits of Sparsity: A Bag of Tricks for Extreme Pruning"
    (EAST), TMLR 2025.

    >>> f = cyclic(num_cycles=2, cycle_steps=4)
    >>> [round(f(t), 6) for t in (0, 1, 2, 3, 4, 6, 8, 100)]
    [1.0, 2.0, 3.0, 2.0, 1.0, 3.0, 1.0, 1.0]
    """
    multiplier = check_in("multiplier", multiplier, "[1, inf)")
    if shape not in get_args(CycleShape):
        raise OptionError("shape", shape, f"must be {' or '.join(map(repr, get_args(CycleShape)))}")
    ends = (0, *cycle_ends(num_cycles=num_cycles, cycle_steps=cycle_steps, growth=growth))

    def schedule(step: int) -> float:
        i = bisect_left(ends, step)
        if i in (0, len(ends)):
            return 1.0
        start, stop = ends[i - 1], ends[i]
        # 0 at both ends, 1 in the middle, and the same before the middle as after it.
        x = 2 * min(step - start, stop - step) / (stop - start)
        wave = x if shape == "triangular" else (1.0 - math.cos(math.pi * x)) / 2.0
        return 1.0 + (multiplier - 1.0) * wave

    return schedule


def cycle_ends(*, num_cycles: int, cycle_steps: int, growth: float = 1.0) -> tuple[int, ...]:
    """The last step of every cycle of `cyclic`, whose arguments and errors it has.

    >>> cycle_ends(num_cycles=3, cycle_steps=10), cycle_ends(num_cycles=3, cycle_steps=10, growth=2)
    ((10, 20, 30), (10, 30, 70))
    """
    num_cycles = check_whole("num_cycles", num_cycles, 0)
    cycle_steps = check_whole("cycle_steps", cycle_steps, 1)
    growth = check_in("growth", growth, "(0, inf)")
    # Multiply step by step: a power of floats that overflows raises, a product becomes infinite.
    lengths = itertools.accumulate(
        [growth] * (num_cycles - 1), operator.mul, initial=float(cycle_steps)
    )
    steps = [max(round(min(length, 2.0**31)), 1) for length in lengths][:num_cycles]
    return tuple(itertools.accumulate(steps))
