"""The best n of every group of m, by comparing each entry with the m of its group: no sort.

An entry is among the best n if fewer than n others beat it. m is small, so this count is a few
comparisons that XLA fuses. No two entries tie, so every group has exactly n winners.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxsparse.selection.ties import index_hash
from jaxsparse.types import Groups
from jaxsparse.units import joined, n_and_m, split_into


def best_in_groups(scores: jax.Array, groups: Groups, first: jax.Array | None = None) -> jax.Array:
    """Returns True at the `groups.num_active` largest scores of every group.

    Args:
      scores: float[leaf]; compared in float32, -0 equals 0, NaN orders last. Ties are cut by a hash
        of the index.
      groups: of an N:M pattern, along one axis.
      first: bool[leaf], entries that go before all others, by score among themselves. None if only
        the score counts.

    Returns:
      bool[leaf], exactly `num_active` True in every group.

    >>> import jax.numpy as jnp
    >>> pairs = Groups("1:2", split=(2, 2), axes=(1,), num_active=1)
    >>> best_in_groups(jnp.array([3.0, 1.0, jnp.nan, -2.0]), pairs)
    Array([ True, False, False,  True], dtype=bool)
    """
    (axis,), (n, m) = groups.axes, n_and_m(groups)
    # As in a dictionary: a later key decides between entries whose earlier keys are equal.
    keys = [_ordered(scores.astype(jnp.float32)), index_hash(scores.shape, np.uint32(0))]
    if first is not None:
        keys.insert(0, first.astype(jnp.int32))
    keys = [split_into(groups, key) for key in keys]
    num_better = jnp.zeros_like(keys[0], jnp.int32)
    for i in range(m):
        ith = [lax.slice_in_dim(key, i, i + 1, axis=axis) for key in keys]
        num_better += _beats(ith, keys).astype(jnp.int32)
    return joined(num_better < n, scores)


def _beats(a: list[jax.Array], b: list[jax.Array]) -> jax.Array:
    """Whether a is larger than b in the first key in which they differ."""
    beats = a[-1] > b[-1]
    for x, y in zip(reversed(a[:-1]), reversed(b[:-1]), strict=True):
        beats = (x > y) | ((x == y) & beats)
    return beats


def _ordered(x: jax.Array) -> jax.Array:
    """Returns int32 in the order of the floats, NaN below all of them."""
    bits = lax.bitcast_convert_type(jnp.where(x == 0, 0.0, x), jnp.int32)
    bits = jnp.where(bits < 0, bits ^ np.int32(0x7FFFFFFF), bits)
    return jnp.where(x != x, np.int32(-(2**31)), bits)
