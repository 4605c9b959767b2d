"""Random masks: exact counts, in all layers alike, another draw for another key."""

import jax
import jax.numpy as jnp

import jaxsparse

PARAMS = {"a": {"kernel": jnp.ones((50, 80))}, "b": {"kernel": jnp.ones((20, 50))}}


def test_counts_are_exact_and_layers_alike(key):
    masks = jaxsparse.random_masks(key, PARAMS, 0.9)
    assert jaxsparse.num_active(masks) == 500
    assert 60 < int(masks["b"]["kernel"].sum()) < 140  # 100 on average
    again = jaxsparse.random_masks(key, PARAMS, 0.9)
    other = jaxsparse.random_masks(jax.random.key(1), PARAMS, 0.9)
    same = lambda x, y: all(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a == b).all()), x, y)))
    assert same(masks, again) and not same(masks, other)


def test_layers_have_the_densities_of_a_distribution(key):
    masks = jaxsparse.random_masks(
        key, PARAMS, 0.9, scope="layer", distribution=jaxsparse.uniform()
    )
    assert [int(mask["kernel"].sum()) for mask in masks.values()] == [400, 100]
