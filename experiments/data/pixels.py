"""Pixels as networks take them, inside the jitted step."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp


def normalise(images: jax.Array, *, mean: Sequence[float], std: Sequence[float]) -> jax.Array:
    """Maps uint8[n, h, w, 3] pixels to float32 with mean 0 and deviation 1 in each channel.

    Args:
      images: uint8[n, h, w, 3].
      mean: of each channel over the training images, of pixels in [0, 1].
      std: their standard deviation.
    """
    of_channels = lambda values: jnp.asarray(values, jnp.float32)[None, None, None, :]
    return (images.astype(jnp.float32) / 255.0 - of_channels(mean)) / of_channels(std)
