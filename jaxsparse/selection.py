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

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxsparse.counting import count_true
from jaxsparse.search import Rows, first_rows, make_bracket, narrow, spread, take_row
from jaxsparse.ties import index_hash
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
    scores: Leaves | Scores,
    k: int | jax.Array | Counts,
    eligible: Leaves | None = None,
    *,
    num_eligible: jax.Array | None = None,
) -> Selected:
    """Selects the k largest scores, over all leaves together or in each leaf.

    Args:
      scores: float arrays by path, as in `top_k_mask`, or how to compute them.
      k: int32[]: over all leaves together; or int32[] by path: in each leaf. Cut to the number of
        eligible entries.
      eligible: bool arrays by path, or None.
      num_eligible: int32[leaves], the number of True in each where it is known already, in the
        order of `eligible`.

    Returns:
      The masks, and the number of NaN scores among the eligible entries of each leaf; in the order
      of `eligible` if given, else of `scores` (those of `Scores` are sorted by path).

    Raises:
      ValueError: a score that is not floating point, a k that is no integer, an eligible that is no
        mask of the scores, with its path, or more scores to compare than int32 counts.
    """
    inputs, compute = scores if isinstance(scores, Scores) else Scores(scores, lambda x: x)
    kinds = jax.eval_shape(compute, inputs)
    _check_scores(kinds, eligible)
    _check_counts(kinds, k)
    paths = _in_order(kinds, scores, eligible)
    sizes = [kinds[path].size for path in paths]
    entries = _Entries(paths, inputs, compute, eligible, _starts(sizes, k))
    joined = (lambda counts: counts) if isinstance(k, Mapping) else _added_up

    if num_eligible is None:
        num_eligible = _num_eligible(sizes, paths, eligible)
    wanted = [k[path] if isinstance(k, Mapping) else k for path in paths]
    wanted = jnp.stack([jnp.asarray(count, jnp.int32) for count in wanted])
    wanted = jnp.clip(wanted, 0, joined(num_eligible))

    # The first pass counts the numbers, too: what is eligible and does not reach -inf is NaN.
    bracket = make_bracket(wanted, _NAN, _INF + np.uint32(1), joined(num_eligible))
    candidates = spread(bracket, CANDIDATES).at[:, 0].set(_NAN + np.uint32(1))
    count = functools.partial(_num_reaching, entries)
    found = narrow(count, joined, wanted, bracket, candidates, first_rows(len(paths)))
    num_nan = num_eligible - found.num_first

    # Where more than k scores reach the low end, it is the k-th largest score: those above it are
    # in, and of those that equal it the ones with the largest hashes. Rarely more than a pass or
    # none, so few candidates: they cost time to compile.
    low, _, reached, above = found.bracket
    level = _to_float(jnp.minimum(low, _INF))
    num_tied = reached - above
    wanted_tied = jnp.where(reached == wanted, num_tied, wanted - above)
    bracket = make_bracket(wanted_tied, np.uint32(0), _NUM_HASHES, num_tied)
    count = functools.partial(_num_tied_reaching, entries, level)
    found = narrow(count, joined, wanted_tied, bracket, spread(bracket, 3), found.rows)

    first, rows = found.bracket.low, found.rows
    masks = [_chosen(*leaf, level, first) for leaf in _leaves_again(entries, rows)]
    return Selected(dict(zip(paths, masks, strict=True)), num_nan)


class _Entries(NamedTuple):
    """What is selected from.

    Attributes:
      paths: of the leaves.
      inputs: what the scores are computed from.
      compute: inputs to scores by path.
      eligible: bool arrays by path, or None.
      starts: uint32[leaves], where each leaf starts in the order of indices that cuts ties.
    """

    paths: list[str]
    inputs: Any
    compute: Callable[[Any], Leaves]
    eligible: Leaves | None
    starts: np.ndarray


def _num_reaching(entries: _Entries, candidates: jax.Array, rows: Rows) -> jax.Array:
    """int32[leaves, n]: eligible scores that are at least the candidate."""
    # Without the barrier the compiler hoists the scores out of the search, and stores them.
    limits, inputs, eligible = lax.optimization_barrier(
        (_to_float(candidates), entries.inputs, entries.eligible)
    )
    leaves = _leaves(entries.paths, entries.compute(inputs), eligible)
    return _stacked(
        [_count_reaching(*leaf, limits, row) for leaf, row in zip(leaves, rows, strict=True)]
    )


