"""Tables of groups of runs: a row for each method, a column for each sparsity."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from experiments.comparing.seeds import Group, Stats, flags_that_differ
from experiments.options.schedules import SCHEDULES
from jaxsparse.text_table import text_table


class Table(NamedTuple):
    """The groups of one data set and one model.

    Attributes:
      title: data set and model.
      rows: label to sparsity to group. A label is the method and the flags in which the groups of
        the table differ. Methods have the order of `SCHEDULES`, dense first; sparsities ascend.
    """

    title: str
    rows: dict[str, dict[float, Group]]


def make_tables(groups: Iterable[Group]) -> list[Table]:
    """Returns a table for each data set and model, in the order of their names."""
    blocks: dict[str, list[Group]] = {}
    for group in groups:
        blocks.setdefault(f"{group.dataset}, {group.model}", []).append(group)
    return [Table(title, _rows(blocks[title])) for title in sorted(blocks)]


def _rows(groups: Sequence[Group]) -> dict[str, dict[float, Group]]:
    differing = flags_that_differ(groups)
    order = list(SCHEDULES)

    def place(labelled: tuple[str, Group]) -> tuple[int, str, float]:
        label, group = labelled
        known = order.index(group.method) if group.method in order else len(order)
        return known, label, group.sparsity

    rows: dict[str, dict[float, Group]] = {}
    for label, group in sorted(((_label(g, differing), g) for g in groups), key=place):
        rows.setdefault(label, {})[group.sparsity] = group
    return rows


def _label(group: Group, flags: Sequence[str]) -> str:
    """The method, and those of the flags that it was given, with their values."""
    given = [f"{name}={group.flags[name]}" for name in flags if name in group.flags]
    return " ".join([group.method, *given])


def render(
    table: Table, cell: Callable[[Group], str], *, heading: str, markdown: bool = False
) -> str:
    """Writes a table as text, without rows and columns that would be empty.

    Args:
      table: the groups.
      cell: returns the text of a group's cell; "" leaves it empty.
      heading: says what the cells are.
      markdown: whether to write a table for a document rather than a terminal.

    Returns:
      Title, heading and lines; "" if all cells are empty.
    """
    texts = {
        label: {s: text for s, group in row.items() if (text := cell(group))}
        for label, row in table.rows.items()
    }
    if not any(texts.values()):
        return ""
    columns = sorted({sparsity for row in texts.values() for sparsity in row})
    lines = [["sparsity", *(percent(sparsity) for sparsity in columns)]]
    lines += [[label, *(row.get(s, "") for s in columns)] for label, row in texts.items() if row]
    return written(lines, heading=f"{table.title}: {heading}", markdown=markdown)


def written(lines: Sequence[Sequence[str]], *, heading: str, markdown: bool) -> str:
    """Writes lines of cells, the names of the columns first, for a terminal or a document.

    >>> print(written([["", "n"], ["rigl", "3"]], heading="runs", markdown=True))
    runs
    <BLANKLINE>
    |  | n |
    | --- | --- |
    | rigl | 3 |
    """
    if not markdown:
        return "\n".join([heading, *text_table(lines)])
    head, *body = lines
    rows = [head, ["---"] * len(head), *body]
    return "\n".join([heading, "", *("| " + " | ".join(row) + " |" for row in rows)])


def stats_text(stats: Stats, metric: str) -> str:
    """Writes mean, standard deviation and n; accuracies are in percent.

    >>> stats_text(Stats(0.8811, 0.0016, 3), "test_accuracy")
    '88.11 ± 0.16 (3)'
    >>> stats_text(Stats(0.3, math.nan, 1), "train_flops_ratio")
    '0.300 (1)'
    """
    mean = number_text(stats.mean, metric)
    spread = "" if math.isnan(stats.sd) else f" ± {number_text(stats.sd, metric)}"
    return f"{mean}{spread} ({stats.n})"


def difference_text(stats: Stats, metric: str) -> str:
    """Writes a mean difference with its sign, its standard error and n.

    >>> difference_text(Stats(0.0025, 0.002, 4), "test_accuracy")
    '+0.25 ± 0.10 (4)'
    """
    sign = "-" if stats.mean < 0 else "+"
    error = stats.standard_error
    spread = "" if math.isnan(error) else f" ± {number_text(error, metric)}"
    return f"{sign}{number_text(abs(stats.mean), metric)}{spread} ({stats.n})"


def number_text(value: float, metric: str) -> str:
    """Writes one number: accuracies in percent, ratios with 3 digits after the point.

    >>> [number_text(x, "steps_per_second") for x in (12345.6, 12.3456)]
    ['12,346', '12.35']
    """
    if is_accuracy(metric):
        return f"{100 * value:.2f}"
    if metric.endswith("_ratio"):
        return f"{value:.3f}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def is_accuracy(metric: str) -> bool:
    """Whether a metric is an accuracy, which is written in percent."""
    return metric.endswith("accuracy")


def percent(share: float) -> str:
    """Writes a sparsity: 0.999 is 99.9 %."""
    return f"{100 * share:.10g} %"
