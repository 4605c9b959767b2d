"""Measurements of layers have the right range and form, on any machine."""

import jax
import jax.numpy as jnp
import pytest

from jaxsparse.sparse import LayerShape, Window, benchmark, choose_capacity, measured_break_even
from jaxsparse.sparse.measure import _meet, _seconds

PADDED = Window((3, 3), padding=((1, 1), (1, 1)))
CONV = LayerShape((2, 5, 5, 4), (3, 3, 4, 6), PADDED)
LAYERS = {
    "conv": CONV,
    "major": CONV._replace(layout="CHWN"),
    "grouped": LayerShape((2, 5, 5, 4), (3, 3, 2, 6), PADDED._replace(groups=2, strides=(2, 2))),
    "dense": LayerShape((1, 1, 2, 8), (1, 1, 8, 3), Window((1, 1))),
}


@pytest.fixture(autouse=True)
def few_calls(monkeypatch):
    monkeypatch.setattr("jaxsparse.sparse.measure._SECONDS", 0.0)
    _seconds.cache_clear()
    yield
    _seconds.cache_clear()


@pytest.mark.parametrize(
    ("seconds", "density"),
    [
        ((5.0, 2.0, 3.0), 0.35),  # 2 at 5 of 100, 3 at 15: 5 at 35
        ((2.5, 2.0, 3.0), 0.10),
        ((1.0, 2.0, 3.0), 0.0),
        ((90.0, 2.0, 3.0), 1.0),
        ((2.5, 2.0, 2.0), 1.0),  # no slope: one form is always faster
        ((1.5, 2.0, 2.0), 0.0),
        ((1.5, 2.0, 1.9), 0.0),
    ],
)
def test_where_a_line_meets_the_dense_time(seconds, density):
    assert _meet((5, 15), seconds, 100) == pytest.approx(density)


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("name", LAYERS)
def test_a_break_even_is_a_density_and_measured_once(name, train):
    found = measured_break_even(LAYERS[name], train)
    assert 0.0 <= found <= 1.0
    assert measured_break_even(LAYERS[name], train) == found
    assert _seconds.cache_info().misses == 1


def test_it_chooses_capacity_also_while_something_is_traced(engine):
    def chosen(x):
        limit = measured_break_even(CONV)
        capacity = choose_capacity({"conv": 1}, {"conv": CONV}, break_even=measured_break_even)
        assert capacity == ({"conv": 1} if limit * CONV.size >= 1 else {})
        return x * limit

    assert 0.0 <= jax.jit(chosen)(jnp.ones(())) <= 1.0


def test_the_table_has_a_line_for_each_layer():
    active = {"dense": 3, "conv": 21, "no layer": 7}
    found = benchmark({name: LAYERS[name] for name in ("conv", "dense")}, active, train=False)
    assert [(row.path, row.num_active, row.size) for row in found.layers] == [
        ("dense", 3, 24),
        ("conv", 21, 216),
    ]
    assert all(row.dense > 0 and row.sparse > 0 and row.break_even <= 1 for row in found.layers)
    first, titles, *lines, last = str(found).splitlines()
    assert first.startswith("forward, kernels: ")
    assert "break-even" in titles and last.startswith("together ")
    assert [line.split()[:3] for line in lines] == [
        ["dense", "3", "0.1250"],
        ["conv", "21", "0.0972"],
    ]


def test_a_network_without_layers_has_an_empty_table():
    assert "together 0.00 ms dense" in str(benchmark({}, {"fc/kernel": 3}))