def _num_tied_reaching(
    entries: _Entries, level: jax.Array, candidates: jax.Array, rows: Rows
) -> jax.Array:
    """int32[leaves, n]: scores at the level whose hash is at least the candidate."""
    leaves = _leaves_again(entries, rows)
    return _stacked([_count_tied_reaching(*leaf, level, candidates) for leaf in leaves])


# What is done leaf by leaf is traced once for all leaves of a shape.


@jax.jit
def _count_reaching(
    x: jax.Array, mask: jax.Array, limits: jax.Array, row: jax.Array
) -> tuple[jax.Array, ...]:
    # `where(mask, x, nan) >= limit` would be as good, and four times slower on CPU.
    return count_true(*(mask & (x >= limit) for limit in take_row(limits, row)))


@jax.jit
def _count_tied_reaching(
    x: jax.Array,
    mask: jax.Array,
    starts: jax.Array,
    row: jax.Array,
    level: jax.Array,
    candidates: jax.Array,
) -> tuple[jax.Array, ...]:
    _, tied, index = _split(x, mask, starts, row, level)
    return count_true(*(tied & (index >= limit) for limit in take_row(candidates, row)))


@jax.jit
def _chosen(
    x: jax.Array,
    mask: jax.Array,
    starts: jax.Array,
    row: jax.Array,
    level: jax.Array,
    first: jax.Array,
) -> jax.Array:
    over, tied, index = _split(x, mask, starts, row, level)
    return over | (tied & (index >= take_row(first, row)))


def _split(
    x: jax.Array, mask: jax.Array, starts: jax.Array, row: jax.Array, level: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Of one leaf: which entries are above the level, which are at it, the hashes of all."""
    at = take_row(level, row)
    nan = jnp.isnan(at)
    over = (x > at) | (nan & (x == x))  # every number is above NaN
    tied = (x == at) | (nan & (x != x))
    return mask & over, mask & tied, index_hash(x.shape, take_row(starts, row))


def _leaves_again(entries: _Entries, rows: Rows) -> Iterator[tuple[jax.Array, ...]]:
    """By leaf: scores in float32, where they are eligible, starts, and the row."""
    # The barrier depends on the rows, else it leaves the search, and the hashes are stored.
    rows, inputs, eligible, starts = lax.optimization_barrier(
        (rows, entries.inputs, entries.eligible, entries.starts)
    )
    leaves = _leaves(entries.paths, entries.compute(inputs), eligible)
    for row, (x, mask) in zip(rows, leaves, strict=True):
        yield x, mask, starts, row


def _leaves(
    paths: list[str], scores: Leaves, eligible: Leaves | None
) -> Iterator[tuple[jax.Array, jax.Array]]:
    """By leaf: scores in float32, and where they are eligible."""
    for path in paths:
        x = scores[path].astype(jnp.float32)
        yield x, jnp.ones(x.shape, bool) if eligible is None else eligible[path]


def _starts(sizes: list[int], k: int | jax.Array | Counts) -> np.ndarray:
    """uint32[leaves]: 0 where each leaf is cut for itself, else the leaves one after the other."""
    ends = np.cumsum([0, *sizes], dtype=np.uint32)
    return np.zeros(len(sizes), np.uint32) if isinstance(k, Mapping) else ends[:-1]


def _added_up(counts: jax.Array) -> jax.Array:
    """int32[leaves, ...]: in every row the sum over the leaves."""
    return jnp.broadcast_to(counts.sum(0, jnp.int32), counts.shape)


def _num_eligible(sizes: list[int], paths: list[str], eligible: Leaves | None) -> jax.Array:
    """int32[leaves]."""
    if eligible is None:
        return jnp.asarray(sizes, jnp.int32)
    return jnp.stack([count_true(eligible[path])[0] for path in paths])


def _in_order(kinds: Leaves, scores: Leaves | Scores, eligible: Leaves | None) -> list[str]:
    """The paths in the caller's order: JAX hands dicts back sorted, 10/kernel before 2/kernel."""
    order = eligible if eligible is not None else kinds if isinstance(scores, Scores) else scores
    return [path for path in order if path in kinds]


def _stacked(counts: list[tuple[jax.Array, ...]]) -> jax.Array:
    """int32[leaves, n]: n counts per leaf."""
    # One concatenation: small operations by leaf take longer to compile than the counting.
    return jnp.stack([count for leaf in counts for count in leaf]).reshape(len(counts), -1)


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
