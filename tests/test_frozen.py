"""Leaves whose update is 0 whatever the gradient is, through calls, branches and loops."""

import jax
import jax.numpy as jnp
import optax
import pytest
from jax import lax

from jaxsparse.frozen import frozen_paths

PARAMS = {"a": jnp.ones(3), "b": jnp.ones(2)}


def changed(make):
    """An optimizer that leaves b's gradient as it is, and makes a's update from it."""
    update = lambda grads, state, params=None: ({**grads, "a": make(grads["a"])}, state)
    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


@pytest.mark.parametrize(
    "make",
    [
        jnp.zeros_like,
        lambda g: jnp.zeros(3) * g,
        lambda g: -jnp.zeros((1, 3)).reshape(3),
        jax.jit(jnp.zeros_like),
        jax.checkpoint(lambda g: 0.0 * g),
        lambda g: lax.cond(g.sum() > 0, jnp.zeros_like, lambda g: 0.0 * g, g),
        lambda g: lax.fori_loop(0, 3, lambda i, x: x * g, jnp.zeros(3)),
    ],
)
def test_an_update_that_is_surely_0(make):
    assert frozen_paths(changed(make), PARAMS) == ["a"]


@pytest.mark.parametrize(
    "make",
    [
        lambda g: g,
        lambda g: g - g,  # nobody looks whether operands are equal
        lambda g: jnp.zeros(3) + 1.0,
        lambda g: jnp.exp(jnp.zeros(3)),
        lambda g: lax.cond(g.sum() > 0, jnp.zeros_like, lambda g: g, g),
        lambda g: lax.fori_loop(0, 3, lambda i, x: x + g, jnp.zeros(3)),
    ],
)
def test_an_update_that_may_be_other_than_0(make):
    assert frozen_paths(changed(make), PARAMS) == []


def test_an_optimizer_that_asks_for_more_has_none():
    def update(grads, state, params=None, *, more):
        return jax.tree.map(lambda g: more * g, grads), state

    tx = optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)
    assert frozen_paths(tx, PARAMS) == []
