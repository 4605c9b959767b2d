"""A value over the steps of training: of one run, or of many methods, averaged over seeds."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from experiments.records.figures import (
    Series,
    legend_at_right,
    match_steps,
    panels_with_legends,
    percent,
    save,
    style,
)


class Curve(NamedTuple):
    """A value over training, averaged over runs.

    Attributes:
      steps: ascending; those that all runs have.
      means: the mean over runs at each step.
      sds: sample standard deviation, NaN for a single run.
      n: number of runs.
    """

    steps: tuple[int, ...]
    means: tuple[float, ...]
    sds: tuple[float, ...]
    n: int


def average(runs: Sequence[Series]) -> Curve:
    """Averages the values of at least one run, at the steps that all of them have.

    >>> average([([1, 2, 3], [1.0, 2.0, 3.0]), ([2, 3], [4.0, 7.0])])[:2]
    ((2, 3), (3.0, 5.0))
    """
    by_step = [dict(zip(*series, strict=True)) for series in runs]
    steps = sorted(set.intersection(*map(set, by_step)))
    values = np.array([[of[step] for step in steps] for of in by_step], float)
    sds = values.std(0, ddof=1) if len(runs) > 1 else np.full(len(steps), math.nan)
    return Curve(
        tuple(map(int, steps)), tuple(values.mean(0).tolist()), tuple(sds.tolist()), len(runs)
    )


def plot_curves(
    path_out: Path,
    *,
    metric: str,
    panels: Mapping[str, Mapping[str, Curve]],
    in_percent: bool = False,
) -> None:
    """Plots a value over training as PNG: a panel for each model, a line for each method.

    A band is one standard deviation to each side. The axis is logarithmic if no value is 0 or less,
    and linear for shares.

    Args:
      path_out: file to write; its folder is created if missing.
      metric: the name beside the axis.
      panels: title of the panel to name of the method to curve.
      in_percent: whether the values are shares.
    """
    figure, all_axes = panels_with_legends(list(panels.values()), 3.4)
    names = list(dict.fromkeys(name for curves in panels.values() for name in curves))
    for axes, (title, curves) in zip(all_axes, panels.items(), strict=True):
        axes.set_title(textwrap.fill(title, 80), fontsize=12)
        for name, curve in curves.items():
            _draw(axes, f"{name} ({curve.n})", curve, names.index(name))
        series = [(curve.steps, curve.means) for curve in curves.values()]
        match_steps([axes], series)
        axes.set_xlabel("optimizer step")
        axes.set_ylabel(metric.replace("_", " "))
        if in_percent:
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: percent(value)))
        else:
            _logarithmic(axes, [value for _, values in series for value in values])
        legend_at_right(axes, title="mean ± sd (n)")
    save(figure, path_out)


def draw_flow(axes: Axes, flow: Series) -> None:
    """Draws the gradient flow of one run; the legend has its value at the end."""
    steps, values = flow
    colour, _ = style(0)
    marker = "o" if len(values) <= 40 else ""
    axes.plot(steps, values, color=colour, marker=marker, ms=3, label=f"{values[-1]:.3g}")
    axes.set_ylabel("gradient flow")
    axes.set_xlabel("optimizer step")
    _logarithmic(axes, values)
    legend_at_right(axes)


def _draw(axes: Axes, label: str, curve: Curve, index: int) -> None:
    colour, dash = style(index)
    marker = "o" if len(curve.steps) <= 40 else ""
    means, sds = np.array(curve.means), np.array(curve.sds)
    axes.plot(curve.steps, means, color=colour, linestyle=dash, marker=marker, ms=3, label=label)
    if not np.isnan(sds).all():
        axes.fill_between(curve.steps, means - sds, means + sds, color=colour, alpha=0.15, lw=0)


def _logarithmic(axes: Axes, values: Sequence[float]) -> None:
    """Makes the axis logarithmic if all values are above 0; limits follow the values alone."""
    finite = [value for value in values if math.isfinite(value)]
    if finite and min(finite) > 0:
        axes.set_ylim(min(finite) / 1.6, max(finite) * 1.6)
        axes.set_yscale("log")
        if max(finite) < 30 * min(finite):  # too few decades for ticks at powers of ten alone
            axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
            axes.yaxis.set_minor_locator(MaxNLocator(nbins=1))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
