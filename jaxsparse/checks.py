"""Checks of options; every message names the option, its value and its range in one wording."""

import math
from typing import Any

from jaxsparse.integers import whole_number
from jaxsparse.types import OptionError


def check_whole(
    name: str, value: Any, least: int | None = None, most: int | None = None, *, of: str = ""
) -> int:
    """Returns a whole number as Python's int.

    Args:
      name: name of the option.
      value: an integer of any type and width, but no bool, float or traced value.
      least: the smallest allowed value; None for no limit.
      most: the largest allowed value; None for no limit.
      of: what is counted, such as "steps", for the message.

    Raises:
      ValueError: the value is something else, or not in [least, most].

    >>> import numpy as np
    >>> check_whole("depth", np.uint8(34), 1)
    34
    >>> check_whole("total_steps", 0.5, 1, of="steps")
    Traceback (most recent call last):
    jaxsparse.types.OptionError: total_steps 0.5 must be a whole number of steps, at least 1
    """
    number = whole_number(value)
    low, high = (-math.inf if least is None else least), (math.inf if most is None else most)
    if number is None or not low <= number <= high:
        wrong = "must be a whole number" + (f" of {of}" if of else "")
        if least is not None and most is not None:
            wrong += f" in [{least}, {most}]"
        elif least is not None:
            wrong += f", at least {least}"
        elif most is not None:
            wrong += f", at most {most}"
        raise OptionError(name, value, wrong)
    return number


def check_in(name: str, value: Any, interval: str) -> float:
    """Returns a number in an interval, as Python's float.

    Args:
      name: name of the option.
      value: a number.
      interval: an interval as in mathematics. "[0, 1)" contains 0 but not 1; "(0, inf)" contains
        every finite number above 0.

    Raises:
      ValueError: the value is no number, is NaN, or is not in the interval.

    >>> check_in("sparsity", 0.9, "[0, 1)")
    0.9
    >>> check_in("sparsity", 1, "[0, 1)")
    Traceback (most recent call last):
    jaxsparse.types.OptionError: sparsity 1 must be in [0, 1)
    """
    low, high = (float(end) for end in interval[1:-1].split(","))
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    is_above = number >= low if interval[0] == "[" else number > low
    is_below = number <= high if interval[-1] == "]" else number < high
    if not (is_above and is_below):
        raise OptionError(name, value, f"must be in {interval}")
    return number
