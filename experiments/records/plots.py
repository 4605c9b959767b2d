"""Plots of runs: accuracy and density over steps, density per layer, many runs by sparsity.

Figures are made with matplotlib's objects and saved to a file, so that nothing global changes and
no display is needed.
"""

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from experiments.records.curves import draw_flow
from experiments.records.figures import (
    COLOURS,
    GREY,
    MARKERS,
    Series,
    legend_at_right,
    match_steps,
    panels_with_legends,
    percent,
    save,
    stacked_axes,
    style,
)
from jaxsparse.text_table import text_table

# (sparsity, mean, standard deviation); the last is NaN if it is not known
Points = Sequence[tuple[float, float, float]]

LOG_BELOW = 0.1  # a density under this lies on the floor of a linear axis


def plot_run(
    path_out: Path,
    *,
    title: str,
    accuracy: Mapping[str, Series],
    density: Series,
    layers: Mapping[str, tuple[int, int]],
    flow: Series = ((), ()),
) -> None:
    """Plots one run as PNG.

    Args:
      path_out: file to write; its folder is created if missing.
      title: line above the plot; a long one is wrapped.
      accuracy: accuracies in [0, 1] over steps by name, such as "training" and "validation". NaN
        leaves a gap; an empty series gives a name without a line.
      density: active / prunable of the whole network over steps, in [0, 1]; each value holds
        until the next step. The axis is logarithmic if a value lies under 0.1.
      layers: number of active weights and size of each prunable layer at the end of the run by
        path, drawn from top to bottom.
      flow: gradient flow over steps; an empty series leaves out its axes.

    Raises:
      ValueError: a layer has size 0, or more active weights than that; or `steps` and `values`
        differ in length.
    """
    for name, (num_active, size) in layers.items():
        if not 0 <= num_active <= size or size == 0:
            raise ValueError(f"layer {name}: {num_active} of {size} active, expected 0 to size")
    heights = (2.6, 1.9, *((1.9,) if flow[1] else ()), 0.55 + 0.24 * max(len(layers), 1))
    figure, (top, middle, *more, bottom) = stacked_axes(heights, title)
    _draw_accuracy(top, accuracy)
    _draw_density(middle, {"": density})
    for axes in more:
        middle.set_xlabel("")
        draw_flow(axes, flow)
    match_steps((top, middle, *more), [*accuracy.values(), density, flow])
    _draw_layers(bottom, layers)
    save(figure, path_out)


def plot_comparison(
    path_out: Path,
    *,
    title: str,
    accuracy: Mapping[str, Series],
    density: Mapping[str, Series],
) -> None:
    """Plots accuracy and density of several runs over steps as PNG.

    Args:
      path_out: file to write; its folder is created if missing.
      title: line above the plot; a long one is wrapped.
      accuracy: validation accuracy in [0, 1] over steps by name of the run.
      density: density in [0, 1] over steps by the same names, as in `plot_run`.

    Raises:
      ValueError: `accuracy` and `density` have different names, or `steps` and `values` differ in
        length.
    """
    if set(accuracy) != set(density):
        raise ValueError(f"density has the runs {list(density)}, expected {list(accuracy)}")
    figure, (top, bottom) = stacked_axes((3.2, 2.4), title)
    _draw_accuracy(top, accuracy)
    top.set_ylabel("validation accuracy")
    _draw_density(bottom, {name: density[name] for name in accuracy})
    match_steps((top, bottom), [*accuracy.values(), *density.values()])
    save(figure, path_out)


def plot_sparsities(
    path_out: Path,
    *,
    metric: str,
    panels: Mapping[str, Mapping[str, Points]],
    in_percent: bool = True,
) -> None:
    """Plots a metric with its standard deviation over sparsity as PNG, a panel for each model.

    The axis is logarithmic in the density and runs from dense to sparse. A method with sparsity 0
    alone, the dense network, is a line across the panel, with its standard deviation as a band.

    Args:
      path_out: file to write; its folder is created if missing.
      metric: the name beside the axis.
      panels: title of the panel to name of the method to points, by ascending sparsity in [0, 1).
        A method looks the same in all panels.
      in_percent: whether the values are shares, which are written in percent.
    """
    figure, all_axes = panels_with_legends(list(panels.values()), 3.6)
    names = list(dict.fromkeys(name for methods in panels.values() for name in methods))
    for axes, (title, methods) in zip(all_axes, panels.items(), strict=True):
        axes.set_title(textwrap.fill(title, 80), fontsize=12)
        for name, points in methods.items():
            _draw_points(axes, name, points, names.index(name))
        _label_sparsities(axes, {s for points in methods.values() for s, _, _ in points} - {0.0})
        if in_percent:
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: percent(value)))
            axes.set_ylim(bottom=max(axes.get_ylim()[0], 0.0))  # mean - sd may lie below 0
        axes.set_ylabel(metric.replace("_", " "))
        legend_at_right(axes, title="mean ± sd")
    save(figure, path_out)


