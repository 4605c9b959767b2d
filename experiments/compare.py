"""The table and the plot of many runs: mean, standard deviation and n by method and sparsity.

    python experiments/compare.py runs/fashion_mnist
    python experiments/compare.py --against=rigl --markdown runs/fashion_mnist results/*.json
    python experiments/compare.py --published=mnist experiments/results/mnist

A RUN is the folder of a run, a folder that holds many of them, however deep, or the result file of
a finished run. Runs that differ only in their seed are averaged.
"""

import csv
import dataclasses
import math
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from experiments.comparing.finished_runs import FinishedRun, Found, find_runs
from experiments.comparing.over_training import check_record, curves_of
from experiments.comparing.published import PublishedTable, beside, lines_of, read_published
from experiments.comparing.seeds import (
    Group,
    Stats,
    check_metric,
    group_runs,
    paired_difference,
    partner,
    stats_of,
)
from experiments.comparing.tables import (
    Table,
    difference_text,
    is_accuracy,
    make_tables,
    number_text,
    render,
    stats_text,
    written,
)
from experiments.options import cli
from experiments.records import plots
from experiments.records.curves import plot_curves

RATIOS = ("train_flops_ratio", "test_flops_ratio")


@dataclasses.dataclass(frozen=True)
class Config:
    """Prints mean, standard deviation and n of runs by method and sparsity, and plots them."""

    runs: cli.Runs
    """Folders of runs, folders that hold many of them, and result files."""
    metric: str = "test_accuracy"
    """The number to compare: any of summary.json, such as best_test_accuracy or
    train_flops_ratio."""
    against: cli.OptionalStr = None
    """A method. Adds a table of the mean difference to it by seed, with its standard error."""
    published: cli.OptionalStr = None
    """A published table, a file of comparing/published_tables/. Adds a table of our numbers beside
    its numbers."""
    over_training: cli.OptionalStr = None
    """A record of metrics.jsonl, such as val_accuracy, train_loss or density, or gradient_flow.
    Adds a plot of it over the steps of training, over-NAME.png. Runs need their folders for it."""
    markdown: bool = False
    """Print tables in Markdown."""
    csv: cli.OptionalPath = None
    """File to write the numbers to, one line for each cell of the table."""
    out: cli.OptionalPath = None
    """Folder of the plot, compare-METRIC.png. Default: RUN if it is one folder that holds runs,
    else the current folder."""


def main(config: Config) -> None:
    """Prints the tables, and writes the plot and the numbers."""
    if not config.runs:
        raise ValueError("no RUN given: folders of runs, folders that hold them, or result files")
    found = find_runs(config.runs)
    for line in left_out(found):
        print(line, file=sys.stderr)
    check_metric(config.metric, found.runs)
    groups = group_runs(found.runs)
    if config.against is not None:
        cli.nearest(config.against, dict.fromkeys(g.method for g in groups), kind="method")
    if config.over_training is not None:
        check_record(config.over_training, found.runs)
    tables = make_tables(groups)
    published = None if config.published is None else published_of(config, tables)
    for table in tables:
        print("\n\n".join(texts(table, groups, config)), end="\n\n")
        if published and is_of(published, table):
            print(published_text(published, table, config), end="\n\n")
    print(provenance(found.runs))
    if config.csv is not None:
        write_csv(config.csv, tables, groups, config)
    path = folder_of_plot(config) / f"compare-{config.metric}.png"
    draw(path, tables, config.metric)
    print(f"plot: {path}", file=sys.stderr)
    if config.over_training is not None:
        path = folder_of_plot(config) / f"over-{config.over_training}.png"
        draw_over_training(path, tables, config.over_training)
        print(f"plot: {path}", file=sys.stderr)


def left_out(found: Found) -> list[str]:
    """Returns lines about runs that were found and do not count."""
    lines = [
        f"{second} has the flags of {first} and another test accuracy; left out"
        for first, second in found.conflicts
    ]
    if found.unfinished:
        lines.append(f"unfinished, left out: {', '.join(map(str, found.unfinished))}")
    return lines


def texts(table: Table, groups: Sequence[Group], config: Config) -> list[str]:
    """Returns the tables of the metric, of the differences to `--against`, and of the FLOPs."""
    metric, against = config.metric, config.against
    name = f"{metric}{' in %' if is_accuracy(metric) else ''}"

    def difference(group: Group) -> str:
        paired = difference_of(group, groups, config)
        return difference_text(paired, metric) if paired else ""

    def cost(group: Group) -> str:
        ratios = ratios_of(group)
        return " / ".join(number_text(ratios[name], name) for name in RATIOS) if ratios else ""

    tables = [
        (lambda group: stats_text(stats_of(group, metric), metric), f"{name}, mean ± sd (n)"),
        (cost, "FLOPs of training / of inference, dense = 1"),
    ]
    if against is not None:
        heading = f"{name} less that of {against} by seed, mean ± standard error (n)"
        tables.insert(1, (difference, heading))
    written = [render(table, cell, heading=h, markdown=config.markdown) for cell, h in tables]
    return [text for text in written if text]


