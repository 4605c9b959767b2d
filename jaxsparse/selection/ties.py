"""How ties are cut: by a hash of the element's index, the same on every run, layout and device."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def index_hash(shape: tuple[int, ...], offset: jax.Array | np.uint32) -> jax.Array:
    """Returns uint32[shape] below 2**31, no two alike: a mix of offset + flat index.

    Args:
      shape: of a leaf.
      offset: uint32[], where the leaf starts; offset + size is at most 2**31.
    """
    x = jnp.full(shape, offset, jnp.uint32)
    stride = 1
    for axis in reversed(range(len(shape))):
        x = x + lax.broadcasted_iota(jnp.uint32, shape, axis) * np.uint32(stride)
        stride *= shape[axis]
    # Odd multipliers and right shifts are bijections of 31-bit integers (after Wellons' lowbias32).
    low31 = np.uint32(0x7FFFFFFF)
    x = ((x ^ (x >> 16)) * np.uint32(0x7FEB352D)) & low31
    x = ((x ^ (x >> 15)) * np.uint32(0x846CA68B)) & low31
    return x ^ (x >> 16)
