"""Times several programs in turn, and finds the samples that other processes disturbed.

A sample is disturbed if other processes used the cores for a while. Their time is that of all
processes in /proc/stat minus that of this one. Every number is the median of the quiet samples,
with quartiles. If no sample was quiet, it is the median of all samples and has a question mark.

It needs the standard library only, so that any framework can be timed in the same way.
"""

import math
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

Run = Callable[[], object]
"""Does the work once, and returns when it is done."""

SAMPLE_SECONDS = 0.25  # calls of a sample; /proc/stat counts hundredths of a second
DISTURBED = 0.12  # cores


class Sample(NamedTuple):
    """Some calls in a row.

    Attributes:
      seconds: median time of a call.
      foreign: average number of cores that other processes used.
    """

    seconds: float
    foreign: float

    @property
    def is_quiet(self) -> bool:
        """Whether no other process disturbed it."""
        return self.foreign < DISTURBED


class Spread(NamedTuple):
    """Median and quartiles of the quiet samples.

    Attributes:
      median: of the quiet samples, or of all samples if none is quiet.
      low: quartile.
      high: quartile.
      num_quiet: samples, or pairs of samples, that were not disturbed.
    """

    median: float
    low: float
    high: float
    num_quiet: int

    def __str__(self) -> str:
        """Such as "12.3 [12.1, 12.6]", with a question mark if no sample was quiet."""
        digits = 1 if self.median >= 10 else 2 if self.median >= 1 else 3
        low, median, high = (f"{x:.{digits}f}" for x in (self.low, self.median, self.high))
        return f"{median} [{low}, {high}]{'' if self.num_quiet else '?'}"


def in_turn(
    runs: Mapping[str, Run], *, rounds: int, retries: int = 3, seconds: float = SAMPLE_SECONDS
) -> dict[str, list[Sample]]:
    """Takes one sample of each program per round, so that drifts of the machine affect all alike.

    Args:
      runs: the programs by name; each is called twice before its first sample.
      rounds: at least 1; every second round goes through the programs backwards.
      retries: number of times that a disturbed sample is repeated; the least disturbed one counts.
      seconds: time of the calls of a sample together; there is at least one call.
    """
    calls = {}
    for name, run in runs.items():
        _timed(run)
        calls[name] = max(math.ceil(seconds / max(_timed(run), 1e-9)), 1)
    samples: dict[str, list[Sample]] = {name: [] for name in runs}
    for number in range(rounds):
        for name in list(runs)[:: 1 if number % 2 == 0 else -1]:
            taken = [sample(runs[name], calls[name])]
            while not taken[-1].is_quiet and len(taken) <= retries:
                time.sleep(seconds)
                taken.append(sample(runs[name], calls[name]))
            samples[name].append(min(taken, key=lambda one: one.foreign))
    return samples


def sample(run: Run, calls: int) -> Sample:
    """Calls a program several times in a row."""
    busy, own, start = _busy_seconds(), time.process_time(), time.perf_counter()
    times = [_timed(run) for _ in range(calls)]
    wall = time.perf_counter() - start
    foreign = _busy_seconds() - busy - (time.process_time() - own)
    return Sample(statistics.median(times), foreign / wall)


def milliseconds(samples: Sequence[Sample]) -> Spread:
    """The time of a call."""
    return _spread([(1e3 * one.seconds, one.is_quiet) for one in samples])


def ratio(above: Sequence[Sample], below: Sequence[Sample]) -> Spread:
    """The ratio of two programs' times, over the pairs of samples of the same round."""
    return _spread(
        [
            (a.seconds / b.seconds, a.is_quiet and b.is_quiet)
            for a, b in zip(above, below, strict=True)
        ]
    )


def _spread(values: Sequence[tuple[float, bool]]) -> Spread:
    quiet = [value for value, is_quiet in values if is_quiet]
    counted = quiet or [value for value, _ in values]
    low, _, high = (
        statistics.quantiles(counted, n=4, method="inclusive") if len(counted) > 1 else counted * 3
    )
    return Spread(statistics.median(counted), low, high, len(quiet))


def _timed(run: Run) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _busy_seconds() -> float:
    """Busy seconds of all cores since the machine started; 0 if there is no /proc/stat."""
    try:
        first = Path("/proc/stat").read_text("ascii").partition("\n")[0]
    except OSError:
        return 0.0
    user, nice, system, _, _, irq, softirq, steal = (int(n) for n in first.split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