def published_of(config: Config, tables: Sequence[Table]) -> PublishedTable:
    """Returns the table of `--published`.

    Raises:
      ValueError: there is no such table, or no run of its data set and model.
    """
    published = read_published(str(config.published))
    if not any(is_of(published, table) for table in tables):
        have = "; ".join(table.title for table in tables)
        raise ValueError(
            f"--published={config.published} has {published.dataset}, "
            f"{' or '.join(published.models)}; the runs are of {have}"
        )
    return published


def is_of(published: PublishedTable, table: Table) -> bool:
    """Whether both are of the same data set and model."""
    return table.title in [f"{published.dataset}, {model}" for model in published.models]


def published_text(published: PublishedTable, table: Table, config: Config) -> str:
    """Returns our numbers beside published ones, and where those come from."""
    heading = (
        f"{table.title}: {published.metric} in %, mean ± sd (n), ours beside published; the joint "
        f"sd is the root of the sum of both variances"
    )
    is_its_own = table.title == f"{published.dataset}, {published.models[0]}"
    text = written(
        lines_of(beside(published, table.rows, missing=is_its_own)),
        heading=heading,
        markdown=config.markdown,
    )
    return "\n".join([text, "", f"published: {published.source}", *published.notes])


def difference_of(group: Group, groups: Sequence[Group], config: Config) -> Stats | None:
    """Returns the difference to the method of `--against`; None if it has no group to compare."""
    if config.against is None or group.method == config.against:
        return None
    other = partner(group, groups, config.against)
    return paired_difference(group, other, config.metric) if other else None


def ratios_of(group: Group) -> dict[str, float]:
    """Returns mean FLOPs over those of the dense network; empty if a run has none."""
    if any(name not in run.summary for run in group.runs for name in RATIOS):
        return {}
    return {name: stats_of(group, name).mean for name in RATIOS}


def provenance(runs: Sequence[FinishedRun]) -> str:
    """Returns devices, JAX versions, commits and machines of the runs, as far as they are known."""
    of = {
        "device": [run.summary.get("device") for run in runs],
        "jax": [run.summary.get("jax") for run in runs],
        "commit": [run.commit for run in runs],
        "machine": [run.machine for run in runs],
    }
    known = {name: sorted({str(value) for value in values if value}) for name, values in of.items()}
    return "; ".join(f"{name}: {', '.join(values)}" for name, values in known.items() if values)


def write_csv(path: Path, tables: Iterable[Table], groups: Sequence[Group], config: Config) -> None:
    """Writes one line for each cell, with all digits; a number that is not known is empty."""
    rows = []
    for table in tables:
        for label, row in table.rows.items():
            rows += [{"row": label} | csv_row(group, groups, config) for group in row.values()]
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def csv_row(group: Group, groups: Sequence[Group], config: Config) -> dict[str, object]:
    """Returns the numbers of one cell by column."""
    known = lambda value: "" if value is None or math.isnan(value) else value
    stats = stats_of(group, config.metric)
    row: dict[str, object] = {
        **{name: getattr(group, name) for name in ("dataset", "model", "method", "sparsity")},
        "metric": config.metric,
        "n": stats.n,
        "mean": stats.mean,
        "sd": known(stats.sd),
        "seeds": " ".join(str(run.config["seed"]) for run in group.runs),
        **(ratios_of(group) or dict.fromkeys(RATIOS, "")),
    }
    if config.against is not None:
        paired = difference_of(group, groups, config)
        row |= {
            "difference": paired.mean if paired else "",
            "standard_error": known(paired.standard_error) if paired else "",
            "pairs": paired.n if paired else 0,
        }
    return row


def folder_of_plot(config: Config) -> Path:
    """Returns the folder of the plot."""
    if config.out is not None:
        return config.out
    first, *others = config.runs
    holds_many = first.is_dir() and not (first / "config.json").exists()
    return first if holds_many and not others else Path()


def draw(path: Path, tables: Iterable[Table], metric: str) -> None:
    """Plots the metric over sparsity, a panel for each table."""
    panels = {
        table.title: {
            label: [(sparsity, *stats_of(group, metric)[:2]) for sparsity, group in row.items()]
            for label, row in table.rows.items()
        }
        for table in tables
    }
    plots.plot_sparsities(path, metric=metric, panels=panels, in_percent=is_accuracy(metric))


def draw_over_training(path: Path, tables: Iterable[Table], name: str) -> None:
    """Plots a record over training, a panel for each table."""
    in_percent = is_accuracy(name) or name == "density"
    plot_curves(path, metric=name, panels=curves_of(tables, name), in_percent=in_percent)


if __name__ == "__main__":
    sys.exit(cli.run(main, Config, sys.argv[1:]))
