"""Hyper-parameters that several methods share, checked once, with messages that name them."""

from jaxsparse.integers import whole_number
from jaxsparse.timetable import check_steps
from jaxsparse.types import OptionError


def check_sparsity(sparsity: float, name: str = "sparsity") -> float:
    """Returns `sparsity` if it lies in [0, 1), raises a ValueError otherwise.

    >>> check_sparsity(0.9)
    0.9
    """
    if not 0.0 <= sparsity < 1.0:
        raise OptionError(name, sparsity, "must be at least 0 and below 1")
    return float(sparsity)


def check_fraction(value: float, name: str) -> float:
    """Returns `value` if it lies in [0, 1], raises a ValueError otherwise."""
    if not 0.0 <= value <= 1.0:
        raise OptionError(name, value, "must be in [0, 1]")
    return float(value)


def check_window(start_step: int, stop_step: int, total_steps: int) -> tuple[int, int]:
    """Returns start and stop as Python's integers.

    Raises:
      ValueError: unless 0 <= start_step < stop_step <= total_steps, all of them integers.
    """
    total_steps, stop_step = check_steps(total_steps=total_steps, stop_step=stop_step)
    start = whole_number(start_step)
    if start is None:
        raise OptionError("start_step", start_step, "must be a whole number of steps, at least 0")
    if not 0 <= start < stop_step <= total_steps:
        raise ValueError(
            f"start_step {start} and stop_step {stop_step} must satisfy "
            f"0 <= start_step < stop_step <= total_steps {total_steps}"
        )
    return start, stop_step