def _draw_points(axes: Axes, name: str, points: Points, index: int) -> None:
    sparsities, means, sds = zip(*points, strict=True)
    colour, dash = style(index)
    if sparsities == (0.0,):
        axes.axhline(means[0], color=GREY, linestyle="--", label=name)
        if not math.isnan(sds[0]):
            axes.axhspan(means[0] - sds[0], means[0] + sds[0], color=GREY, alpha=0.15, linewidth=0)
        return
    axes.errorbar(
        [1.0 - sparsity for sparsity in sparsities],
        means,
        yerr=sds,
        color=colour,
        linestyle=dash,
        marker=MARKERS[index % len(MARKERS)],
        ms=4,
        capsize=3,
        label=name,
    )


def _label_sparsities(axes: Axes, sparsities: Iterable[float]) -> None:
    """Puts a tick at each sparsity whose label fits, the highest sparsity first."""
    axes.set_xlabel("sparsity (density on a logarithmic axis)")
    densities = sorted(1.0 - sparsity for sparsity in sparsities)
    if not densities:
        axes.set_xticks([])
        return
    low, high = densities[0] / 1.3, densities[-1] * 1.3
    axes.set_xlim(high, low)  # before the scale, for which a single density gives no limits
    axes.set_xscale("log")
    label = lambda density: f"{100 * (1.0 - density):.6g} %"
    ticks = densities[:1]
    for density in densities[1:]:
        width = 0.02 * len(label(density))  # of the axis
        if math.log(density / ticks[-1]) > max(width, 0.1) * math.log(high / low):
            ticks.append(density)
    axes.set_xticks(ticks, [label(density) for density in ticks])
    axes.xaxis.set_minor_locator(NullLocator())


def _draw_accuracy(axes: Axes, accuracy: Mapping[str, Series]) -> None:
    for index, (name, (steps, values)) in enumerate(accuracy.items()):
        label = f"{name}: {100 * values[-1]:.1f} %" if len(values) else f"{name}: no value"
        marker = "o" if len(values) <= 40 else ""  # a single value makes no line
        colour, dash = style(index)
        axes.plot(steps, values, color=colour, linestyle=dash, marker=marker, ms=3, label=label)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: percent(value)))
    axes.set_ylabel("accuracy")
    legend_at_right(axes)


def _draw_density(axes: Axes, density: Mapping[str, Series]) -> None:
    """Draws each value up to the next step; the legend shows a name unless it is empty."""
    for index, (name, (steps, values)) in enumerate(density.items()):
        end = percent(values[-1]) if len(values) else "no value"
        marker = "o" if len(values) == 1 else ""
        colour, dash = style(index)
        (line,) = axes.plot(steps, values, color=colour, linestyle=dash, marker=marker, ms=3)
        line.set(drawstyle="steps-post", label=f"{name}: {end}" if name else end)
    positive = [value for _, values in density.values() for value in values if value > 0]
    if positive and min(positive) < LOG_BELOW:
        # Limits before the scale, for which a constant density gives none.
        axes.set_ylim(min(positive) / 1.6, 1.3)
        axes.set_yscale("log", nonpositive="mask")
        # Labels of 2 and 5 do not fit if there are more than three decades.
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if min(positive) > 1e-3 else (1,)))
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        axes.set_ylim(0, 1.06)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: percent(value)))
    axes.set_ylabel("density")
    axes.set_xlabel("optimizer step")
    legend_at_right(axes)


def _draw_layers(axes: Axes, layers: Mapping[str, tuple[int, int]]) -> None:
    """Draws one bar per layer, with a table of its numbers to the right of the bars."""
    table = [["density", "active", "size"]]
    for row, (num_active, size) in enumerate(layers.values()):
        density = num_active / size
        axes.barh(row, 1, height=0.62, color="#eeeeee")
        axes.barh(row, density, height=0.62, color=COLOURS[0])
        table.append([percent(density), f"{num_active:,}", f"{size:,}"])
    # The heading stands above the first bar.
    for row, line in enumerate(text_table(table, ">>>"), start=-1):
        axes.text(1.01, row, line, va="center", fontsize=8, family="monospace", color=GREY)
    axes.set_yticks(range(len(layers)), [_shorten(name) for name in layers])
    axes.set_ylim(max(len(layers), 1) - 0.5, -0.5)
    axes.set_xlim(0, 1)
    axes.grid(visible=False)
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: percent(value)))
    axes.set_xlabel("density per layer at the end")


def _shorten(path: str) -> str:
    """Cuts the middle out of a long path; its ends tell layers apart."""
    return path if len(path) <= 40 else f"{path[:14]}…{path[-25:]}"
