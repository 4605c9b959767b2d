"""A function on numbers with exponents is the function itself where floats can hold it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxsparse.tracing.scaled import run_scaled

X = jnp.asarray(np.random.default_rng(0).normal(size=(4, 6)), jnp.float32)

FUNCTIONS = {
    "sums": lambda x: x + 1e-3 - x[:1] * 3.0,
    "relu": lambda x: jax.nn.relu(x) * jax.nn.leaky_relu(x),
    "gelu": jax.nn.gelu,
    "softmax": jax.nn.softmax,
    "norm": lambda x: (x - x.mean(0, keepdims=True)) * lax.rsqrt(x.var(0, keepdims=True) + 1e-5),
    "division": lambda x: x / (1.0 + x**2) + jnp.sqrt(jnp.abs(x)) + jnp.square(x) * jnp.sign(x),
    "moves": lambda x: jnp.concatenate([x.T[::-1], jnp.pad(x, ((1, 1), (0, 0)))[:, :4]], 0)[2:9],
    "selects": lambda x: jnp.where(x > 0.3, x * 1e-6, jnp.clip(x, -0.5, 0.5)),
    "pooling": lambda x: lax.reduce_window(x, -jnp.inf, lax.max, (2, 2), (1, 1), "VALID"),
    "products": lambda x: (x @ x.T) @ (x * 1e-3),
    "loop": lambda x: lax.fori_loop(0, 3, lambda i, y: y * 0.5 + 1.0, x),
    "checkpointed": jax.checkpoint(lambda x: jnp.tanh(x) * x),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_values_and_gradients_are_those_of_the_function(name):
    function = FUNCTIONS[name]
    weights = jnp.linspace(-1.0, 2.0, jax.eval_shape(function, X).size)
    total = lambda x: (function(x).ravel() * weights).sum()
    closed = jax.make_jaxpr(total)(X)

    def scaled(x):
        (found,) = run_scaled(closed, [x])
        return found.mantissa, found.exponent

    (mantissa, exponent), gradient = jax.jit(jax.value_and_grad(scaled, has_aux=True))(X)
    power = 2.0 ** float(exponent)
    assert 0.5 <= abs(float(mantissa)) < 1.0
    assert float(mantissa) * power == pytest.approx(float(total(X)), rel=1e-5)
    np.testing.assert_allclose(gradient * power, jax.grad(total)(X), rtol=2e-4, atol=1e-5)


@pytest.mark.parametrize("scale", [1e30, 1e-30])
def test_a_chain_beyond_the_range_of_floats(scale):
    def chain(w):
        x = jnp.ones(())
        for i in range(8):
            x = jnp.maximum(x * w[i], 0.0) + 0.0
        return x

    (found,) = run_scaled(jax.make_jaxpr(chain)(jnp.ones(8)), [jnp.full(8, scale, jnp.float32)])
    log2 = np.log2(float(found.mantissa)) + int(found.exponent)
    assert log2 == pytest.approx(8 * np.log2(scale), rel=1e-5)


def test_zeros_hide_nothing():
    """A branch that is cut is 0, at any exponent, and the other one goes on."""
    tiny = lambda w: (w * w) * (w * w)

    def sum_of(w, zero):
        return (tiny(w) + tiny(zero) * 1e30 + jnp.zeros(3)).sum()

    args = (jnp.full(3, 1e-15, jnp.float32), jnp.zeros(3))
    (found,) = run_scaled(jax.make_jaxpr(sum_of)(*args), args)
    assert int(found.exponent) < -190 and float(found.mantissa) > 0.4


def test_all_zeros_are_zero():
    (found,) = run_scaled(jax.make_jaxpr(lambda x: x @ x)(jnp.ones(3)), [jnp.zeros(3)])
    assert float(found.mantissa) == 0.0
