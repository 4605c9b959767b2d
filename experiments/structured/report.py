"""The table of all finished arms of a folder, over seeds."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from experiments.comparing.finished_runs import FinishedRun, find_runs
from experiments.comparing.seeds import (
    Group,
    flags_that_differ,
    group_runs,
    paired_difference,
    stats,
    stats_of,
)
from experiments.comparing.tables import difference_text, stats_text, written
from experiments.structured.arms import ARMS


class Column(NamedTuple):
    """A column of the table.

    Attributes:
      heading: its name.
      text: (a group, all groups) to the text of its cell; "" if the runs lack the number.
    """

    heading: str
    text: Callable[[Group, Sequence[Group]], str]


def _mean(name: str, digits: str) -> Callable[..., str]:
    return lambda group, groups: format(stats_of(group, name).mean, digits)


def _accuracy(name: str) -> Callable[..., str]:
    return lambda group, groups: stats_text(stats_of(group, name), name)


def _less_base(group: Group, groups: Sequence[Group]) -> str:
    """The difference to the base that the arm started from."""
    del groups
    of = lambda run: run.summary["test_accuracy"] - run.summary["base_test_accuracy"]
    return difference_text(stats([of(run) for run in group.runs]), "test_accuracy")


def _less_dense(group: Group, groups: Sequence[Group]) -> str:
    """The difference to the base that was trained on at full width for as many steps."""
    controls = [other for other in groups if other.method == "dense"]
    of_same = [c for c in controls if {**group.flags, **c.flags} == group.flags]
    if group.method == "dense" or not of_same:
        return ""
    found = paired_difference(group, of_same[0], "test_accuracy")
    return difference_text(found, "test_accuracy") if found else ""


def _milliseconds(group: Group, groups: Sequence[Group]) -> str:
    del groups
    if any("speedup" not in run.summary for run in group.runs):
        return ""
    names = ("step_seconds_before", "step_seconds")
    before, after = (1e3 * stats_of(group, name).mean for name in names)
    return f"{before:.3g} -> {after:.3g}"


COLUMNS = (
    Column("target", lambda group, groups: f"{target_of(group):g}"),
    Column("MACs", _mean("test_flops_ratio", ".3f")),
    Column("params", _mean("params_ratio", ".3f")),
    Column("base", _accuracy("base_test_accuracy")),
    Column("after", _accuracy("test_accuracy")),
    Column("less base", _less_base),
    Column("less dense", _less_dense),
    Column("ms a step", _milliseconds),
    Column("training", _mean("train_flops_ratio", ".2f")),
)
HEADING = """test accuracy in %, mean ± sd (n); differences by seed, mean ± standard error (n)
MACs, params: share that is left; training: FLOPs over those of the arm dense
ms a step: of training, at full width -> narrow"""


def target_of(group: Group) -> float:
    """Returns the share of the multiply-adds that was asked for; 1 for the control."""
    return group.runs[0].config.get("target", 1.0)


def finished_arms(out: Path) -> list[FinishedRun]:
    """Returns the finished arms under a folder, without bases and earlier parts of an arm.

    Raises:
      ValueError: there is none.
    """
    found = find_runs([out]).runs
    arms = [run for run in found if "base_test_accuracy" in run.summary and not _is_part(run)]
    if not arms:
        raise ValueError(f"no finished arm in {out}")
    return arms


def _is_part(run: FinishedRun) -> bool:
    return run.config.get("part") is not None


def describe(out: Path, *, markdown: bool = False) -> str:
    """Returns the table of a folder's finished arms, in the order of the table of arms."""
    groups, order = group_runs(finished_arms(out)), list(ARMS)
    groups.sort(key=lambda group: (-target_of(group), order.index(group.method)))
    lines = [["arm", *(column.heading for column in COLUMNS)]]
    for group in groups:
        cells = [column.text(group, groups) for column in COLUMNS]
        lines.append([_label(group, groups), *cells])
    heading = f"{groups[0].dataset}, {groups[0].model}: {HEADING}"
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
            asked, had = target_of(group), run.summary["test_flops_ratio"]
            if had > asked and not math.isclose(had, asked):
                lines.append(f"note: {run.path}: {had:.4f} of the multiply-adds are left")
    return lines
