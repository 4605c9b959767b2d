import math

import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from experiments.records import plots

STEPS = [0, 1_000, 2_000]
RUN = {
    "title": "LeNet-300-100",
    "accuracy": {"training": (STEPS, [0.1, 0.8, 0.912]), "validation": (STEPS, [0.1, 0.7, 0.8816])},
    "density": (STEPS, [0.5, 0.2, 0.05]),
    "layers": {"dense_0/kernel": (7_056, 235_200), "dense_1/kernel": (3_000, 30_000)},
}
COMPARISON = {
    "title": "dense and sparse",
    "accuracy": {"dense": (STEPS, [0.1, 0.8, 0.9]), "GraNet-ST": (STEPS, [0.1, 0.8, 0.88])},
    "density": {"dense": (STEPS, [1.0, 1.0, 1.0]), "GraNet-ST": (STEPS, [0.5, 0.2, 0.05])},
}


@pytest.fixture
def figures(monkeypatch):
    """The figures that were saved, so that a test can read what they say."""
    saved = []
    savefig = Figure.savefig

    def save_and_keep(figure, *args, **kwargs):
        saved.append(figure)
        savefig(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", save_and_keep)
    return saved


def legend(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


def overlapping(figure):
    """Pairs of texts of a drawn figure whose boxes meet."""
    texts = []
    for axes in figure.axes:
        texts += axes.texts
        texts += axes.get_legend().get_texts() if axes.get_legend() else []
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())  # a tick outside it is not drawn
            ticks = [tick for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
            texts += [axis.label, *(tick.label1 for tick in ticks)]
    texts = [text for text in texts if text.get_text() and text.get_visible()]
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts]
    return [(a, b) for i, (a, x) in enumerate(boxes) for b, y in boxes[:i] if x.overlaps(y)]


def test_plot_run_writes_a_png(tmp_path):
    path = tmp_path / "new" / "run.png"
    plots.plot_run(path, **RUN)
    height, width, _ = imread(path).shape
    assert width == 1_200
    assert 800 < height < 1_200


def test_plot_run_says_the_numbers(tmp_path, figures):
    plots.plot_run(tmp_path / "run.png", **RUN)
    top, middle, bottom = figures[0].axes
    assert legend(top) == ["training: 91.2 %", "validation: 88.2 %"]
    assert legend(middle) == ["5 %"]
    assert [line.get_drawstyle() for line in middle.get_lines()] == ["steps-post"]
    assert "2,000" in [label.get_text() for label in middle.get_xticklabels()]
    labels = [label.get_text() for label in bottom.get_yticklabels()]
    assert labels == ["dense_0/kernel", "dense_1/kernel"]
    assert [" ".join(text.get_text().split()) for text in bottom.texts] == [
        "density active size",
        "3 % 7,056 235,200",
        "10 % 3,000 30,000",
    ]
    assert overlapping(figures[0]) == []


@pytest.mark.parametrize(("lowest", "scale"), [(0.1, "linear"), (0.099, "log"), (1e-5, "log")])
def test_density_under_a_tenth_is_logarithmic(tmp_path, figures, lowest, scale):
    plots.plot_run(tmp_path / "run.png", **RUN | {"density": (STEPS, [1.0, 0.5, lowest])})
    assert figures[0].axes[1].get_yscale() == scale
    assert overlapping(figures[0]) == []


@pytest.mark.parametrize(
    "change",
    [
        {"accuracy": {"validation": ([7], [0.1])}, "density": ([7], [0.05])},
        {"accuracy": {"validation": (STEPS, [0.1, math.nan, math.nan])}},
        {"density": (STEPS, [1 - 0.9] * 3)},
        {"accuracy": {"validation": ([], [])}, "density": ([], [])},
        {"accuracy": {}, "density": (STEPS, [0.1, 0.0, 0.0]), "layers": {}},
        {"title": "a long title " * 20},
        {"layers": {f"layer_{i}/{'x' * 60}/kernel": (i, 10**8) for i in range(54)}},
    ],
    ids=[
        "one value",
        "NaN",
        "constant density",
        "no value",
        "no layer",
        "long title",
        "many long layers",
    ],
)
def test_unusual_runs_are_drawn_without_overlap(tmp_path, figures, change):
    plots.plot_run(tmp_path / "run.png", **RUN | change)
    assert overlapping(figures[0]) == []


@pytest.mark.parametrize(("num_active", "size"), [(0, 0), (3, 2), (-1, 2)])
def test_impossible_layer(tmp_path, num_active, size):
    layers = {"a/kernel": (num_active, size)}
    with pytest.raises(ValueError, match=f"layer a/kernel: {num_active} of {size} active, expect"):
        plots.plot_run(tmp_path / "run.png", **RUN | {"layers": layers})


def test_plot_comparison(tmp_path, figures):
    plots.plot_comparison(tmp_path / "both.png", **COMPARISON)
    top, bottom = figures[0].axes
    assert legend(top) == ["dense: 90.0 %", "GraNet-ST: 88.0 %"]
    assert legend(bottom) == ["dense: 100 %", "GraNet-ST: 5 %"]
    colours = [[line.get_color() for line in axes.get_lines()] for axes in (top, bottom)]
    assert colours[0] == colours[1] == list(plots.COLOURS[:2])
    assert overlapping(figures[0]) == []
    assert imread(tmp_path / "both.png").shape[1] == 1_200


def test_comparison_tells_many_runs_apart(tmp_path, figures):
    names = [f"run {i}" for i in range(9)]
    accuracy = {name: (STEPS, [0.1, 0.8, 0.9]) for name in names}
    density = {name: (STEPS, [0.5, 0.2, 0.1]) for name in reversed(names)}  # another order
    plots.plot_comparison(tmp_path / "p.png", title="", accuracy=accuracy, density=density)
    looks = [[(x.get_color(), x.get_linestyle()) for x in a.get_lines()] for a in figures[0].axes]
    assert looks[0] == looks[1]
    assert len(set(looks[0])) == 9
    assert legend(figures[0].axes[1])[0] == "run 0: 10 %"


def test_comparison_needs_the_same_runs(tmp_path):
    with pytest.raises(ValueError, match=r"density has the runs \['dense'\], expected \['dense', "):
        density = {"dense": (STEPS, [1.0, 1.0, 1.0])}
        plots.plot_comparison(tmp_path / "p.png", **COMPARISON | {"density": density})


SPARSITIES = {
    "sample, lenet5": {
        "dense": [(0.0, 0.9, 0.01)],
        "rigl": [(0.9, 0.85, 0.02), (0.98, 0.8, 0.01), (0.99, 0.7, math.nan)],
    },
    "sample, resnet20": {
        "dense": [(0.0, 0.95, math.nan)],
        "granet": [(0.0, 0.95, 0.01), (0.9, 0.94, 0.01)],
        "rigl": [(0.9, 0.93, 0.02)],
    },
}


def test_plot_sparsities(tmp_path, figures):
    plots.plot_sparsities(tmp_path / "new" / "p.png", metric="test_accuracy", panels=SPARSITIES)
    top, bottom = figures[0].axes
    assert [axes.get_title() for axes in (top, bottom)] == list(SPARSITIES)
    assert (legend(top), legend(bottom)) == (["dense", "rigl"], ["dense", "granet", "rigl"])
    assert [label.get_text() for label in top.get_xticklabels()] == ["99 %", "98 %", "90 %"]
    left, right = top.get_xlim()
    assert top.get_xscale() == "log" and left > 0.1 > 0.01 > right  # the sparsest to the right
    dense, rigl = (axes.get_lines()[0] for axes in (top, bottom))
    assert set(dense.get_ydata()) == {0.9} and set(rigl.get_ydata()) == {0.95}
    bars = {axes: {c.get_label(): c for c in axes.containers} for axes in (top, bottom)}
    points, _, (spread,) = bars[top]["rigl"].lines
    assert points.get_ydata().tolist() == [0.85, 0.8, 0.7]
    assert spread.get_segments()[0][:, 1].tolist() == pytest.approx([0.83, 0.87])
    assert points.get_color() == bars[bottom]["rigl"].lines[0].get_color() == plots.COLOURS[1]
    assert overlapping(figures[0]) == []
    assert imread(tmp_path / "new" / "p.png").shape[1] == 1_200


@pytest.mark.parametrize(
    ("methods", "ticks"),
    [
        ({"dense": [(0.0, 0.9, 0.1)]}, []),
        ({"rigl": [(0.9, 0.8, math.nan)]}, ["90 %"]),
        ({"rigl": [(s, 0.8, 0.1) for s in (0.5, 0.9, 0.95, 0.96, 0.999)]}, 4),
        ({"rigl": [(round(1 - 0.8**r, 4), 0.8, 0.1) for r in (7, 10, 13, 17, 21, 31)]}, 5),
        ({f"method {i}": [(0.9, i / 20, 0.1)] for i in range(15)}, ["90 %"]),
    ],
    ids=["dense alone", "one point", "close sparsities", "long labels", "many methods"],
)
def test_unusual_comparisons_are_drawn_without_overlap(tmp_path, figures, methods, ticks):
    plots.plot_sparsities(tmp_path / "p.png", metric="test_accuracy", panels={"title": methods})
    (axes,) = figures[0].axes
    labels = [label.get_text() for label in axes.get_xticklabels()]
    assert labels == ticks or len(labels) == ticks
    assert overlapping(figures[0]) == []
    points = [container.lines[0] for container in axes.containers]
    assert len({(x.get_color(), x.get_linestyle(), x.get_marker()) for x in points}) == len(points)


def test_long_legends_have_room(tmp_path, figures):
    """They are wrapped, and the figure grows; matplotlib warns if axes have no room left."""
    methods = {
        f"set{i} weights=pytorch distribution=uniform " * 2: [(0.9, 0.5, 0.1)] for i in range(20)
    }
    plots.plot_sparsities(
        tmp_path / "p.png", metric="test_accuracy", panels={"a": methods, "b": {}}
    )
    (figure,) = figures
    top, bottom = (axes.get_window_extent() for axes in figure.axes)
    legend = figure.axes[0].get_legend().get_window_extent()
    assert top.width > 3 * figure.dpi
    assert top.y0 < legend.y0 and bottom.y1 < top.y0
    assert legend.x1 <= figure.bbox.x1
