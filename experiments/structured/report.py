"""The table of all finished arms of a folder, over seeds."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from experiments.comparing.finished_runs import FinishedRun, find_runs
from experiments.comparing.seeds import Group, flags_that_differ, group_runs, stats, stats_of
from experiments.comparing.tables import difference_text, stats_text, written
from experiments.structured.arms import ARMS


class Column(NamedTuple):
    """A column of the table.

    Attributes:
      heading: its name.
      text: of a group's cell; "" if the runs lack the number.
    """

    heading: str
    text: Callable[[Group], str]


def _mean(name: str, digits: str) -> Callable[[Group], str]:
    return lambda group: format(stats_of(group, name).mean, digits)


def _accuracy(name: str) -> Callable[[Group], str]:
    return lambda group: stats_text(stats_of(group, name), name)


def _difference(group: Group) -> str:
    """The accuracy after less that before, by seed."""
    values = [
        run.summary["test_accuracy"] - run.summary["test_accuracy_base"] for run in group.runs
    ]
    return difference_text(stats(values), "test_accuracy")


def _seconds(group: Group) -> str:
    if any("speedup" not in run.summary for run in group.runs):
        return ""
    before, after = (
        1e3 * stats_of(group, name).mean for name in ("step_seconds_before", "step_seconds")
    )
    return f"{before:.3g} -> {after:.3g}"


COLUMNS = (
    Column("target", lambda group: f"{group.runs[0].config.get('target', 1.0):g}"),
    Column("MACs left", _mean("test_flops_ratio", ".3f")),
    Column("params left", _mean("params_ratio", ".3f")),
    Column("base", _accuracy("test_accuracy_base")),
    Column("after", _accuracy("test_accuracy")),
    Column("after less base", _difference),
    Column("ms a step", _seconds),
    Column("training FLOPs", _mean("train_flops_ratio", ".2f")),
)


def finished_arms(out: Path) -> list[FinishedRun]:
    """Returns the finished arms under a folder, without bases and earlier parts of an arm.

    Raises:
      ValueError: there is none.
    """
    found = find_runs([out]).runs
    arms = [run for run in found if "test_accuracy_base" in run.summary and not _is_part(run)]
    if not arms:
        raise ValueError(f"no finished arm in {out}")
    return arms


def _is_part(run: FinishedRun) -> bool:
    return run.config.get("part") is not None


def describe(out: Path, *, markdown: bool = False) -> str:
    """Returns the table of a folder's finished arms, in the order of the table of arms."""
    groups = group_runs(finished_arms(out))
    order = list(ARMS)
    groups.sort(
        key=lambda group: (group.runs[0].config.get("target", 1.0), order.index(group.method))
    )
    lines = [["arm", *(column.heading for column in COLUMNS)]]
    for group in groups:
        lines.append([_label(group, groups), *(column.text(group) for column in COLUMNS)])
    first = groups[0]
    heading = (
        f"{first.dataset}, {first.model}: test accuracy in %, mean ± sd (n); differences by seed, "
        "mean ± standard error; milliseconds of a training step at full width -> narrow"
    )
    return "\n".join([written(lines, heading=heading, markdown=markdown), *_notes(groups)])


def _label(group: Group, groups: Sequence[Group]) -> str:
    """The arm, and the flags in which it differs from others of its name, with their values."""
    names = flags_that_differ([other for other in groups if other.method == group.method])
    given = [f"{n}={group.flags[n]}" for n in names if n in group.flags and n != "target"]
    return " ".join([group.method, *given])


def _notes(groups: Sequence[Group]) -> list[str]:
    """Lines on arms that did not come where they should."""
    lines = []
    for group in groups:
        for run in group.runs:
            left = run.summary.get("unsettled_rows", 0)
            if left:
                lines.append(f"note: {run.path}: {left} masked rows have not come to 0 and stay")
            asked, had = run.config.get("target", 1.0), run.summary["test_flops_ratio"]
            if had > asked and not math.isclose(had, asked):
                lines.append(f"note: {run.path}: {had:.4f} of the multiply-adds are left")
    return lines
