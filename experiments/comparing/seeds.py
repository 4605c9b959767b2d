"""Groups of runs that differ only in their seed, and their statistics."""

import json
import math
import statistics
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, TypeGuard

from experiments.comparing.finished_runs import FinishedRun, identity
from experiments.options.asked import is_as_asked
from experiments.options.cli import nearest
from experiments.options.schedules import SCHEDULES

METHOD_FLAGS = {option for entry in SCHEDULES.values() for option in entry.options}


class Group(NamedTuple):
    """Runs that differ only in their seed.

    Attributes:
      dataset: name of the data set.
      model: name of the model.
      method: its name on the command line.
      sparsity: the sparsity asked for, in [0, 1); 0 for dense. If the runs had another one, as with
        patterns in some layers, it is the mean of theirs.
      flags: every other flag that was given, without the seed. It has "sparsity", the one asked
        for, if the runs had another one.
      runs: the runs in the order of their seeds, at least one.
    """

    dataset: str
    model: str
    method: str
    sparsity: float
    flags: dict[str, Any]
    runs: tuple[FinishedRun, ...]


class Stats(NamedTuple):
    """Mean and sample standard deviation (n - 1) of n values; the latter is NaN for n = 1."""

    mean: float
    sd: float
    n: int

    @property
    def standard_error(self) -> float:
        """Standard error of the mean, sd / sqrt(n); NaN for n = 1."""
        return self.sd / math.sqrt(self.n)


def stats(values: Sequence[float]) -> Stats:
    """Returns the statistics of at least one value.

    >>> stats([1.0, 2.0, 3.0])
    Stats(mean=2.0, sd=1.0, n=3)
    >>> stats([0.5])
    Stats(mean=0.5, sd=nan, n=1)
    """
    sd = statistics.stdev(values) if len(values) > 1 else math.nan
    return Stats(statistics.fmean(values), sd, len(values))


def group_runs(runs: Iterable[FinishedRun]) -> list[Group]:
    """Groups the runs whose data set and flags, without the seed, are equal."""
    groups: dict[str, list[FinishedRun]] = {}
    for run in runs:
        groups.setdefault(identity(run, without=("seed",)), []).append(run)
    return [_group(members) for members in groups.values()]


def _group(runs: list[FinishedRun]) -> Group:
    config = runs[0].config
    method = config["schedule"]
    asked = 0.0 if method == "dense" else config["sparsity"]
    had = statistics.fmean(_sparsity(run, asked) for run in runs)
    other = not is_as_asked(had, asked)
    not_flags = {"model", "schedule", "seed", *(() if other else ("sparsity",))}
    return Group(
        dataset=runs[0].summary["dataset"],
        model=config["model"],
        method=method,
        sparsity=round(had, 4) if other else asked,
        flags={name: value for name, value in config.items() if name not in not_flags},
        runs=tuple(sorted(runs, key=lambda run: run.config["seed"])),
    )


def _sparsity(run: FinishedRun, asked: float) -> float:
    """The sparsity that a run had; with weight sharing, that of the network without sharing."""
    stored = run.summary.get("sparsity", asked)
    return (
        stored
        if run.config["schedule"] == "dense"
        else run.summary.get("unshared_sparsity", stored)
    )


def check_metric(metric: str, runs: Iterable[FinishedRun]) -> None:
    """Raises a ValueError with the nearest name if no run has a number of that name."""
    names = [name for run in runs for name, value in run.summary.items() if _is_number(value)]
    nearest(metric, dict.fromkeys(names), kind="metric")


def value_of(run: FinishedRun, metric: str) -> float:
    """Returns a number of the run's summary.

    Raises:
      ValueError: the number is missing or null; the run is named.
    """
    value = run.summary.get(metric)
    if not _is_number(value):
        was = "null" if metric in run.summary else "missing"
        raise ValueError(f"{metric} of {run.path} is {was}; leave the run out or pass --metric")
    return float(value)


def stats_of(group: Group, metric: str) -> Stats:
    """Returns the statistics of a metric over the runs of a group."""
    return stats([value_of(run, metric) for run in group.runs])


def partner(group: Group, groups: Iterable[Group], method: str) -> Group | None:
    """Returns the group of `method` that a group can be compared with; None if there is none.

    Data set, model, sparsity (dense has none) and flags must be equal. Options of methods may
    differ, as one method has options that another lacks, if that leaves a single group.

    Args:
      group: the group to compare.
      groups: the groups to look among.
      method: a name on the command line.
    """
    own = {*METHOD_FLAGS, "sparsity"}
    shared = lambda flags: {name: x for name, x in flags.items() if name not in own}
    sparsity = 0.0 if method == "dense" else group.sparsity
    sought = (group.dataset, group.model, method, sparsity, shared(group.flags))
    near = [other for other in groups if (*other[:4], shared(other.flags)) == sought]
    candidates = [other for other in near if other.flags == group.flags] or near
    return candidates[0] if len(candidates) == 1 else None


def paired_difference(group: Group, other: Group, metric: str) -> Stats | None:
    """Returns the statistics of group - other by seed; None if they have no seed in common.

    A seed gives every method the same initial weights and the same order of the data. So these
    differences vary less than those between runs of different seeds.
    """
    others = {run.config["seed"]: value_of(run, metric) for run in other.runs}
    differences = [
        value_of(run, metric) - others[run.config["seed"]]
        for run in group.runs
        if run.config["seed"] in others
    ]
    return stats(differences) if differences else None


def flags_that_differ(groups: Sequence[Group]) -> list[str]:
    """Returns the names of the flags, besides method and sparsity, in which the groups differ."""
    names = dict.fromkeys(name for group in groups for name in group.flags)
    values = lambda name: {json.dumps(g.flags.get(name), sort_keys=True) for g in groups}
    return [name for name in names if len(values(name)) > 1]


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)
