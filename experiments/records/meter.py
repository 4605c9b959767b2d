"""Says whether reading images or computing is the limit of a run, and how fast it goes.

The loop waits in two places: for the next batch, and for the devices. If it waits for batches,
they come too slowly; if it never does, the devices are the limit. JAX hands steps to a device ahead
of time, so a loop must not run far ahead of it: it would drain the input, and then wait for both.
`follow` keeps it one step ahead.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax

Item = TypeVar("Item")

LEAST_SHARE = 0.05
"""Share of waiting above which input is the limit: to hand over a batch takes some time too."""


class Meter:
    """Measures the steps of a loop.

    Its time starts with the first batch that it is asked for. What comes before, such as to compile
    or to start workers, does not count.

    Args:
      batch_size: images of a step, over all processes.
      clock: returns seconds.
    """

    def __init__(self, batch_size: int, clock: Callable[[], float] = time.perf_counter):
        self._batch_size, self._clock = batch_size, clock
        self._steps, self._waited = 0, 0.0
        self._since: float | None = None  # the start of the measured time, without the pauses
        self._last = (0, 0.0, 0.0)  # steps, seconds of waiting and of all when `scalars` was called
        self._previous: Any = None

    def next(self, batches: Iterator[Item]) -> Item:
        """Returns the next batch; the time that it takes counts as waiting for input.

        Raises:
          StopIteration: there is none.
        """
        start = self._clock()
        if self._since is None:
            self._since = start
        batch = next(batches)
        self._waited += self._clock() - start
        self._steps += 1
        return batch

    def follow(self, arrays: Any) -> None:
        """Waits until the step before this one is done; call it with what each step returns."""
        jax.block_until_ready(self._previous)
        self._previous = arrays

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves out the time of the context, which is neither input nor compute."""
        start = self._clock()
        try:
            yield
        finally:
            if self._since is not None:
                self._since += self._clock() - start

    def scalars(self) -> dict[str, float]:
        """Returns what was measured since the last call, or since the start.

        Returns:
          "images_per_second", and "input_share" in [0, 1]: the share of the time that the loop
          waited for batches. Nothing if no time has passed.
        """
        now = (self._steps, self._waited, self._seconds())
        steps, waited, seconds = (new - old for new, old in zip(now, self._last, strict=True))
        self._last = now
        if seconds <= 0:
            return {}
        return {
            "images_per_second": steps * self._batch_size / seconds,
            "input_share": waited / seconds,
        }

    def __str__(self) -> str:
        """Such as "812 images a second; compute is the limit (waits for input 3 %)"."""
        seconds = self._seconds()
        if not seconds:
            return "no step was measured"
        share = self._waited / seconds
        limit = "input" if share > LEAST_SHARE else "compute"
        speed = self._steps * self._batch_size / seconds
        return (
            f"{speed:,.0f} images a second; {limit} is the limit (waits for input {share:.0%})"
        ).replace("%", " %")

    def _seconds(self) -> float:
        return 0.0 if self._since is None else self._clock() - self._since
