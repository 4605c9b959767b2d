"""Exact top-k masks without sorting: bisection on the bits of the scores.

The k-th largest of n scores is found by counting how many scores reach a candidate. A float's bits,
flipped so that they order like the float, are a 32-bit integer; every pass over the scores tries
three candidates and settles two of those bits, and the search ends as soon as some candidate is
reached by exactly k scores. Ties at the threshold are cut by the same search over a bijective hash
of the element's index, so the count is always exact and does not depend on layout or devices.

Only counts are communicated: on a mesh the search compiles to all-reduces of a few integers, where
a sort would gather the scores.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxsparse.types import Counts, Leaves, Selected

_INELIGIBLE, _NAN = np.uint32(0), np.uint32(1)  # below the bits of every number


def top_k_mask(
    scores: jax.Array, k: int | jax.Array, eligible: jax.Array | None = None
) -> jax.Array:
    """Returns True at the k largest scores.

    Args:
      scores: float[shape]; compared in float32 (bfloat16 and float16 are exact in it), -0 equals 0,
        NaN orders last.
      k: int32[], cut to [0, number of eligible entries]; the mask has exactly that many True.
      eligible: bool[shape], an entry that is False never wins, whatever its score; None: all.

    Returns:
      bool[shape]. Ties are cut by a hash of the index, the same on every run and device.

    >>> import jax.numpy as jnp
    >>> top_k_mask(jnp.array([3.0, 1.0, jnp.nan, 2.0]), 2)
    Array([ True, False, False,  True], dtype=bool)
    >>> int(top_k_mask(jnp.zeros(10), 3).sum())
    3
    """
    return top_k({"": scores}, k, None if eligible is None else {"": eligible}).masks[""]


def top_k(scores: Leaves, k: int | jax.Array | Counts, eligible: Leaves | None = None) -> Selected:
    """Selects the k largest scores, over all leaves together or in each leaf.

    Args:
      scores: float arrays by path, as in `top_k_mask`.
      k: int32[]: over all leaves together; or int32[] by path: in each leaf. Cut to the number of
        eligible entries.
      eligible: bool arrays by path, or None.

    Returns:
      The masks, and the number of NaN scores among the eligible entries of each leaf.

    Raises:
      ValueError: a score that is not floating point, with its path, or more scores to compare with
        each other than int32 counts.
    """
    paths = list(scores)
    per_leaf = isinstance(k, Mapping)
    sizes = {path: scores[path].size for path in paths}
    for where, size in sizes.items() if per_leaf else [("", sum(sizes.values()))]:
        if size >= 2**31:
            raise ValueError(f"{size} scores{_of(where)} to choose from; at most {2**31 - 1} count")
    group = {path: i if per_leaf else 0 for i, path in enumerate(paths)}
    wanted = [k[path] for path in paths] if isinstance(k, Mapping) else [k]
    wanted = jnp.stack([jnp.asarray(count, jnp.int32) for count in wanted])

    def total(counts: dict[str, jax.Array]) -> jax.Array:
        """int32[leaves or 1, ...]: counts of the leaves, joined into their group."""
        stacked = jnp.stack([counts[path] for path in paths])
        return stacked if per_leaf else stacked.sum(0, jnp.int32, keepdims=True)

    bits = {}
    for path in paths:
        allowed = None if eligible is None else eligible[path]
        bits[path] = _ordered_bits(path, scores[path], allowed)
    present = {path: _count(bits[path], [_NAN, _NAN + 1]) for path in paths}
    wanted = jnp.clip(wanted, 0, total(present)[:, 0])

    def at_least(candidates: jax.Array) -> jax.Array:
        return total({p: _count(bits[p], list(candidates[group[p]])) for p in paths})

    threshold, reached = _largest_reached(at_least, wanted, jnp.zeros_like(wanted, bool))

    # Where more than k scores reach the threshold it is the exact k-th largest, and only the
    # entries that equal it are in question. The hash of an index is unique, so this ends exactly.
    offsets = np.cumsum([0] + [0 if per_leaf else sizes[p] for p in paths[:-1]])
    hashes = {p: _index_hash(scores[p].shape, int(o)) for p, o in zip(paths, offsets, strict=True)}
    ties = {p: bits[p] == threshold[group[p]] for p in paths}
    num_ties = total({p: ties[p].sum(dtype=jnp.int32) for p in paths})
    open_ties = jnp.where(reached == wanted, num_ties, wanted - (reached - num_ties))

    def ties_at_least(candidates: jax.Array) -> jax.Array:
        return total({p: _count(hashes[p], list(candidates[group[p]]), ties[p]) for p in paths})

    lowest, _ = _largest_reached(ties_at_least, open_ties, open_ties == num_ties)
    masks = {
        p: (bits[p] > threshold[group[p]]) | (ties[p] & (hashes[p] >= lowest[group[p]]))
        for p in paths
    }
    return Selected(masks, {p: present[p][0] - present[p][1] for p in paths})


def _largest_reached(
    at_least: Callable[[jax.Array], jax.Array], k: jax.Array, settled: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Finds, per group, a threshold that k entries reach, or the largest that more than k reach.

    Args:
      at_least: uint32[groups, 3] candidates to int32[groups, 3] counts of entries >= candidate.
      k: int32[groups].
      settled: bool[groups], True where there is nothing to search: threshold 0 will do.

    Returns:
      uint32[groups] thresholds, int32[groups] counts of entries that reach them.
    """

    def body(state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        shift, threshold, reached, settled = state
        steps = jnp.arange(1, 4, dtype=jnp.uint32)[None, :] << shift
        candidates = threshold[:, None] | steps
        counts = at_least(candidates)
        # Counts fall with the candidate, so the candidates that enough entries reach come first.
        enough = (counts >= k[:, None]).sum(1)
        found = jnp.take_along_axis(counts, jnp.maximum(enough - 1, 0)[:, None], 1)[:, 0]
        moved = threshold | (enough.astype(jnp.uint32) << shift)
        threshold = jnp.where(settled, threshold, moved)
        reached = jnp.where(settled | (enough == 0), reached, found)
        return shift - 2, threshold, reached, settled | (reached == k)

    def searching(state: tuple[jax.Array, ...]) -> jax.Array:
        shift, _, _, settled = state
        return (shift < 32) & ~settled.all()  # below 0 a uint32 wraps around

    unknown = jnp.full_like(k, jnp.iinfo(jnp.int32).max)
    start = (jnp.uint32(30), jnp.zeros(k.shape, jnp.uint32), unknown, settled)
    _, threshold, reached, _ = lax.while_loop(searching, body, start)
    return threshold, reached


def _ordered_bits(path: str, scores: jax.Array, eligible: jax.Array | None) -> jax.Array:
    """uint32 that order like the scores: ineligible < NaN < -inf < ... < inf."""
    if not jnp.issubdtype(scores.dtype, jnp.floating):
        raise ValueError(
            f"the scores{_of(path)} have dtype {scores.dtype}; they must be floating point"
        )
    x = scores.astype(jnp.float32)
    x = jnp.where(x == 0, jnp.float32(0), x)
    raw = lax.bitcast_convert_type(x, jnp.uint32)
    bits = jnp.where(raw >> 31 == 1, ~raw, raw | np.uint32(1 << 31))
    bits = jnp.where(jnp.isnan(x), _NAN, bits)
    return bits if eligible is None else jnp.where(eligible, bits, _INELIGIBLE)


def _of(path: str) -> str:
    return f" of {path}" if path else ""


def _count(values: jax.Array, candidates: list, among: jax.Array | None = None) -> jax.Array:
    """int32[candidates]: how many values reach each candidate, in one pass over the values."""
    hits = [values >= c if among is None else among & (values >= c) for c in candidates]
    ones = tuple(hit.astype(jnp.int32) for hit in hits)
    zeros = tuple(np.int32(0) for _ in hits)
    # One variadic reduction: on CPU, separate sums would each read the values again.
    counts = lax.reduce(ones, zeros, lambda a, b: tuple(map(lax.add, a, b)), range(values.ndim))
    return jnp.stack(counts)


def _index_hash(shape: tuple[int, ...], offset: int) -> jax.Array:
    """uint32[shape]: a bijective mix of offset + flat index (Wellons' lowbias32)."""
    x = jnp.full(shape, np.uint32(offset))
    stride = 1
    for axis in reversed(range(len(shape))):
        x = x + lax.broadcasted_iota(jnp.uint32, shape, axis) * np.uint32(stride)
        stride *= shape[axis]
    x = (x ^ (x >> 16)) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * np.uint32(0x846CA68B)
    return x ^ (x >> 16)
