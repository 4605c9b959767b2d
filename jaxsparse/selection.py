"""Exact top-k masks without sorting: bisection on the bits of the scores.

The k-th largest of n scores is found by counting how many scores reach a candidate. Floats order
like 32-bit integers (their bits, flipped where negative), so this is a search over integers: a pass
over the scores tries seven candidates, which leaves an eighth of the bracket, and the search ends
as soon as exactly k scores reach one. Ties at the threshold are cut by the same search over a hash
of the element's index. No two elements share a hash, so the count is always exact, and the choice
does not depend on layout or devices.

A pass keeps nothing but counts, and `Scores` are computed again by every pass: selecting takes no
memory beside the masks, and on a mesh it communicates a few integers, where a sort would gather.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxsparse.counting import count_true
from jaxsparse.types import Counts, Leaves, Scores, Selected

CANDIDATES = 7
"""Thresholds that one pass counts: more of them cost arithmetic, fewer cost passes."""

# As ordered integers; NaN takes the place below -inf (0x007FFFFF).
_NAN, _INF = np.uint32(0x007FFFFE), np.uint32(0xFF800000)
_NUM_HASHES = np.uint32(1 << 31)


def top_k_mask(
    scores: jax.Array, k: int | jax.Array, eligible: jax.Array | None = None
) -> jax.Array:
    """Returns True at the k largest scores.

    Args:
      scores: float[shape]; compared in float32 (bfloat16 and float16 are exact in it), -0 equals 0,
        NaN orders last. Numbers below 2^-126 may count as 0, as devices flush them.
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


def top_k(
    scores: Leaves | Scores, k: int | jax.Array | Counts, eligible: Leaves | None = None
) -> Selected:
    """Selects the k largest scores, over all leaves together or in each leaf.

    Args:
      scores: float arrays by path, as in `top_k_mask`, or how to compute them.
      k: int32[]: over all leaves together; or int32[] by path: in each leaf. Cut to the number of
        eligible entries.
      eligible: bool arrays by path, or None.

    Returns:
      The masks, and the number of NaN scores among the eligible entries of each leaf.

    Raises:
      ValueError: a score that is not floating point, a k that is no integer, an eligible that is no
        mask of the scores, with its path, or more scores to compare than int32 counts.
    """
    inputs, compute = scores if isinstance(scores, Scores) else Scores(scores, lambda x: x)
    kinds = jax.eval_shape(compute, inputs)
    per_leaf = isinstance(k, Mapping)
    _check_scores(kinds, eligible)
    _check_counts(kinds, k)
    paths = list(kinds)
    leaves = lambda inputs, eligible: _leaves(paths, compute(inputs), eligible)
    joined = lambda counts: _joined(counts, per_leaf)
    group = [i if per_leaf else 0 for i in range(len(paths))]
    sizes = [0 if per_leaf else kinds[path].size for path in paths]
    offsets = np.cumsum([0, *sizes[:-1]], dtype=np.uint32)

    present = [count_true(mask, mask & (x != x)) for x, mask in leaves(inputs, eligible)]
    num_present = joined(present)[:, 0]
    wanted = [k[path] for path in paths] if isinstance(k, Mapping) else [k]
    wanted = jnp.stack([jnp.asarray(count, jnp.int32) for count in wanted])
    wanted = jnp.clip(wanted, 0, num_present)

    def num_reaching(candidates: jax.Array) -> jax.Array:
        # Without the barrier the compiler hoists the scores out of the search, and stores them.
        *now, limits = lax.optimization_barrier((inputs, eligible, _to_float(candidates)))
        # `where(mask, x, nan) >= limit` would be as good, and four times slower on CPU.
        reaching = lambda x, mask, i: count_true(*(mask & (x >= limit) for limit in limits[i]))
        return joined([reaching(*leaf, i) for i, leaf in zip(group, leaves(*now), strict=True)])

    low, high, reached, above = _narrow(
        num_reaching, wanted, _NAN, _INF + np.uint32(1), num_present, CANDIDATES
    )

    # Where more than k scores reach the low end, it is the k-th largest score: those above it are
    # in, and of those that equal it the ones with the largest hashes.
    level = _to_float(jnp.minimum(low, _INF))
    is_nan, num_tied = jnp.isnan(level), reached - above
    wanted_tied = jnp.where(reached == wanted, num_tied, wanted - above)

    def split(inputs: Any, eligible: Leaves | None, start: jax.Array) -> Iterator[_Split]:
        for i, (x, mask) in enumerate(leaves(inputs, eligible)):
            at, nan = level[group[i]], is_nan[group[i]]
            over = (x > at) | (nan & (x == x))  # every number is above NaN
            tied = (x == at) | (nan & (x != x))
            yield group[i], mask & over, mask & tied, _index_hash(x.shape, start[i])

    def num_tied_reaching(candidates: jax.Array) -> jax.Array:
        *now, limits = lax.optimization_barrier((inputs, eligible, offsets, candidates))
        reaching = lambda i, tied, index: count_true(*(tied & (index >= c) for c in limits[i]))
        return joined([reaching(i, tied, index) for i, _, tied, index in split(*now)])

    # Rarely more than a pass or none, so few candidates: they cost time to compile.
    first, *_ = _narrow(num_tied_reaching, wanted_tied, np.uint32(0), _NUM_HASHES, num_tied, 3)

    now = lax.optimization_barrier((inputs, eligible, offsets))  # else the hashes are stored
    masks = [over | (tied & (index >= first[i])) for i, over, tied, index in split(*now)]
    num_nan = [counts[1] for counts in present]
    return Selected(*(dict(zip(paths, column, strict=True)) for column in (masks, num_nan)))


