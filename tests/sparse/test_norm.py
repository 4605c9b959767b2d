"""Batch normalisation of channels against its definition and against Flax."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxsparse.sparse.norm import batch_norm


def drawn(shape, seed=0):
    rng = np.random.default_rng(seed)
    normal = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    channels = shape[0]
    return (
        3 * normal(*shape) + 2,
        normal(channels),
        normal(channels),
        normal(*shape),
        normal(*shape),
    )


def flax_norm(x, scale, bias, shortcut, *, relu):
    """The same with the channel last."""
    norm = nn.BatchNorm(use_running_average=False, epsilon=1e-5, use_fast_variance=False)
    variables = {"params": {"scale": scale, "bias": bias}}
    y, _ = norm.apply(variables, jnp.moveaxis(x, 0, -1), mutable=["batch_stats"])
    y = jnp.moveaxis(y, -1, 0)
    y = y if shortcut is None else y + shortcut
    return nn.relu(y) if relu else y


@pytest.mark.parametrize("shape", [(3, 4, 4, 32), (5, 3, 3, 7), (2, 50, 50, 2), (4, 1, 1, 3)])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("has_shortcut", [False, True])
def test_outputs_and_gradients(shape, relu, has_shortcut, engine):
    x, scale, bias, shortcut, grads = drawn(shape)
    args = (x, scale, bias, shortcut) if has_shortcut else (x, scale, bias)
    more = () if has_shortcut else (None,)
    y, pull = jax.vjp(lambda *args: batch_norm(*args, relu=relu)[0], *args)
    theirs = functools.partial(flax_norm, relu=relu)
    expected, their_pull = jax.vjp(lambda *args: theirs(*args, *more), *args)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=2e-5)
    close(y, expected)
    for ours, reference in zip(pull(grads), their_pull(grads), strict=True):
        close(ours, reference)
    _, mean, variance = batch_norm(*args, relu=relu)
    close(mean, x.reshape(shape[0], -1).mean(1))
    close(variance, x.reshape(shape[0], -1).var(1))


def test_nan_goes_through(engine):
    x = jnp.ones((2, 1, 1, 20)).at[1, 0, 0, 3].set(jnp.nan)
    y, mean, _ = batch_norm(x, jnp.ones(2), jnp.zeros(2), relu=True)
    assert np.isnan(y[1]).all() and np.isnan(mean[1])
    assert not np.isnan(y[0]).any()
