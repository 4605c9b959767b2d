"""Published tables beside ours: the same method at the same sparsity, and whether the two differ.

A table is a file of `published_tables/`, one JSON object:

    {"source": "...", "notes": [], "dataset": "mnist", "models": ["lenet_300_100"],
     "metric": "test_accuracy", "flags": {"sparse_init": null},
     "rows": [{"name": "static random", "schedule": "static", "flags": {"distribution": "uniform"},
               "spread": "sd", "n": 5, "percent": {"0.95": [96.68, 0.03]}}]}

A row stands beside our runs of its schedule that have its flags and those of the table; null is a
flag at its default. A row whose schedule is null has no counterpart here. Numbers are in percent,
as mean and spread. The spread is "sd", the standard deviation over runs, or "standard_error", that
of their mean, from which the standard deviation follows; null if it is unknown.
"""

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments.comparing.seeds import Group, Stats, stats_of
from experiments.options.cli import nearest

FOLDER = Path(__file__).parent / "published_tables"
NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))
LIMIT = 2.0
"""A difference of more joint standard deviations than this is marked."""


class PublishedStats(NamedTuple):
    """A published cell.

    Attributes:
      mean: of the metric, a share.
      sd: standard deviation over runs, a share; NaN if unknown.
      n: number of runs; None if unknown.
    """

    mean: float
    sd: float
    n: int | None


class PublishedRow(NamedTuple):
    """A row of a published table.

    Attributes:
      name: of the method there.
      schedule: our name of it; None if we lack it.
      flags: values that our runs must have to be the same; None is a flag at its default.
      cells: sparsity to numbers.
    """

    name: str
    schedule: str | None
    flags: dict[str, Any]
    cells: dict[float, PublishedStats]

    def is_of(self, group: Group) -> bool:
        """Whether a group of our runs has the row's method and flags."""
        flags = ((name, group.flags.get(name)) for name in self.flags)
        return self.schedule == group.method and all(self.flags[k] == v for k, v in flags)


class PublishedTable(NamedTuple):
    """A published table.

    Attributes:
      source: where it was read.
      notes: what else has to be known about the numbers.
      dataset: name of the data set.
      models: names of the models: the table's, then those that some of its rows may be of.
      metric: a number of summary.json.
      rows: in the order of the file.
    """

    source: str
    notes: tuple[str, ...]
    dataset: str
    models: tuple[str, ...]
    metric: str
    rows: tuple[PublishedRow, ...]


class Beside(NamedTuple):
    """One line of the comparison: a method at a sparsity, here and as published.

    Attributes:
      label: of the row in our table; the published name if we have no such run.
      sparsity: in [0, 1).
      ours: over seeds; None if we have no such run.
      theirs: as published; None if the table lacks it.
    """

    label: str
    sparsity: float
    ours: Stats | None
    theirs: PublishedStats | None

    @property
    def difference(self) -> float:
        """Our mean less theirs; NaN if one is missing."""
        if self.ours is None or self.theirs is None:
            return math.nan
        return self.ours.mean - self.theirs.mean

    @property
    def joint_sd(self) -> float:
        """The root of the sum of both variances over runs; NaN if one is unknown."""
        if self.ours is None or self.theirs is None:
            return math.nan
        return math.hypot(self.ours.sd, self.theirs.sd)

    @property
    def is_beyond(self) -> bool:
        """Whether the difference is above two joint standard deviations; not if they are unknown.

        >>> theirs = PublishedStats(0.966, 0.003, 5)
        >>> [Beside("static", 0.95, Stats(x, 0.004, 5), theirs).is_beyond for x in (0.9565, 0.955)]
        [False, True]
        """
        return abs(self.difference) > LIMIT * self.joint_sd