_Split = tuple[int, jax.Array, jax.Array, jax.Array]
"""Of a leaf: its group, what is above the level, what is at it, and the hashes of the indices."""


def _leaves(
    paths: list[str], scores: Leaves, eligible: Leaves | None
) -> Iterator[tuple[jax.Array, jax.Array]]:
    """By leaf: scores in float32, and where they are eligible."""
    for path in paths:
        x = scores[path].astype(jnp.float32)
        yield x, jnp.ones(x.shape, bool) if eligible is None else eligible[path]


def _joined(counts: list[tuple[jax.Array, ...]], per_leaf: bool) -> jax.Array:
    """int32[groups, n]: n counts per leaf, added up where all leaves are one group."""
    # One concatenation: small operations by leaf take longer to compile than the counting.
    stacked = jnp.stack([count for leaf in counts for count in leaf]).reshape(len(counts), -1)
    return stacked if per_leaf else stacked.sum(0, jnp.int32, keepdims=True)


def _narrow(
    num_reaching: Callable[[jax.Array], jax.Array],
    k: jax.Array,
    low: np.uint32,
    high: np.uint32,
    num_low: jax.Array,
    num_candidates: int,
) -> tuple[jax.Array, ...]:
    """Narrows, per group, a bracket of integers around the k-th largest entry.

    At least k entries reach the low end, fewer than k the high end. Ends where exactly k reach the
    low end, or where the bracket holds one integer. Where k is 0 both ends are the high one.

    Args:
      num_reaching: uint32[groups, num_candidates] to int32[groups, num_candidates]: entries that
        are at least the candidate.
      k: int32[groups].
      low: to begin with, at most every entry.
      high: to begin with, more than every entry.
      num_low: int32[groups], the number of entries, at least k.
      num_candidates: how many a pass tries; it leaves 1 / (num_candidates + 1) of the bracket.

    Returns:
      uint32[groups] low and high, int32[groups] the number of entries that reach each.
    """

    def searching(state: tuple[jax.Array, ...]) -> jax.Array:
        low, high, num_low, _ = state
        return ((num_low != k) & (high - low > 1)).any()

    def body(state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        low, high, num_low, num_high = state
        step = (high - low + np.uint32(num_candidates)) // np.uint32(num_candidates + 1)
        ranks = jnp.arange(1, num_candidates + 1, dtype=jnp.uint32)
        candidates = jnp.minimum(low[:, None] + step[:, None] * ranks[None, :], high[:, None])
        counts = num_reaching(candidates)
        # Counts fall along the row: the new bracket lies where they fall below k.
        ends = jnp.concatenate([low[:, None], candidates, high[:, None]], 1)
        counts = jnp.concatenate([num_low[:, None], counts, num_high[:, None]], 1)
        last = (counts[:, 1:-1] >= k[:, None]).sum(1, dtype=jnp.int32)
        done = (num_low == k) | (high - low <= 1)
        at = lambda table, index: jnp.take_along_axis(table, index[:, None], 1)[:, 0]
        moved = (at(ends, last), at(ends, last + 1), at(counts, last), at(counts, last + 1))
        return jax.tree.map(lambda old, new: jnp.where(done, old, new), state, moved)

    full = lambda value: jnp.full(k.shape, value, jnp.uint32)
    none, zero = k == 0, jnp.zeros_like(k)
    state = (jnp.where(none, full(high), full(low)), full(high), jnp.where(none, 0, num_low), zero)
    return lax.while_loop(searching, body, state)


def _check_scores(scores: Mapping[str, jax.ShapeDtypeStruct], eligible: Leaves | None) -> None:
    if not scores:
        raise ValueError("there are no scores to select from")
    for path, x in scores.items():
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise ValueError(
                f"the scores{_of(path)} have dtype {x.dtype}; they must be floating point"
            )
        if eligible is not None:
            mask = eligible.get(path)
            if mask is None or np.shape(mask) != x.shape or jnp.result_type(mask) != jnp.bool_:
                kind = "missing" if mask is None else f"{jnp.result_type(mask)}{np.shape(mask)}"
                raise ValueError(f"eligible{_of(path)} is {kind}; it must be bool{x.shape}")


def _check_counts(scores: Mapping[str, jax.ShapeDtypeStruct], k: int | jax.Array | Counts) -> None:
    for path, count in k.items() if isinstance(k, Mapping) else [("", k)]:
        if np.shape(count) or not jnp.issubdtype(jnp.result_type(count), jnp.integer):
            raise ValueError(f"k{_of(path)} is {count}; it must be one integer")
        if isinstance(count, int) and abs(count) >= 2**31:
            raise ValueError(f"k{_of(path)} is {count}; it must be below {2**31}")
    if isinstance(k, Mapping) and k.keys() != scores.keys():
        raise ValueError(f"k counts {sorted(k)}, the scores are those of {sorted(scores)}")
    sizes = {path: x.size for path, x in scores.items()}
    for path, size in sizes.items() if isinstance(k, Mapping) else [("", sum(sizes.values()))]:
        if size >= 2**31:
            raise ValueError(f"{size} scores{_of(path)} to choose from; at most {2**31 - 1} count")


def _of(path: str) -> str:
    return f" of {path}" if path else ""


def _to_float(ordered: jax.Array) -> jax.Array:
    """The float32 at a place in the order; NaN, which nothing reaches, below -inf and above inf."""
    positive = ordered >> 31 == 1
    bits = jnp.where(positive, ordered ^ np.uint32(1 << 31), ~ordered)
    return lax.bitcast_convert_type(bits, jnp.float32)


def _index_hash(shape: tuple[int, ...], offset: int | jax.Array) -> jax.Array:
    """uint32[shape] below 2**31: a bijective mix of offset + flat index, itself below 2**31."""
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
