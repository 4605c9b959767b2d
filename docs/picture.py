"""Draws the picture of the README: test accuracy over sparsity, from the results of the sweeps.

    python docs/picture.py

Reads experiments/results/, draws two panels and writes each as SVG twice, for light and for dark
pages: docs/accuracy-light.svg and docs/accuracy-dark.svg. A point is the mean of the seeds, a bar
one standard deviation on either side.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from experiments.comparing.finished_runs import find_runs
from experiments.comparing.seeds import Group, Stats, group_runs, stats_of

ROOT = Path(__file__).resolve().parent.parent
PARTS_OF_EAST = ("cycles", "dyrelu", "weight_sharing")  # flags of runs without one of them
MARKERS = {"gmp": "^", "granet_st": "s", "east": "D", "rigl": "o", "static": "X"}


class Panel(NamedTuple):
    """One network: where its results are, and what is drawn of them."""

    folder: str
    model: str
    title: str
    methods: tuple[str, ...]
    lowest: float  # accuracy in percent at the foot of the axis


class Theme(NamedTuple):
    """Colours of a page. The lines are Okabe and Ito's, lighter on dark ground."""

    text: str
    grid: str
    lines: dict[str, str]


PANELS = (
    Panel(
        "fashion_mnist",
        "lenet_300_100",
        "LeNet-300-100, Fashion-MNIST (n = 5)",
        ("gmp", "granet_st", "rigl", "static"),
        82.0,
    ),
    Panel(
        "extreme",
        "resnet34_narrow",
        "narrow ResNet-34, CIFAR-10, 10 epochs (n = 3)",
        ("granet_st", "east", "rigl", "static"),
        5.0,
    ),
)
THEMES = {
    "light": Theme(
        text="#1f2328",
        grid="#d1d9e0",
        lines={
            "gmp": "#CC79A7",
            "granet_st": "#009E73",
            "east": "#D55E00",
            "rigl": "#0072B2",
            "static": "#6e7781",
        },
    ),
    "dark": Theme(
        text="#e6edf3",
        grid="#30363d",
        lines={
            "gmp": "#E6A4C8",
            "granet_st": "#2BC79A",
            "east": "#FF8A3D",
            "rigl": "#56B4E9",
            "static": "#9198a1",
        },
    ),
}


def points(panel: Panel) -> dict[str, list[tuple[float, Stats]]]:
    """Returns (sparsity, statistics in percent) by method, by ascending sparsity."""
    runs = find_runs([ROOT / "experiments" / "results" / panel.folder]).runs
    found: dict[str, list[tuple[float, Stats]]] = {}
    for group in sorted(group_runs(runs), key=lambda group: group.sparsity):
        if group.model == panel.model and _is_whole(group):
            mean, sd, n = stats_of(group, "test_accuracy")
            found.setdefault(group.method, []).append(
                (group.sparsity, Stats(100 * mean, 100 * sd, n))
            )
    return found


def _is_whole(group: Group) -> bool:
    """Whether the run has all parts of its method: the sweep also leaves out parts of EAST."""
    return all(group.flags.get(flag) is None for flag in PARTS_OF_EAST)


def draw(path: Path, theme: Theme) -> None:
    """Writes both panels as one SVG with a transparent ground."""
    settings: dict[Any, Any] = {
        "svg.hashsalt": "jaxsparse",
        "font.size": 9,
        "text.color": theme.text,
    }
    for name in ("axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"):
        settings[name] = theme.text
    with mpl.rc_context(settings):
        figure = Figure(figsize=(8.6, 3.4), layout="constrained")
        for axes, panel in zip(figure.subplots(1, len(PANELS)), PANELS, strict=True):
            draw_panel(axes, panel, points(panel), theme)
        figure.savefig(path, format="svg", transparent=True, metadata={"Date": None})


def draw_panel(
    axes: Axes, panel: Panel, found: dict[str, list[tuple[float, Stats]]], theme: Theme
) -> None:
    """Draws accuracy over density, on a logarithmic axis that runs from dense to sparse."""
    axes.set_title(panel.title, fontsize=9.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color=theme.grid, linewidth=0.7)
    axes.set_axisbelow(True)
    if "dense" in found:
        ((_, dense),) = found["dense"]
        axes.axhline(dense.mean, color=theme.text, linestyle="--", linewidth=1, label="dense")
    for method in panel.methods:
        sparsities, all_stats = zip(*found[method], strict=True)
        axes.errorbar(
            [1.0 - sparsity for sparsity in sparsities],
            [stats.mean for stats in all_stats],
            yerr=[stats.sd for stats in all_stats],
            color=theme.lines[method],
            marker=MARKERS[method],
            markersize=5,
            linewidth=1.6,
            capsize=3,
            label=method,
        )
    _label(axes, sorted({s for method in panel.methods for s, _ in found[method]}))
    axes.set_ylim(bottom=panel.lowest)
    axes.set_ylabel("test accuracy, %")
    axes.legend(loc="lower left", frameon=False)


def _label(axes: Axes, sparsities: Sequence[float]) -> None:
    axes.set_xscale("log")
    axes.set_xlim(1.25 * (1.0 - sparsities[0]), (1.0 - sparsities[-1]) / 1.25)
    axes.set_xticks([1.0 - s for s in sparsities], [f"{100 * s:.6g}" for s in sparsities])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("sparsity, % (density on a logarithmic axis)")


def main(folder: Path = ROOT / "docs") -> None:
    """Writes the picture for both kinds of page."""
    for name, theme in THEMES.items():
        draw(folder / f"accuracy-{name}.svg", theme)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
