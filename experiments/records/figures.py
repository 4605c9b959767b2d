"""The parts that all figures share: axes in a column, colours, legends, and axes of steps.

Figures are made with matplotlib's objects and saved to a file, so that nothing global changes and
no display is needed.
"""

import textwrap
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

Series = tuple[Sequence[float], Sequence[float]]  # steps, ascending, and the values there

WIDTH = 8.0  # inches
DPI = 150
# Colours of Okabe and Ito (2008), told apart with any colour vision, without the yellow, which is
# too pale for a line.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", "--", ":")  # tell lines apart beyond the colours, and in a grey print
MARKERS = "osD^vPX"
GREY = "#555555"
_LABEL, _NARROW_LABEL = 60, 30  # characters of a line in a legend: at most, in the least width


def stacked_axes(
    heights: Sequence[float], title: str, width: float = WIDTH
) -> tuple[Figure, list[Axes]]:
    """Returns a figure with one pair of axes below the other, of these heights in inches."""
    figure = Figure(figsize=(width, sum(heights) + 0.6), dpi=DPI, layout="constrained")
    grid = figure.add_gridspec(len(heights), 1, height_ratios=heights)
    figure.suptitle(textwrap.fill(title, 80), fontsize=12)
    all_axes = [figure.add_subplot(cell) for cell in grid]
    for axes in all_axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=9)
        axes.set_axisbelow(True)
        axes.grid(color="#dddddd", linewidth=0.6)
    return figure, all_axes


def match_steps(column: Sequence[Axes], all_series: Iterable[Series]) -> None:
    """Gives axes the steps from 0 to the last one; only the lowest have labels."""
    last = max([1, *(step for steps, _ in all_series for step in steps)])
    for axes in column:
        axes.set_xlim(-0.015 * last, 1.015 * last)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10], integer=True))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    for axes in column[:-1]:
        axes.tick_params(labelbottom=False)


def panels_with_legends(
    panels: Sequence[Collection[str]], height: float
) -> tuple[Figure, list[Axes]]:
    """Returns axes for panels with room for their legends: as high, and beside them as wide.

    Args:
      panels: the names in each legend.
      height: the least of a panel, in inches.
    """
    lines = [[line for name in names for line in _wrapped(name).splitlines()] for names in panels]
    heights = [max(height, 0.9 + 0.21 * len(found)) for found in lines]
    longest = max((len(line) for found in lines for line in found), default=0)
    return stacked_axes(heights, "", WIDTH + 0.07 * max(longest - _NARROW_LABEL, 0))


def _wrapped(name: str) -> str:
    return textwrap.fill(name, _LABEL, break_long_words=False, subsequent_indent="  ")


def legend_at_right(axes: Axes, title: str = "at the end") -> None:
    """Adds a legend to the right of axes that have a line; long names are wrapped."""
    if axes.get_lines():
        handles, names = axes.get_legend_handles_labels()
        legend = axes.legend(
            handles,
            [_wrapped(name) for name in names],
            loc="upper left",
            bbox_to_anchor=(1.01, 1.0),
            borderaxespad=0,
            frameon=False,
            fontsize=9,
            title=title,
            title_fontsize=9,
            alignment="left",
        )
        legend.get_title().set_color(GREY)


def style(index: int) -> tuple[str, str]:
    """Returns the colour and the dash of the line with this number."""
    return COLOURS[index % len(COLOURS)], DASHES[index // len(COLOURS) % len(DASHES)]


def percent(share: float) -> str:
    """Formats a share with up to three digits: 0.12345 is 12.3 %, 0.00012 is 0.012 %."""
    return f"{100 * share:.3g} %"


def save(figure: Figure, path_out: Path) -> None:
    """Writes a figure as PNG; its folder is created if missing."""
    path_out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path_out, format="png")
