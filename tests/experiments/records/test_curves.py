"""Curves over training: the average of runs, and what the figures say."""

import math

import numpy as np
import pytest
from matplotlib.figure import Figure

from experiments.records import curves, plots
from experiments.records.flow_series import flow_series


@pytest.fixture
def figures(monkeypatch):
    saved = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: saved.append(figure))
    return saved


def test_the_average_is_over_the_steps_that_all_runs_have():
    runs = [([0, 10, 20], [1.0, 2.0, 3.0]), ([10, 20, 30], [4.0, 9.0, 1.0])]
    found = curves.average(runs)
    assert found.steps == (10, 20) and found.means == (3.0, 6.0) and found.n == 2
    np.testing.assert_allclose(found.sds, [2**0.5, 18**0.5])
    assert math.isnan(curves.average(runs[:1]).sds[0])


def test_a_panel_for_each_model_and_a_line_for_each_method(tmp_path, figures):
    flow = {"static": [0.01, 0.02], "rigl": [0.1, 2.0]}
    panels = {
        title: {name: curves.average([([0, 50], x), ([0, 50], x)]) for name, x in flow.items()}
        for title in ("lenet5", "resnet8")
    }
    curves.plot_curves(tmp_path / "new" / "p.png", metric="gradient_flow", panels=panels)
    first, second = figures[0].axes
    assert [axes.get_title() for axes in (first, second)] == ["lenet5", "resnet8"]
    assert [text.get_text() for text in first.get_legend().get_texts()] == [
        "static (2)",
        "rigl (2)",
    ]
    assert first.get_ylabel() == "gradient flow" and first.get_yscale() == "log"
    assert list(first.get_lines()[1].get_ydata()) == flow["rigl"]


def test_the_figure_of_a_run_has_its_gradient_flow(tmp_path, figures):
    records = [{"step": 0, "density": 0.1}, {"step": 9, "grad_norm": 2.0}]
    run = {
        "title": "",
        "accuracy": {"validation": ([0, 9], [0.1, 0.2])},
        "density": ([0, 9], [0.1, 0.1]),
        "layers": {"a": (1, 10)},
    }
    plots.plot_run(tmp_path / "run.png", **run, flow=flow_series(records))
    _, density, flow, _ = figures[0].axes
    assert list(flow.get_lines()[0].get_ydata()) == [4.0]
    assert (density.get_xlabel(), flow.get_xlabel()) == ("", "optimizer step")
    plots.plot_run(tmp_path / "run.png", **run, flow=flow_series(records[:1]))
    assert len(figures[1].axes) == 3
