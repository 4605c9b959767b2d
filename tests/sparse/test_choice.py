"""Which layers are sparse, and the capacity of each."""

import numpy as np
import pytest

from jaxsparse.kernels import load
from jaxsparse.sparse import LayerShape, Window, break_even, choose_capacity, is_mostly_sparse

SAME = Window((3, 3), (1, 1), ((1, 1), (1, 1)))


def layer(channels, side, batch=128, layout="CHWN"):
    return LayerShape((batch, side, side, channels), (3, 3, channels, channels), SAME, layout)


LAYERS = {"a": layer(16, 32), "b": layer(512, 4)}
HALF = {"break_even": lambda layer, train: 0.5}


# Densities of these layers that were measured to be faster, and slower, in training.
@pytest.mark.parametrize(
    ("shape", "faster", "slower"),
    [
        (layer(16, 32), 0.5, None),
        (layer(64, 8), 0.5, None),
        (layer(128, 16), 0.2, 1.0),
        (layer(256, 8), 0.2, 0.5),
        (layer(512, 4), 0.05, 0.5),
        (layer(256, 8, layout="NHWC"), 0.05, 0.5),
        (layer(512, 4, layout="NHWC"), 0.05, 0.2),
        (layer(64, 32, batch=1), 0.1, 0.5),
        (layer(64, 8, batch=1), 0.05, 0.5),
        (layer(512, 4, batch=1), 0.01, 0.5),
    ],
)
def test_break_even_lies_where_it_was_measured(shape, faster, slower, monkeypatch):
    monkeypatch.setattr("jaxsparse.sparse.choice.backend", lambda: load.Backend("compiled", ""))
    assert break_even(shape) >= faster
    assert slower is None or break_even(shape) < slower


def test_break_even_without_kernels_is_low(monkeypatch):
    monkeypatch.setattr("jaxsparse.sparse.choice.backend", lambda: load.Backend("jax", ""))
    assert 0.01 < break_even(layer(512, 4)) < break_even(layer(16, 32)) <= 0.05


def test_on_accelerators_nothing_is_sparse(monkeypatch):
    monkeypatch.setattr("jax.default_backend", lambda: "gpu")
    assert break_even(layer(16, 32)) == 0.0
    assert choose_capacity({"a": 1, "b": 1}, LAYERS) == {}


def test_capacity():
    sizes = {path: shape.size for path, shape in LAYERS.items()}
    assert sizes == {"a": 2304, "b": 2_359_296}
    active = {"a": 1152, "b": 1_179_649, "embedding": 3}
    assert choose_capacity(active, LAYERS, **HALF) == {"a": 1152 + 288}
    assert choose_capacity(active, LAYERS, exact=True, **HALF) == {"a": 1152}
    assert choose_capacity({"a": 0}, LAYERS, **HALF) == {"a": 0}
    whole = {"break_even": lambda layer, train: 1.0}
    assert choose_capacity({"a": 2304}, LAYERS, **whole) == {"a": 2304}


def test_rooms_stay_until_they_no_longer_serve():
    before = {"a": 100}
    stays = [{"a": 100, "b": 600_000}, {"a": 50, "b": 2_000_000}, {"a": 99}]
    for active in stays:
        assert choose_capacity(active, LAYERS, before, **HALF) == before
    outgrown = choose_capacity({"a": 101}, LAYERS, before, **HALF)
    half_empty = choose_capacity({"a": 49}, LAYERS, before, **HALF)
    another = choose_capacity({"a": 99, "b": 500_000}, LAYERS, before, **HALF)
    assert (outgrown, half_empty) == ({"a": 126}, {"a": 61})
    assert another == {"a": 123, "b": 625_000}


def test_where_most_of_the_work_is():
    assert not is_mostly_sparse(LAYERS, {})
    assert is_mostly_sparse(LAYERS, {"a": 1, "b": 1})
    assert LAYERS["a"].macs == 128 * 32 * 32 * 2304
    assert LAYERS["b"].macs == 128 * 4 * 4 * 2_359_296
    assert is_mostly_sparse(LAYERS, {"b": 1}) and not is_mostly_sparse(LAYERS, {"a": 1})


def test_active_weights_are_integers_of_any_type():
    assert choose_capacity({"a": np.uint8(200)}, LAYERS, **HALF) == {"a": 250}
    assert choose_capacity({"a": np.int8(120)}, LAYERS, **HALF) == {"a": 150}
    for num in (1.5, True, -1, float("nan")):
        with pytest.raises(ValueError, match=r"active\['a'\] .* must be a whole number, at"):
            choose_capacity({"a": num}, LAYERS, **HALF)
