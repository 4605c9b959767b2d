"""The merge of layer, norm and compactor into one layer, against the three one after another."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxsparse.structured import BatchNorm, kept_rows, merge_compactor

IMAGES = jax.random.normal(jax.random.key(9), (2, 8, 8, 2))


def trained_matrix(size, seed, dead=1e-7):
    """A compactor late in training: near the identity, every third row nearly 0."""
    matrix = np.eye(size) + 0.1 * np.random.default_rng(seed).normal(size=(size, size))
    matrix[:, 1::3] *= dead / np.linalg.norm(matrix[:, 1::3], axis=0, keepdims=True)
    return jnp.asarray(matrix, jnp.float32)


def test_a_dense_layer_with_a_bias_and_no_norm(key):
    kernel, bias, x = (jax.random.normal(key, shape) for shape in ((4, 6), (1, 6), (3, 4)))
    matrix = trained_matrix(6, 0, dead=0.0)
    keep = kept_rows(matrix)
    merged, new_bias = merge_compactor(kernel, None, matrix, keep, bias=bias[0])
    expected = (x @ kernel + bias) @ matrix
    np.testing.assert_allclose(x @ merged + new_bias[None], expected[:, keep], atol=1e-5)


@pytest.mark.parametrize("epsilon", [1e-5, 0.5])
def test_the_merge_of_three_layers(epsilon, key):
    """Convolution, norm and compactor one after another, against the one convolution."""
    kernel, matrix = jax.random.normal(key, (3, 3, 2, 6)), trained_matrix(6, 0, dead=0.0)
    norm = BatchNorm(*(0.5 + jax.random.uniform(k, (6,)) for k in jax.random.split(key, 4)))
    norm = norm._replace(epsilon=epsilon)
    keep = kept_rows(matrix)
    assert keep.tolist() == [True, False, True, True, False, True]

    def conv(k):
        numbers = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(IMAGES, k, (1, 1), "SAME", dimension_numbers=numbers)

    scale, shift, mean, var = (np.asarray(x, np.float64) for x in norm[:4])
    y = (np.asarray(conv(kernel), np.float64) - mean) / np.sqrt(var + epsilon)
    expected = (y * scale + shift) @ np.asarray(matrix, np.float64)
    merged, bias = merge_compactor(kernel, norm, matrix, keep)
    found = conv(merged) + bias[None, None, None]
    np.testing.assert_allclose(found, expected[..., keep], atol=2e-5)
    assert not expected[..., ~keep].any()
    half = merge_compactor(kernel.astype(jnp.bfloat16), norm, matrix, keep)
    assert half[0].dtype == half[1].dtype == jnp.bfloat16


def test_the_largest_row_stays():
    assert kept_rows(np.diag([1e-7, 3e-7, 2e-7])).tolist() == [False, True, False]
    assert kept_rows(np.diag([1e-5, 0.9e-5, 1.0])).tolist() == [True, False, True]


@pytest.mark.parametrize(
    ("size", "matrix", "keep", "message"),
    [
        (3, jnp.eye(2), [True] * 2, r"the kernel has 3 features, the compactor the shape \(2, 2\)"),
        (2, jnp.eye(2), [True] * 3, r"the compactor the shape \(2, 2\) and keep \(3,\)"),
        (2, jnp.eye(2), [False] * 2, "no row of the compactor stays; keep one at least"),
    ],
)
def test_what_is_refused(size, matrix, keep, message):
    norm = BatchNorm(*[jnp.ones(size)] * 4)
    with pytest.raises(ValueError, match=message):
        merge_compactor(jnp.ones((2, size)), norm, matrix, np.array(keep))
