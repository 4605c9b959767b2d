"""Layers whose sources do not fit in the nearest cache, and are added up a chunk at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.engine.agreement import compiled, difference, numbers

CHANNELS, OUT = 160, 8


def wide(x: jax.Array) -> jax.Array:
    """Two layers with branches, made of images [n, y, x, CHANNELS]."""
    rng = np.random.default_rng(0)
    first = numbers(3, 3, CHANNELS, OUT, seed=1) * (rng.random((3, 3, CHANNELS, OUT)) < 0.2)
    first[:, :, 40:120, 3] = 0  # a plane whose taps are in the chunks at both ends
    first[..., 5] = 0
    second = numbers(1, 1, OUT, CHANNELS, seed=2)
    convolve = lambda x, w: jax.lax.conv_general_dilated(
        x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    y = jnp.maximum(convolve(x, first) + 0.1, 0)
    z = jax.nn.gelu(convolve(x, first[:, ::-1])) - y
    return convolve(z, second) + x


@pytest.mark.parametrize("shape", [(4, 4), (9, 7), (14, 15)])
def test_as_jax_computes_it(shape):
    """Alone and among 16; the bits do not depend on the threads."""
    x = numbers(35, *shape, CHANNELS)
    want = jax.jit(wide)(x)
    for batch in (1, 3, 35):
        one, two = (compiled(wide, x, threads=n)((x[:batch],)) for n in (1, 2))
        assert difference(one, want[:batch]) < 1e-5
        np.testing.assert_array_equal(one, two)
