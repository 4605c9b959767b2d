"""Masks over time: overlap, churn and exploration by eye, on the host and under jit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsparse
from jaxsparse.types import EventMetrics


def rows(first, second):
    """Masks of a network with two kernels and a bias, from rows of 0 and 1."""
    return {
        "a": {"kernel": jnp.array([first], bool), "bias": jnp.ones(4, bool)},
        "b": {"kernel": jnp.array([second], bool)},
    }


A = rows([1, 1, 1, 0], [1, 1, 0, 0, 0, 0])
B = rows([0, 1, 1, 1], [0, 0, 1, 1, 0, 0])


@pytest.mark.parametrize("overlap", [jaxsparse.overlap, jax.jit(jaxsparse.overlap)])
@pytest.mark.parametrize(
    ("one", "other", "layers", "total"),
    [
        (A, B, [2 / 4, 0 / 4], 2 / 8),
        (B, A, [2 / 4, 0 / 4], 2 / 8),
        (A, A, [1, 1], 1),
        (A, rows([1, 0, 0, 0], [1, 1, 1, 1, 0, 0]), [1 / 3, 2 / 4], 3 / 7),  # other densities
        (A, rows([0, 0, 0, 0], [1, 1, 0, 0, 0, 0]), [0, 1], 2 / 5),
        (*[rows([0, 0, 0, 0], [1, 0, 0, 0, 0, 0])] * 2, [1, 1], 1),  # both empty: the same
    ],
)
def test_overlap_by_eye(overlap, one, other, layers, total):
    shares = overlap(one, other)
    np.testing.assert_allclose(shares.layers, layers, rtol=1e-6)
    assert float(shares.total) == pytest.approx(total)


def test_overlap_counts_what_the_rules_say():
    assert float(jaxsparse.overlap(A, B, ((r"a/kernel", True),)).total) == 0.5


def test_overlap_names_the_leaf_that_differs():
    with pytest.raises(ValueError, match=r"b at b/kernel has shape \(1, 5\), a has \(1, 6\)"):
        jaxsparse.overlap(A, rows([0, 1, 1, 1], [0, 0, 1, 1, 0]))


def test_overlap_of_what_are_no_masks():
    weights = jax.tree.map(lambda mask: mask.astype(jnp.float32), A)
    for pair in ((weights, A), (A, weights), (weights, weights)):
        with pytest.raises(ValueError, match="at a/bias has dtype float32; it must be bool"):
            jaxsparse.overlap(*pair)


@pytest.mark.parametrize("churn", [jaxsparse.churn, jax.jit(jaxsparse.churn)])
def test_churn_by_eye(churn):
    counts = lambda *numbers: jnp.array(numbers, jnp.int32)
    metrics = EventMetrics(
        num_active=counts(10, 0, 30),
        num_dropped=counts(9, 9, 9),
        num_grown=counts(5, 0, 3),
        num_restarted=counts(8, 8, 8),
        num_nan=counts(7, 7, 7),
    )
    shares = churn(metrics)
    np.testing.assert_allclose(shares.layers, [0.5, 0.0, 0.1], rtol=1e-6)
    assert float(shares.total) == pytest.approx(8 / 40)


def test_churn_of_more_weights_than_int32_counts():
    big = jnp.array([2**31 - 1] * 3, jnp.int32)
    shares = jaxsparse.churn(EventMetrics(big, big, big, big, big))
    assert float(shares.total) == 1.0


def test_overlap_and_churn_of_one_event_agree(key):
    params = {"kernel": jax.random.normal(key, (10, 20))}
    method = jaxsparse.rigl(sparsity=0.5, total_steps=10, update_interval=1, stop_step=10)
    masks = method.init(key, params)
    params = jaxsparse.apply_masks(params, masks)
    grads = {"kernel": jax.random.normal(jax.random.key(1), (10, 20))}
    event = method.update(params, grads, masks, 1)
    grown = int(event.metrics.num_grown[0])
    assert 0 < grown <= 0.3 * 100
    assert float(jaxsparse.churn(event.metrics).total) == pytest.approx(grown / 100)
    overlap = float(jaxsparse.overlap(masks, event.masks).total)
    assert overlap == pytest.approx((100 - grown) / (100 + grown))
    assert 2 * overlap / (1 + overlap) == pytest.approx(1 - grown / 100)


def test_exploration_is_the_union_over_time():
    rows = [[1, 1, 0, 0, 0], [0, 1, 1, 0, 0], [0, 0, 1, 1, 0]]
    masks = [{"kernel": jnp.array([row], bool), "bias": jnp.ones(5, bool)} for row in rows]
    explored, rates = masks[0], []
    for mask in masks:
        explored = jax.jit(jaxsparse.explore)(explored, mask)
        rates.append(round(float(jaxsparse.exploration_rate(explored)), 6))
    assert rates == [0.4, 0.6, 0.8]


def test_exploration_rate_counts_what_the_rules_say_and_is_traceable():
    explored = {
        "conv": {"kernel": jnp.arange(36) < 9},
        "fc": {"kernel": jnp.ones(4000, bool)},
    }
    explored = jax.tree.map(lambda mask: mask.reshape(4, -1), explored)
    rate = jax.jit(lambda tree: jaxsparse.exploration_rate(tree, ((r"conv/kernel", True),)))
    assert float(rate(explored)) == 0.25
    assert float(jaxsparse.exploration_rate(explored)) == pytest.approx(4009 / 4036)