def read_published(name: str) -> PublishedTable:
    """Reads a table of `published_tables/` by its name.

    Raises:
      ValueError: there is no such table; names the nearest one.
    """
    nearest(name, NAMES, kind="published table")
    content = json.loads((FOLDER / f"{name}.json").read_text("utf-8"))
    shared, rows = content.pop("flags"), content.pop("rows")
    content |= {name: tuple(content[name]) for name in ("notes", "models")}
    return PublishedTable(**content, rows=tuple(_row(row, shared) for row in rows))


def _row(row: dict[str, Any], shared: dict[str, Any]) -> PublishedRow:
    n, spread = row["n"], row["spread"]
    if spread not in ("sd", "standard_error"):
        raise ValueError(f"row {row['name']}: spread {spread!r} must be sd or standard_error")
    factor = math.sqrt(n) if spread == "standard_error" else 1.0
    cells = {
        float(sparsity): PublishedStats(
            mean / 100, math.nan if sd is None else factor * sd / 100, n
        )
        for sparsity, (mean, sd) in row["percent"].items()
    }
    return PublishedRow(row["name"], row["schedule"], shared | row.get("flags", {}), cells)


def beside(
    published: PublishedTable, rows: dict[str, dict[float, Group]], *, missing: bool = True
) -> list[Beside]:
    """Returns our runs beside published numbers, and published numbers that have none of ours.

    Args:
      published: the table.
      rows: label to sparsity to group, as in `tables.Table`, of its data set and one of its models.
      missing: whether to add published numbers that none of our runs stands beside.

    Returns:
      A line for each of our groups, in their order, then those that only the published table has.
    """
    lines, found = [], set()
    for label, row in rows.items():
        for sparsity, group in row.items():
            cells = [(r.name, r.cells[sparsity]) for r in _rows_of(published, group, sparsity)]
            theirs = cells[0][1] if cells else None
            found.update((name, sparsity) for name, _ in cells)
            lines.append(Beside(label, sparsity, stats_of(group, published.metric), theirs))
    if not missing:
        return lines
    return lines + [
        Beside(f"({row.name})", sparsity, None, cell)
        for row in published.rows
        for sparsity, cell in row.cells.items()
        if (row.name, sparsity) not in found
    ]


def _rows_of(published: PublishedTable, group: Group, sparsity: float) -> list[PublishedRow]:
    return [row for row in published.rows if row.is_of(group) and sparsity in row.cells]


def lines_of(compared: Iterable[Beside]) -> list[Sequence[str]]:
    """Returns the cells of the table, the heading first; a row's label stands once."""
    lines: list[Sequence[str]] = [HEADING]
    last = ""
    for line in compared:
        same, last = line.label == last, line.label
        lines.append(("" if same else line.label, *_texts(line)))
    return lines


HEADING = ("", "sparsity", "ours", "published", "difference", "joint sd", "beyond two")


def _texts(line: Beside) -> tuple[str, ...]:
    difference, joint = line.difference, line.joint_sd
    unknown = "unknown" if line.ours and line.theirs else ""
    return (
        f"{100 * line.sparsity:.10g} %",
        _numbers(line.ours),
        _numbers(line.theirs),
        "" if math.isnan(difference) else f"{round(100 * difference, 2) + 0.0:+.2f}",  # no -0.00
        unknown if math.isnan(joint) else f"{100 * joint:.2f}",
        unknown if math.isnan(joint) else ("yes" if line.is_beyond else "no"),
    )


def _numbers(found: Stats | PublishedStats | None) -> str:
    """Writes mean, standard deviation and n in percent, as far as they are known.

    >>> _numbers(PublishedStats(0.984, math.nan, None)), _numbers(Stats(0.9668, 0.0003, 5))
    ('98.40', '96.68 ± 0.03 (5)')
    """
    if found is None:
        return ""
    sd = "" if math.isnan(found.sd) else f" ± {100 * found.sd:.2f}"
    return f"{100 * found.mean:.2f}{sd}" + ("" if found.n is None else f" ({found.n})")
