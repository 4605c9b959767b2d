"""Pruned activation gradients: unbiased, as sparse as the formula says; the queue of thresholds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsparse.structured.activation_gradients import (
    Probe,
    empty_queue,
    expected_zeros,
    no_probe,
    prune_gradient,
    push,
    stochastic_prune,
    threshold,
    threshold_of,
)

NUM = 200_000
prune = jax.jit(stochastic_prune)


@pytest.fixture(scope="module")
def normal():
    return 0.3 * jax.random.normal(jax.random.key(5), (NUM,))


@pytest.mark.parametrize(("rate", "zeros"), [(0.5, 0.26), (0.7, 0.38), (0.9, 0.54), (0.99, 0.69)])
def test_the_share_of_zeros_is_not_the_rate(normal, rate, zeros, key):
    tau = threshold_of(jnp.mean(jnp.abs(normal)), rate=rate)
    assert np.mean(np.abs(normal) < tau) == pytest.approx(rate, abs=0.005)
    found = float(np.mean(prune(normal, tau, key) == 0))
    assert found == pytest.approx(expected_zeros(rate), abs=0.01)
    assert expected_zeros(rate) == pytest.approx(zeros, abs=0.005)


def test_it_is_unbiased(key):
    """The mean of many draws of a few entries, in standard errors of that entry's own draw."""
    g, tau, draws = jnp.array([-0.9, -0.3, 0.01, 0.0, 0.5, 0.99]), jnp.float32(1.0), 20_000
    keys = jax.random.split(key, draws)
    found = np.asarray(jax.jit(jax.vmap(lambda k: stochastic_prune(g, tau, k)))(keys), np.float64)
    assert set(np.unique(found)) == {-1.0, 0.0, 1.0}
    error = np.sqrt(np.abs(g) * (1 - np.abs(g)) / draws)
    assert (np.abs(found.mean(axis=0) - np.asarray(g, np.float64)) <= 4 * error + 1e-12).all()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_large_entries_pass_and_0_prunes_nothing(normal, dtype, key):
    g = normal.astype(dtype)
    np.testing.assert_array_equal(prune(g, jnp.float32(0.0), key), g)
    tau = jnp.float32(0.25)
    found = prune(g, tau, key)
    large = np.abs(np.asarray(g, np.float32)) >= tau
    np.testing.assert_array_equal(found[large], g[large])
    assert found.dtype == dtype
    assert set(np.unique(np.abs(np.asarray(found[~large], np.float32)))) == {0.0, 0.25}


def test_a_network_sees_pruned_gradients_and_the_probe_tells(key):
    """y = w x behind the identity: the gradient of x is pruned, that of what follows is not."""
    x, w = jax.random.normal(key, (64, 32)), jax.random.normal(jax.random.key(1), (32, 32))
    tau = jnp.float32(40.0)

    @jax.jit
    def gradients(x, w, tau, key):
        loss = lambda x, w, probe: jnp.sum((prune_gradient(x, tau, key, probe) @ w) ** 2)
        return jax.value_and_grad(loss, argnums=(0, 1, 2))(x, w, no_probe())

    value, (of_x, of_w, seen) = gradients(x, w, tau, key)
    expected = 2 * (x @ w) @ w.T
    np.testing.assert_allclose(value, jnp.sum((x @ w) ** 2), rtol=1e-5)
    np.testing.assert_allclose(of_w, 2 * x.T @ (x @ w), rtol=1e-3, atol=1e-2)
    np.testing.assert_allclose(of_x, prune(expected, tau, key), rtol=1e-4, atol=1e-3)
    assert isinstance(seen, Probe)
    assert float(seen.mean_abs) == pytest.approx(float(jnp.mean(jnp.abs(expected))), rel=1e-4)
    assert float(seen.density) == pytest.approx(float(jnp.mean(of_x != 0)), abs=1e-6) != 1.0
    whole = gradients(x, w, jnp.float32(0.0), key)[1]
    np.testing.assert_allclose(whole[0], expected, rtol=1e-4, atol=1e-3)
    assert float(whole[2].density) == 1.0


def test_the_queue_holds_the_last_thresholds():
    """Thresholds of 1, 2, 3, 4 times a unit in a queue of three."""
    unit = float(threshold_of(jnp.float32(1.0), rate=0.9))
    queue = empty_queue(3)
    means = [float(threshold(queue))]
    for mean in (1.0, 2.0, 3.0, 4.0, np.nan, np.inf):
        queue = push(queue, jnp.float32(mean), rate=0.9)
        means.append(float(threshold(queue)) / unit)
    np.testing.assert_allclose(means, [0.0, 1.0, 1.5, 2.0, 3.0, 3.0, 3.0], rtol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: threshold_of(jnp.float32(1.0), rate=1.0), r"rate 1.0 must be in \[0, 1\)"),
        (lambda: expected_zeros(-0.1), r"rate -0.1 must be in \[0, 1\)"),
        (lambda: empty_queue(0), "length 0 must be a whole number of thresholds, at least 1"),
    ],
)
def test_what_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
