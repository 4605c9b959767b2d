"""Images to their places among 16 and back: arrays of any order, with floats that nothing reads."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.engine.agreement import assert_agree, numbers

BATCHES = (33, 17, 16, 15, 9, 2, 1)


@pytest.mark.parametrize("size", [1, 3, 15, 16, 17, 40, 100])
def test_vectors(size):
    """Weights of most inputs are 0 in the second network, and outputs of the third are constant."""
    weights = numbers(size, 37)
    read = np.random.default_rng(size).random((size, 1)) < 0.4
    written = np.arange(37) % 3 > 0
    assert_agree(
        {
            "all": lambda x: x @ weights,
            "some are read": lambda x: jnp.tanh(x @ (weights * read)),
            "some are written": lambda x: x @ (weights * written) + 1,
        },
        numbers(33, size),
        batches=BATCHES,
    )


@pytest.mark.parametrize("shape", [(3, 3, 3), (5, 7, 1), (1, 18, 2), (4, 4, 20)])
def test_images(shape):
    """Small planes, so that images go together; as they come, and with channels first."""
    channels = shape[-1]
    kernel = numbers(3, 3, channels, 6)
    convolve = lambda x: jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    assert_agree(
        {
            "channels last": convolve,
            "channels first": lambda x: convolve(x).transpose(0, 3, 1, 2),
            "as they are": lambda x: x,
            "transposed": lambda x: 2 * x.transpose(0, 2, 1, 3),
        },
        numbers(33, *shape),
        batches=BATCHES,
    )
