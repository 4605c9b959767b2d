"""Table and figures of a study of pruning plasticity, averaged over seeds."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

from experiments.records.figures import (
    COLOURS,
    GREY,
    MARKERS,
    legend_at_right,
    percent,
    save,
    stacked_axes,
)
from jaxsparse.studies import Cell, Plasticity
from jaxsparse.text_table import text_table

Results = dict[Cell, list[Plasticity]]
"""The results of each cell, one a seed."""


def by_cell(studies: Iterable[Sequence[Plasticity]]) -> Results:
    """Groups the results of several seeds by cell, in the order of the first."""
    found: Results = {}
    for results in studies:
        for result in results:
            found.setdefault(result.cell, []).append(result)
    return found


def table(results: Results) -> str:
    """Returns a line for each cell: means in percent, and the standard deviation of the last."""
    names = ("acc_pre", "acc_pruned", "acc_after", "control_after", "plasticity")
    names += ("plasticity_vs_control", "recovery", "final_gap")
    heading = ["step", "lr", "scope", "regrown", "rate", *names, "sd of vs control", "n"]
    rows = [[h.replace("plasticity_vs_", "vs ").replace("acc_", "") for h in heading]]
    for cell, found in results.items():
        grown = "yes" if cell.regenerate else "no"
        row = [str(cell.checkpoint), cell.learning_rate, cell.scope, grown, f"{cell.rate:g}"]
        for name in names:
            row.append(_number(np.mean([getattr(result, name) for result in found])))
        differences = [result.plasticity_vs_control for result in found]
        spread = np.std(differences, ddof=1) if len(found) > 1 else np.nan
        rows.append([*row, _number(spread), str(len(found))])
    keep = [i for i in range(len(rows[0])) if any(row[i] for row in rows[1:])]
    return "\n".join(text_table([[row[i] for i in keep] for row in rows], ">"))


def draw_over_training(path: Path, results: Results, title: str) -> None:
    """Plots plasticity over the step of the pruning: a panel for each scope, a line for each rate.

    Regrown networks are dashed; the grey line is the control, training on without pruning.
    """
    rates = list(dict.fromkeys(cell.rate for cell in results))

    def line_of(cell: Cell) -> tuple[str, dict[str, Any]]:
        label = f"{percent(cell.rate)}{', regrown' if cell.regenerate else ''}"
        return label, _looks(rates.index(cell.rate), dashed=cell.regenerate)

    panel_of = lambda cell: f"{cell.scope}, learning rate {_RATES[cell.learning_rate]}"
    _draw(path, results, title, "pruned at step", lambda c: c.checkpoint, panel_of, line_of)


def draw_over_rates(path: Path, results: Results, title: str) -> None:
    """Plots plasticity over the pruning rate: a panel for each step at which it was pruned."""
    scopes = list(dict.fromkeys(cell.scope for cell in results))

    def line_of(cell: Cell) -> tuple[str, dict[str, Any]]:
        label = f"{cell.scope}{', regrown' if cell.regenerate else ''}"
        return label, _looks(scopes.index(cell.scope), dashed=cell.regenerate)

    panel_of = lambda cell: (
        f"pruned at step {cell.checkpoint:,}, learning rate {_RATES[cell.learning_rate]}"
    )
    _draw(path, results, title, "pruning rate", lambda c: c.rate, panel_of, line_of)


_RATES = {"frozen": "frozen", "schedule": "by its schedule"}


def _draw(
    path: Path,
    results: Results,
    title: str,
    label: str,
    place_of: Callable[[Cell], Any],
    panel_of: Callable[[Cell], str],
    line_of: Callable[[Cell], tuple[str, dict[str, Any]]],
) -> None:
    panels = list(dict.fromkeys(map(panel_of, results)))
    figure, all_axes = stacked_axes((2.8,) * len(panels), title)
    for axes, panel in zip(all_axes, panels, strict=True):
        cells = {cell: found for cell, found in results.items() if panel_of(cell) == panel}
        axes.set_title(panel, fontsize=10)
        control: dict[Any, list[float]] = {}
        lines: dict[str, tuple[dict[str, Any], dict[Any, list[float]]]] = {}
        for cell, found in cells.items():
            name, looks = line_of(cell)
            points = lines.setdefault(name, (looks, {}))[1]
            points[place_of(cell)] = [result.plasticity for result in found]
            control[place_of(cell)] = [r.control_after - r.acc_pre for r in found]
        _line(axes, "not pruned", control, {"color": GREY, "linewidth": 1})
        for name, (looks, points) in lines.items():
            _line(axes, name, points, looks)
        axes.axhline(0.0, color=GREY, linewidth=0.5)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: percent(value)))
        axes.set_ylabel("plasticity")
        axes.set_xlabel(label)
        legend_at_right(axes, title="mean ± sd")
    save(figure, path)


def _line(axes: Axes, label: str, points: dict[Any, list[float]], looks: dict[str, Any]) -> None:
    places = sorted(points)
    means = [float(np.mean(points[x])) for x in places]
    sds = [float(np.std(points[x], ddof=1)) if len(points[x]) > 1 else 0.0 for x in places]
    axes.errorbar(places, means, yerr=sds, label=label, ms=4, capsize=3, **looks)


def _looks(index: int, *, dashed: bool) -> dict[str, Any]:
    return {
        "color": COLOURS[index % len(COLOURS)],
        "marker": MARKERS[index % len(MARKERS)],
        "linestyle": "--" if dashed else "-",
    }


def _number(share: Any) -> str:
    return "" if np.isnan(share) else f"{100 * share:.2f}"
