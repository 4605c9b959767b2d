"""The two timetables of the published methods: a density that is held, or one that follows a cubic.

Both lie on a grid of steps. Their options are checked here, once, with messages that name them.
"""

from fractions import Fraction
from typing import NamedTuple

from jaxsparse.checks import check_in, check_whole
from jaxsparse.schedules import cosine, cubic_sparsity, until
from jaxsparse.timetable import Timetable, check_steps, make_timetable
from jaxsparse.types import OptionError, StepSchedule


class Grid(NamedTuple):
    """The steps that may have an event: the multiples of `update_interval` from `start_step` on.

    Attributes:
      total_steps: length of the run.
      update_interval: steps between events.
      start_step: no event before it.
      stop_step: in (start_step, total_steps]; the end of a schedule.
    """

    total_steps: int
    update_interval: int
    start_step: int
    stop_step: int


def check_grid(
    total_steps: int,
    update_interval: int,
    start_step: int,
    stop_step: int | None = None,
    *,
    default_stop: Fraction = Fraction(1),
) -> Grid:
    """Returns the grid, its numbers as Python's integers.

    Args:
      total_steps: at least 1.
      update_interval: at least 1.
      start_step: at least 0.
      stop_step: None is the share `default_stop` of the run, rounded down, at least 1.
      default_stop: in (0, 1].

    Raises:
      ValueError: unless 0 <= start_step < stop_step <= total_steps, all of them whole numbers.

    >>> check_grid(100, 10, 0, None, default_stop=Fraction(3, 4)).stop_step
    75
    """
    total_steps, update_interval = check_steps(
        total_steps=total_steps, update_interval=update_interval
    )
    if stop_step is None:
        stop_step = max(int(total_steps * default_stop), 1)
    (stop_step,) = check_steps(stop_step=stop_step)
    start_step = check_whole("start_step", start_step, of="steps")
    if not 0 <= start_step < stop_step <= total_steps:
        raise ValueError(
            f"start_step {start_step} and stop_step {stop_step} must satisfy "
            f"0 <= start_step < stop_step <= total_steps {total_steps}"
        )
    return Grid(total_steps, update_interval, start_step, stop_step)


def exchange_timetable(
    sparsity: float, grid: Grid, drop_fraction: float, final_drop_fraction: float = 0.0
) -> Timetable:
    """Returns a timetable that holds the sparsity and exchanges weights before the stop step.

    Args:
      sparsity: in [0, 1).
      grid: steps of the events.
      drop_fraction: share of active weights that an event replaces, at step 0, in (0, 1].
      final_drop_fraction: the same at the stop step, to which it goes on a cosine, in [0, 1].

    Raises:
      ValueError: a number outside its range, or masks that would never change.
    """
    sparsity = check_in("sparsity", sparsity, "[0, 1)")
    drop_fraction = check_in("drop_fraction", drop_fraction, "[0, 1]")
    final_drop_fraction = check_in("final_drop_fraction", final_drop_fraction, "[0, 1]")
    _check_exchanges(drop_fraction, grid)
    share = cosine(drop_fraction, final_drop_fraction, grid.stop_step)
    return make_timetable(
        total_steps=grid.total_steps,
        update_interval=grid.update_interval,
        start_step=grid.start_step,
        initial_density=1.0 - sparsity,
        drop_fraction=until(share, grid.stop_step),
    )


def cubic_timetable(
    sparsity: float,
    grid: Grid,
    *,
    initial_sparsity: float,
    legacy_end: bool,
    drop_fraction: StepSchedule | None = None,
) -> Timetable:
    """Returns a timetable whose sparsity rises on `cubic_sparsity` up to the stop step.

    Args:
      sparsity: the final one, in [0, 1).
      grid: steps of the events.
      initial_sparsity: in [0, sparsity].
      legacy_end: leave out the cubic's last event.
      drop_fraction: share of active weights that an event replaces, to the end of the run; None
        replaces none.

    Raises:
      ValueError: a number outside its range, or a grid without an event that reaches `sparsity`.
    """
    sparsity = check_in("sparsity", sparsity, "[0, 1)")
    initial_sparsity = check_in("initial_sparsity", initial_sparsity, "[0, 1)")
    if initial_sparsity > sparsity:
        raise OptionError("initial_sparsity", initial_sparsity, f"is above sparsity {sparsity}")
    target = cubic_sparsity(
        initial_sparsity=initial_sparsity,
        sparsity=sparsity,
        start_step=grid.start_step,
        stop_step=grid.stop_step,
        update_interval=grid.update_interval,
        legacy_end=legacy_end,
    )
    return make_timetable(
        total_steps=grid.total_steps,
        update_interval=grid.update_interval,
        start_step=grid.start_step,
        initial_density=1.0 - initial_sparsity,
        density=lambda step: 1.0 - target(step),
        drop_fraction=drop_fraction,
    )


def _check_exchanges(drop_fraction: float, grid: Grid) -> None:
    """Refuses masks that would never change: a user who wants them has to ask for `static`."""
    if drop_fraction == 0:
        wrong = "replaces nothing, so the masks would never change"
        raise OptionError("drop_fraction", drop_fraction, wrong, "take static for that")
    earliest = max(grid.start_step, 1)
    first = -(-earliest // grid.update_interval) * grid.update_interval
    if first >= grid.stop_step:
        wrong = (
            f"has no multiple from start_step {grid.start_step} on and before step "
            f"{grid.stop_step}, so the masks would never change"
        )
        last = grid.stop_step - 1
        advice = f"take {last}, say, or static" if last >= earliest else "train longer"
        raise OptionError("update_interval", grid.update_interval, wrong, advice)
