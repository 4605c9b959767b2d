"""The stages of an event, one at a time, against examples worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsparse.scores import gradient, magnitude, random
from jaxsparse.stages import exchange, grow, prune
from jaxsparse.types import Row

NO_DROP = (jnp.int32(0), jnp.int32(1))
HALF = (jnp.int32(1), jnp.int32(2))
INF, NAN = np.inf, np.nan


def target(count):
    counts = jax.tree.map(jnp.int32, count)
    return Row(counts, NO_DROP)


def run(stage, weights, masks, row, *, signal=None, key=None):
    """Runs a stage under jit and returns the masks as strings of 0 and 1, by path."""
    weights = {p: jnp.asarray(w, jnp.float32) for p, w in weights.items()}
    masks = {p: jnp.array([c == "1" for c in mask], bool) for p, mask in masks.items()}
    signal = weights if signal is None else {p: jnp.asarray(g) for p, g in signal.items()}
    selected = jax.jit(lambda w, g, m, key: stage(w, g, m, row, key))(weights, signal, masks, key)
    return {p: "".join("01"[int(bit)] for bit in mask) for p, mask in selected.masks.items()}


# Eight weights, four to keep: .9, .5, .3, .2.
TWO_LEAVES = {"A": [0.9, -0.1, 0.3, 0.0], "B": [-0.5, 0.2, 0.05, -0.02]}
DENSE = {"A": "1111", "B": "1111"}


@pytest.mark.parametrize(
    ("masks", "row", "expected"),
    [
        # GraNet's strict rule would lose the .2: three kept.
        (DENSE, target(4), {"A": "1010", "B": "1100"}),
        (DENSE, target({"A": 1, "B": 3}), {"A": "1000", "B": "1110"}),
        # An inactive weight does not come back, large as it may be.
        ({"A": "0111", "B": "1111"}, target(4), {"A": "0110", "B": "1100"}),
        # Fewer active than the target: unchanged, never denser.
        ({"A": "0101", "B": "0010"}, target(4), {"A": "0101", "B": "0010"}),
        ({"A": "0101", "B": "0010"}, target({"A": 1, "B": 3}), {"A": "0100", "B": "0010"}),
        ({"A": "0101", "B": "0010"}, target(2**31 - 1), {"A": "0101", "B": "0010"}),
        (DENSE, target(0), {"A": "0000", "B": "0000"}),
    ],
)
def test_prune(masks, row, expected):
    assert run(prune(), TWO_LEAVES, masks, row) == expected


@pytest.mark.parametrize(
    ("min_keep", "total", "expected"),
    [
        (1, 2, {"A": "10000", "B": "100", "C": "1"}),  # every leaf's best, though 2 < 3
        (1, 4, {"A": "11000", "B": "100", "C": "1"}),
        (2, 6, {"A": "11100", "B": "110", "C": "1"}),  # C has only one
        (0, 4, {"A": "11110", "B": "000", "C": "0"}),  # a layer may be emptied
    ],
)
def test_prune_keeps_a_minimum_of_each_leaf(min_keep, total, expected):
    weights = {"A": [9, 8, 7, 6, 5], "B": [0.3, 0.2, 0.1], "C": [0.01]}
    masks = {"A": "11111", "B": "111", "C": "1"}
    row = target(total)._replace(min_keep=min_keep)
    assert run(prune(), weights, masks, row) == expected


def test_prune_counts_exactly_among_ties():
    weights = {"A": np.full(6000, 0.1), "B": np.full(4000, -0.1)}
    pruned = run(prune(), weights, {"A": "1" * 6000, "B": "1" * 4000}, target(1000))
    assert sum(mask.count("1") for mask in pruned.values()) == 1000


def test_prune_by_another_score():
    signal = {"A": [0.0, 9.0, 0.0, 0.0], "B": [0.0, 0.0, 9.0, 0.0]}
    pruned = run(prune(gradient), TWO_LEAVES, DENSE, target(2), signal=signal)
    assert pruned == {"A": "0100", "B": "0010"}


def test_prune_drops_nan_first_and_reports_it():
    weights = {"A": jnp.array([NAN, 0.1, 0.0, INF])}
    masks = {"A": jnp.ones(4, bool)}
    for min_keep in (0, 1):
        row = target(3)._replace(min_keep=min_keep)
        selected = prune()(weights, weights, masks, row, None)
        np.testing.assert_array_equal(selected.masks["A"], [False, True, True, True])
        assert selected.num_nan.tolist()[0] == 1


# The gradient of active weights has no say; B has the larger ones.
SIGNAL = {"A": [9.5, 0.1, -0.4, 0.2], "B": [-0.5, 9.0, 0.3, -0.6]}
SOME = {"A": "1000", "B": "0100"}


@pytest.mark.parametrize(
    ("masks", "row", "expected"),
    [
        (SOME, target(4), {"A": "1000", "B": "1101"}),
        (SOME, target(5), {"A": "1010", "B": "1101"}),
        (SOME, target({"A": 2, "B": 3}), {"A": "1010", "B": "1101"}),
        # As many as there are, or more: unchanged, never sparser.
        (SOME, target(2), SOME),
        (SOME, target(0), SOME),
        (SOME, target({"A": 0, "B": 1}), SOME),
        # One leaf grows where the other has enough.
        (SOME, target({"A": 0, "B": 2}), {"A": "1000", "B": "0101"}),
        # All there is, and no more.
        (SOME, target({"A": 9, "B": 9}), DENSE),
        (DENSE, target(9), DENSE),
        ({"A": "0000", "B": "0000"}, target(1), {"A": "1000", "B": "0000"}),
    ],
)
def test_grow(masks, row, expected):
    assert run(grow(), TWO_LEAVES, masks, row, signal=SIGNAL) == expected


def test_grow_by_another_score():
    grown = run(grow(magnitude), TWO_LEAVES, SOME, target(4), signal=SIGNAL)
    assert grown == {"A": "1010", "B": "1100"}


@pytest.mark.parametrize("signal", [0.0, 1.0, NAN, INF])
def test_grow_counts_exactly_whatever_the_gradient(signal):
    weights = {"A": np.zeros(600, np.float32), "B": np.zeros(400, np.float32)}
    masks = {"A": "1" * 10 + "0" * 590, "B": "0" * 400}
    signals = {p: np.full(w.size, signal, np.float32) for p, w in weights.items()}
    grown = run(grow(), weights, masks, target(333), signal=signals)
    assert sum(mask.count("1") for mask in grown.values()) == 333
    assert grown["A"].startswith("1" * 10)


def test_grow_takes_nan_last_and_reports_it():
    signal = {"A": jnp.array([NAN, NAN, 0.0, -1.0])}
    masks = {"A": jnp.array([True, False, False, False])}
    selected = grow()(signal, signal, masks, target({"A": 3}), None)
    np.testing.assert_array_equal(selected.masks["A"], [True, False, True, True])
    assert selected.num_nan.tolist() == [1]  # that of an active weight is none


# Position               0    1    2     3    4  |  5   6     7    (the last three inactive)
W = {"A": np.array([1.0, -0.8, 0.6, -0.4, 0.2, 0.0, 0.0, 0.0], np.float32)}
G = {"A": np.array([9.0, -9.0, 0.1, 0.3, -0.05, 0.2, -0.4, 0.01], np.float32)}
ACTIVE = {"A": "11111000"}


@pytest.mark.parametrize(
    ("rounding", "expected"),
    [
        ("ceil", "11010110"),  # 3 of 5: drops 2, 3, 4; grows 6, 3, 5
        ("floor", "11110010"),  # 2 of 5: drops 3, 4; grows 6, 3
    ],
)
def test_exchange(rounding, expected):
    row = Row(jnp.int32(2**31 - 1), HALF)
    assert run(exchange(rounding=rounding), W, ACTIVE, row, signal=G) == {"A": expected}
    # The gradient of the survivors 0 and 1 has no say.
    smaller = {"A": np.concatenate([np.zeros(2, np.float32), G["A"][2:]])}
    assert run(exchange(rounding=rounding), W, ACTIVE, row, signal=smaller) == {"A": expected}


@pytest.mark.parametrize(
    ("mask", "ratio", "expected"),
    [
        ("11111000", (0, 1), "11111000"),  # r = 0
        ("11111111", (1, 2), "11111111"),  # dense
        ("00000000", (1, 2), "00000000"),  # nothing to drop
        ("11111000", (1, 1), "11010110"),  # r = 1: the five largest gradients, 0 1 6 3 5
    ],
)
@pytest.mark.parametrize("rounding", ["ceil", "floor"])
def test_exchange_at_the_ends(mask, ratio, expected, rounding):
    row = Row(jnp.int32(2**31 - 1), jax.tree.map(jnp.int32, ratio))
    assert run(exchange(rounding=rounding), W, {"A": mask}, row, signal=G) == {"A": expected}


@pytest.mark.parametrize("signal", [0.0, -0.0, 1.0, NAN, INF])
@pytest.mark.parametrize("rounding", ["ceil", "floor"])
def test_exchange_keeps_every_count_whatever_the_gradient(signal, rounding):
    sizes = {"A": (100, 37), "B": (1, 1), "C": (1, 0), "D": (0, 0), "E": (10, 10)}
    weights = {p: np.linspace(-1, 1, n, dtype=np.float32) for p, (n, _) in sizes.items()}
    masks = {p: "1" * k + "0" * (n - k) for p, (n, k) in sizes.items()}
    signals = {p: np.full(n, signal, np.float32) for p, (n, _) in sizes.items()}
    row = Row(jnp.int32(2**31 - 1), HALF)
    after = run(exchange(rounding=rounding), weights, masks, row, signal=signals)
    assert {p: mask.count("1") for p, mask in after.items()} == {
        p: k for p, (_, k) in sizes.items()
    }


def test_exchange_with_nan_weights_drops_them_first():
    weights = {"A": jnp.array([NAN, 0.1, 0.2, 0.3, 0.0, 0.0])}
    signal = {"A": jnp.array([0.0, 0.0, 0.0, 0.0, 5.0, NAN])}
    masks = {"A": jnp.array([True, True, True, True, False, False])}
    row = Row(jnp.int32(2**31 - 1), (jnp.int32(1), jnp.int32(4)))
    selected = exchange(rounding="floor")(weights, signal, masks, row, None)
    np.testing.assert_array_equal(selected.masks["A"], [False, True, True, True, True, False])
    assert selected.num_nan.tolist()[0] == 2  # one weight, one gradient


def test_exchange_at_random_differs_between_leaves_and_keys(key):
    weights = {"A": np.linspace(1, 2, 60), "B": np.linspace(1, 2, 60)}
    masks = dict.fromkeys(weights, "1" * 30 + "0" * 30)
    row = Row(jnp.int32(2**31 - 1), HALF)
    stage = exchange(grow=random, rounding="floor")
    first = run(stage, weights, masks, row, key=key)
    assert first == run(stage, weights, masks, row, key=key)
    assert first["A"] != first["B"]
    assert first["A"] != run(stage, weights, masks, row, key=jax.random.key(1))["A"]
    assert {mask.count("1") for mask in first.values()} == {30}
    assert {mask[15:30] for mask in first.values()} == {"1" * 15}  # the larger half stays
