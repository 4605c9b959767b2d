"""Cutting ties: by a hash of the entry's index, the same in every run, layout and device.

Among equal scores those with the largest hashes win. This spreads the winners evenly over a leaf;
taking the lowest indices would fill its first rows.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def index_hash(shape: tuple[int, ...], offset: jax.Array | np.uint32) -> jax.Array:
    """Returns a hash of offset + flat index for every entry: uint32[shape], below 2**31.

    No two entries have the same hash.

    Args:
      shape: of a leaf.
      offset: uint32[], the index of the leaf's first entry; offset + size is at most 2**31.

    >>> index_hash((3,), np.uint32(0)).tolist()
    [0, 1753845952, 713611802]
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
