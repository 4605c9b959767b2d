"""Reach of one operation by hand, and of random data against changing the inputs one by one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax import lax

from jaxsparse.tracing.owners import leaf
from jaxsparse.tracing.reach import Reach, clip, find_reach

ON = np.array([1, 1, 0], np.float32)
MASK = np.array([[1, 0], [0, 0], [1, 1]], np.float32)


def reach_of(forward, on=ON, mask=MASK):
    """The first output of forward(x, w), and the products, from a reach and a mask."""
    closed = jax.make_jaxpr(forward)(jnp.ones(np.shape(on)), jnp.ones(np.shape(mask)))
    weights = Reach(jnp.asarray(mask), leaf("w", np.shape(mask)))
    (found, *_), uses = find_reach(closed, [Reach(jnp.asarray(on)), weights])
    return found, uses


DATA = {
    "a product": (lambda x, w: x @ w, [1, 0]),
    "an activation": (lambda x, w: jnp.exp(x), [1, 1, 0]),
    "a bias starts no path": (lambda x, w: x + w[:, 0], [1, 1, 0]),
    "a scale opens and closes": (lambda x, w: x * w[:, 0], [1, 0, 0]),
    "a divisor closes nothing": (lambda x, w: x / w[:, 0], [1, 1, 0]),
    "a sum": (lambda x, w: x.sum()[None], [1]),
    "a maximum of nothing": (lambda x, w: x[2:].max()[None], [0]),
    "reversed and padded": (lambda x, w: jnp.pad(x[::-1], (1, 0)), [0, 0, 1, 1]),
    "joined with constants": (lambda x, w: jnp.concatenate([x[1:], jnp.ones(2)]), [1, 0, 0, 0]),
    "data by data": (lambda x, w: x[:, None] @ x[None, :], [[1, 1, 1], [1, 1, 1], [1, 1, 0]]),
    "by a constant": (lambda x, w: x @ jnp.zeros((3, 2)), [1, 1]),
    "an unknown operation": (lambda x, w: jnp.sort(x), [1, 1, 1]),
    "a loop": (lambda x, w: lax.fori_loop(0, 2, lambda i, x: x * 2.0, x), [1, 1, 1]),
    "a call": (jax.jit(lambda x, w: x @ w), [1, 0]),
}


@pytest.mark.parametrize("name", DATA)
def test_reach_of_data(name):
    forward, expected = DATA[name]
    found, _ = reach_of(forward)
    assert found.origin is None and found.on.tolist() == expected


@pytest.mark.parametrize(
    ("forward", "expected"),
    [
        (lambda x, w: w.T, MASK.T),
        (lambda x, w: w * 2.0, MASK),
        (lambda x, w: jnp.sqrt(w), MASK),
        (lambda x, w: jnp.exp(w), np.ones((3, 2))),  # exp(0) is 1
        (lambda x, w: w + w[:, :1], np.maximum(MASK, MASK[:, :1])),
        (lambda x, w: w / (1.0 + w[:, :1]), MASK),
    ],
)
def test_where_values_made_from_parameters_may_be_other_than_0(forward, expected):
    with jax.numpy_rank_promotion("allow"):
        found, uses = reach_of(forward)
    assert {*found.origin.blocks.item()} == {"w"} and not uses
    np.testing.assert_array_equal(found.on, expected)


def test_a_value_that_depends_on_nothing_is_computed():
    found, uses = reach_of(lambda x, w: jnp.arange(3.0) * 2.0)
    assert not uses
    np.testing.assert_array_equal(found, [0.0, 2.0, 4.0])


def test_products_of_data_and_parameters_are_recorded_in_order():
    forward = lambda x, w: (x @ w) @ w.T + x[2:] @ w[:1, :] @ w.T
    _, uses = reach_of(forward)
    assert [use.paths for use in uses] == [("w",)] * 4
    assert [bool(use.is_reached) for use in uses] == [True, True, False, False]


def test_clip_makes_counts_0_or_1_on_both_ways():
    counts, gradient = jnp.array([0.0, 1e-6, 1.0, 4e8]), jnp.array([9.0, 0.0, 2.0, 1e-6])
    found, back = jax.vjp(clip, counts)
    assert found.tolist() == [0, 0, 1, 1]
    assert back(gradient)[0].tolist() == [1, 0, 1, 0]


def network(x, w):
    return jnp.tanh(x @ w) @ w.T


@given(seed=st.integers(0, 999), density=st.sampled_from([0.2, 0.5, 0.8]))
def test_against_changing_the_inputs_one_by_one(seed, density):
    """An output is reached if one of the open inputs changes it."""
    rng = np.random.default_rng(seed)
    mask, on = rng.random((5, 4)) < density, rng.random(5) < 0.5
    w, x = mask * rng.uniform(0.5, 1.0, mask.shape), rng.uniform(0.5, 1.0, 5)
    forward = lambda x: np.tanh(x @ w) @ w.T
    moved = [forward(x + 0.1 * np.eye(5)[i]) != forward(x) for i in np.flatnonzero(on)]
    found, _ = reach_of(network, on.astype(np.float32), mask.astype(np.float32))
    np.testing.assert_array_equal(found.on > 0, np.any([np.zeros(5, bool), *moved], axis=0))
