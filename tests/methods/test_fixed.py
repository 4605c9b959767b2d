"""Masks that never change: dense, static, and masks that the caller gives."""

import chex
import jax
import jax.numpy as jnp
import pytest

import jaxsparse

PARAMS = {"fc": {"kernel": jnp.arange(1.0, 13.0).reshape(3, 4), "bias": jnp.ones(4)}}


def test_dense(key):
    method = jaxsparse.dense(total_steps=10)
    masks = method.init(key, PARAMS)
    chex.assert_trees_all_equal(masks, jaxsparse.dense_masks(PARAMS))
    assert not any(method.is_due(n) for n in range(12))
    assert [tuple(s) for s in method.segments()] == [(0, 10, False)]


def test_static_draws_once_and_never_has_an_event(key):
    method = jaxsparse.static(sparsity=0.75, total_steps=10)
    masks = method.init(key, PARAMS)
    assert jaxsparse.num_active(masks) == 3
    assert masks["fc"]["bias"].all()
    assert not any(method.is_due(n) for n in range(12))


def test_an_update_that_is_called_all_the_same_changes_nothing(key):
    method = jaxsparse.static(sparsity=0.75, total_steps=10)
    masks = method.init(key, PARAMS)
    event = jax.jit(method.update)(PARAMS, PARAMS, masks, 5)
    chex.assert_trees_all_equal(event.masks, masks)
    chex.assert_trees_all_equal(event.kept, masks)
    assert event.metrics.num_active.tolist() == [3]
    assert event.metrics.num_dropped.tolist() == event.metrics.num_grown.tolist() == [0]


def test_static_with_the_masks_of_a_sparse_model(key):
    params = {"fc": {"kernel": jnp.array([[0.0, 2.0], [3.0, 0.0]]), "bias": jnp.zeros(2)}}
    masks = jaxsparse.masks_from_params(params)
    method = jaxsparse.static(masks=masks, total_steps=10)
    chex.assert_trees_all_equal(method.init(key, params), masks)
    assert method.plan(params).rows[0].num_active == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "static takes either sparsity= or masks=, exactly one of them"),
        ({"sparsity": 0.5, "masks": PARAMS}, "static takes either sparsity= or masks="),
        ({"sparsity": 1.0}, "sparsity 1.0 must be in \\[0, 1\\)"),
        ({"sparsity": -0.1}, "sparsity -0.1 must be"),
        ({"sparsity": float("nan")}, "sparsity nan must be"),
    ],
)
def test_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        jaxsparse.static(total_steps=10, **options)


def test_given_masks_that_do_not_fit(key):
    other = {"fc": {"kernel": jnp.ones((4, 3), bool), "bias": jnp.ones(4, bool)}}
    method = jaxsparse.static(masks=other, total_steps=10)
    for call in (lambda: method.init(key, PARAMS), lambda: method.plan(PARAMS)):
        with pytest.raises(ValueError, match=r"masks at fc/kernel has shape \(4, 3\), params has"):
            call()


def test_sparsity_that_leaves_less_than_a_weight_a_layer(key):
    params = {f"layer{i}": {"kernel": jnp.ones((1, 4))} for i in range(4)}
    with pytest.raises(ValueError, match="leaves 2 active weights for 4 layers, .* at most 0.75"):
        jaxsparse.static(sparsity=0.9, total_steps=10).init(key, params)
