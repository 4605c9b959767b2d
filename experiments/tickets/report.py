"""Tables and plots of rounds and arms, over seeds."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.comparing.seeds import Stats, stats
from experiments.comparing.tables import difference_text, stats_text
from experiments.records import plots
from experiments.tickets.rounds import Row
from jaxsparse.survivors import Survivors
from jaxsparse.text_table import text_table

METRICS = ("val_accuracy", "test_accuracy", "best_val_accuracy", "best_test_accuracy")
HEADINGS = ("validation", "test", "best validation", "test at best")


def describe_plan(rows: Sequence[Survivors]) -> str:
    """Returns the table of densities before training; with scope "layer" those of each layer."""
    layers = list(rows[0].layers or ())
    lines = [["round", "density", "sparsity", "active", *layers]]
    for row in rows:
        counts = [f"{(row.layers or {})[path]:,}" for path in layers]
        density, sparsity = f"{row.density:.6f}", f"{100 * (1 - row.density):.4g} %"
        lines.append([str(row.round), density, sparsity, f"{row.num_active:,}", *counts])
    return "\n".join(text_table(lines, ">"))


def by_round(seeds: Iterable[Sequence[Row]]) -> list[dict[str, Any]]:
    """Returns a dict for each round: its density, and every metric over the seeds that have it."""
    found: dict[int, list[Row]] = {}
    for rows in seeds:
        for row in rows:
            found.setdefault(row.round, []).append(row)
    return [
        {
            "round": r,
            "density": rows[0].density,
            "num_active": rows[0].summary["num_active"],
            **metrics([row.summary for row in rows]),
        }
        for r, rows in sorted(found.items())
    ]


def metrics(summaries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns each accuracy over seeds, as {"mean", "sd", "n"}; None without validation images."""
    values = {name: [summary[name] for summary in summaries] for name in METRICS}
    return {
        name: None if None in found else stats(found)._asdict() for name, found in values.items()
    }


def describe_rounds(rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns the table of rounds: densities of the trained weights, accuracies in percent."""
    lines = [["round", "density", "active", *HEADINGS]]
    for row in rows:
        lines.append(
            [str(row["round"]), f"{row['density']:.6f}", f"{row['num_active']:,}", *cells(row)]
        )
    return "\n".join([*text_table(lines, ">"), "", "accuracy in %: mean ± sd (seeds)"])


def describe_arms(arms: Mapping[str, Mapping[str, Any]], *, heading: str = "parameters") -> str:
    """Returns the table of arms by name; `heading` says what their "num_params" counts."""
    lines = [["arm", heading, *HEADINGS]]
    lines += [[name, f"{arm['num_params']:,}", *cells(arm)] for name, arm in arms.items()]
    return "\n".join(text_table(lines))


def cells(row: Mapping[str, Any]) -> list[str]:
    """Returns the cells of the accuracies."""
    return [stats_text(Stats(**row[name]), name) if row[name] else "" for name in METRICS]


def describe_difference(found: Stats) -> str:
    """Returns a difference of accuracies with its standard error.

    >>> describe_difference(Stats(0.0025, 0.002, 4))
    '+0.25 ± 0.10 (4)'
    """
    return difference_text(found, "test_accuracy")


def plot_rounds(path: Path, rows: Sequence[Mapping[str, Any]], *, title: str, arm: str) -> None:
    """Draws the test accuracy at the end over sparsity, with the dense network as a line."""
    point = lambda row: (1 - row["density"], row["test_accuracy"]["mean"], _sd(row))
    (_, dense, sd), *tickets = map(point, rows)
    lines = {"dense": [(0.0, dense, sd)]} | ({arm: tickets} if tickets else {})
    plots.plot_sparsities(path, metric="test_accuracy", panels={title: lines})


def _sd(row: Mapping[str, Any]) -> float:
    return row["test_accuracy"]["sd"]
