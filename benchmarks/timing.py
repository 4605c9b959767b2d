"""Times two compiled functions in turn, and the baseline against itself as the control.

On a shared machine single timings differ by half, and two measurements of one program in a row by
some percent. So a claim is the ratio of two functions that are timed in interleaved pairs, as a
median with quartiles. Beside it is the ratio of the baseline to itself in the same run (A/A). A
ratio within the quartiles of this control is no difference.
"""

import os
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

Run = Callable[[], Any]
"""Does the work once and returns arrays to wait for."""


class Ratio(NamedTuple):
    """Median and quartiles of the ratio over pairs."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        """Such as "1.043 [1.021, 1.066]"."""
        return f"{self.median:.3f} [{self.low:.3f}, {self.high:.3f}]"


class Comparison(NamedTuple):
    """The result of `compare`.

    Attributes:
      seconds: median time of a call, of the function and of the baseline.
      ratio: function / baseline.
      control: baseline / baseline.
      pairs: number of pairs of each ratio.
    """

    seconds: tuple[float, float]
    ratio: Ratio
    control: Ratio
    pairs: int


def compare(function: Run, baseline: Run, *, pairs: int) -> Comparison:
    """Times two functions in interleaved pairs, with an A/A control between them.

    Args:
      function: timed against the baseline.
      baseline: what it is compared with.
      pairs: at least 1; use 200 or more for a difference of some percent.
    """
    for run in (function, baseline, function, baseline):
        seconds(run)
    times = np.array(
        [[seconds(run) for run in (baseline, function, baseline)] for _ in range(pairs)]
    )
    before, between, after = times.T
    # The control compares the two baselines before and after the function. They are swapped every
    # second time, so that neither of them is always the later one.
    turn = np.arange(pairs) % 2 == 0
    control = np.where(turn, before / after, after / before)
    against = np.where(turn, before, after)
    return Comparison(
        (float(np.median(between)), float(np.median(against))),
        _ratio(between / against),
        _ratio(control),
        pairs,
    )


def median_seconds(run: Run, *, times: int) -> float:
    """Median time of a call, after two calls that are not counted."""
    for _ in range(2):
        seconds(run)
    return float(np.median([seconds(run) for _ in range(times)]))


def seconds(run: Run) -> float:
    """Time of one call, until its results are computed."""
    start = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - start


def compile_with_time(
    function: Callable[..., Any], *args: Any, **options: Any
) -> tuple[Any, float]:
    """Returns the compiled function and the seconds of compiling, without tracing."""
    lowered = jax.jit(function, **options).lower(*args)
    start = time.perf_counter()
    compiled = lowered.compile()
    return compiled, time.perf_counter() - start


def machine() -> str:
    """A line that describes this machine, to print beside every number."""
    return f"jax {jax.__version__}, {jax.devices()[0].device_kind}, {os.cpu_count()} CPU cores"


def _ratio(values: np.ndarray) -> Ratio:
    low, median, high = np.percentile(values, [25, 50, 75])
    return Ratio(float(median), float(low), float(high))
