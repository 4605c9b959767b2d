"""The larger of two lines against its definition, and its gradient against autodiff of that."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsparse.sparse import larger_line


def drawn(channels, pixels, images):
    rng = np.random.default_rng(0)
    normal = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    x = normal(channels, *pixels, images)
    return x, normal(channels, 4, images), normal(*x.shape)


def plain(x, coefficients):
    between = (slice(None), *(None,) * (x.ndim - 2))
    a, b, c, d = (coefficients[:, i][between] for i in range(4))
    return jnp.maximum(a * x + c, b * x + d)


@pytest.mark.parametrize("shape", [(3, (5, 5), 32), (2, (3, 4), 7), (4, (1, 1), 1), (2, (), 21)])
def test_outputs_and_gradients(shape, engine):
    x, coefficients, grads = drawn(*shape)
    found, pull = jax.vjp(larger_line, x, coefficients)
    expected, their_pull = jax.vjp(plain, x, coefficients)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
    for ours, theirs in zip(pull(grads), their_pull(grads), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def test_a_tie_is_the_seconds(engine):
    lines = jnp.zeros((2, 4, 20)).at[:, 0].set(1.0)  # ReLU
    x = jnp.zeros((2, 3, 20)).at[0].set(-1.0)
    grad_x, of_lines = jax.vjp(larger_line, x, lines)[1](jnp.ones(x.shape))
    np.testing.assert_array_equal(grad_x, 0)
    np.testing.assert_array_equal(of_lines[:, 2], 0)
    np.testing.assert_array_equal(of_lines[:, 3], 3)


def test_empty_images(engine):
    for shape in ((0, 3, 4), (2, 0, 4), (2, 3, 0)):
        x = jnp.zeros(shape)
        y, pull = jax.vjp(larger_line, x, jnp.ones((shape[0], 4, shape[-1])))
        assert y.shape == shape
        np.testing.assert_array_equal(pull(y)[1], 0)


def test_under_vmap(engine):
    x, coefficients, _ = drawn(2, (3,), 20)
    found = jax.vmap(larger_line)(jnp.stack([x, -x]), jnp.stack([coefficients] * 2))
    np.testing.assert_array_equal(found[1], larger_line(-x, coefficients))


@pytest.mark.parametrize(
    ("x", "coefficients", "complaint"),
    [
        (jnp.zeros(3), jnp.zeros((3, 4, 3)), r"x has shape \(3,\)"),
        (
            jnp.zeros((3, 5)),
            jnp.zeros((3, 5, 4)),
            r"must be \(3, 4, 5\)",
        ),
        (jnp.zeros((3, 5), jnp.bfloat16), jnp.zeros((3, 4, 5)), "x has dtype bfloat16"),
    ],
)
def test_wrong_arguments(x, coefficients, complaint):
    with pytest.raises(ValueError, match=complaint):
        larger_line(x, coefficients)
