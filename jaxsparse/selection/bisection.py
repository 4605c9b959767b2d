"""The k largest scores without sorting: bisection on the bits of the scores, in XLA.

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
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxsparse.counting import count_true
from jaxsparse.selection.brackets import Rows, first_rows, make_bracket, narrow, spread, take_row
from jaxsparse.selection.ties import index_hash
from jaxsparse.types import Candidates

CANDIDATES = 7
"""Thresholds that one pass counts: more of them cost arithmetic, fewer cost passes."""

# As ordered integers; NaN takes the place below -inf (0x007FFFFF).
_NAN, _INF = np.uint32(0x007FFFFE), np.uint32(0xFF800000)
_NUM_HASHES = np.uint32(1 << 31)


def bisect(
    compute: Callable[[Any], list[jax.Array]],
    inputs: Any,
    wanted: jax.Array,
    candidates: Candidates,
    *,
    together: bool,
) -> tuple[list[jax.Array], jax.Array]:
    """Returns masks of the largest scores, one of each leaf, and int32[leaves], how many are NaN.

    Args:
      compute: inputs -> float arrays, one of each leaf; called at every pass.
      inputs: a pytree of arrays.
      wanted: int32[leaves], or int32[1] where leaves compete; cut to the number of candidates.
      candidates: what to choose from.
      together: whether the leaves compete.
    """
    kinds = jax.eval_shape(compute, inputs)
    sizes = [kind.size for kind in kinds]
    eligible, num_eligible = _not_given(candidates, sizes)
    starts = np.cumsum([0, *sizes], dtype=np.uint32)[:-1]
    entries = _Entries(compute, inputs, eligible, starts if together else np.zeros_like(starts))
    joined = _added_up if together else lambda counts: counts
    wanted = jnp.clip(wanted, 0, joined(num_eligible))

    # The first pass counts the numbers, too: what is eligible and does not reach -inf is NaN.
    bracket = make_bracket(wanted, _NAN, _INF + np.uint32(1), joined(num_eligible))
    tried = spread(bracket, CANDIDATES).at[:, 0].set(_NAN + np.uint32(1))
    count = functools.partial(_num_reaching, entries)
    found = narrow(count, joined, wanted, bracket, tried, first_rows(len(sizes)))
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
    if candidates.given is not None:
        masks = [mask | given for mask, given in zip(masks, candidates.given, strict=True)]
    return masks, num_nan


class _Entries(NamedTuple):
    """What is selected from.

    Attributes:
      compute: inputs to scores, one array of each leaf.
      inputs: what the scores are computed from.
      eligible: bool arrays, or None.
      starts: uint32[leaves], where each leaf starts in the order of indices that cuts ties.
    """

    compute: Callable[[Any], list[jax.Array]]
    inputs: Any
    eligible: list[jax.Array] | None
    starts: np.ndarray


def _not_given(
    candidates: Candidates, sizes: list[int]
) -> tuple[list[jax.Array] | None, jax.Array]:
    """Where each leaf has candidates, None for everywhere; and int32[leaves], how many."""
    eligible, given, num = candidates
    if given is not None:
        allowed = eligible or [jnp.ones(mask.shape, bool) for mask in given]
        eligible = [a & ~b for a, b in zip(allowed, given, strict=True)]
    if num is not None:
        return eligible, num
    if eligible is None:
        return None, jnp.asarray(sizes, jnp.int32)
    return eligible, jnp.stack([count_true(mask)[0] for mask in eligible])


def _num_reaching(entries: _Entries, candidates: jax.Array, rows: Rows) -> jax.Array:
    """int32[leaves, n]: eligible scores that are at least the candidate."""
    # Without the barrier the compiler hoists the scores out of the search, and stores them.
    limits, inputs, eligible = lax.optimization_barrier(
        (_to_float(candidates), entries.inputs, entries.eligible)
    )
    leaves = _leaves(entries.compute(inputs), eligible)
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
    leaves = _leaves(entries.compute(inputs), eligible)
    for row, (x, mask) in zip(rows, leaves, strict=True):
        yield x, mask, starts, row


def _leaves(
    scores: list[jax.Array], eligible: list[jax.Array] | None
) -> Iterator[tuple[jax.Array, jax.Array]]:
    """By leaf: scores in float32, and where they are eligible."""
    for i, x in enumerate(scores):
        yield x.astype(jnp.float32), jnp.ones(x.shape, bool) if eligible is None else eligible[i]


def _added_up(counts: jax.Array) -> jax.Array:
    """int32[leaves, ...]: in every row the sum over the leaves."""
    return jnp.broadcast_to(counts.sum(0, jnp.int32), counts.shape)


def _stacked(counts: list[tuple[jax.Array, ...]]) -> jax.Array:
    """int32[leaves, n]: n counts per leaf."""
    # One concatenation: small operations by leaf take longer to compile than the counting.
    return jnp.stack([count for leaf in counts for count in leaf]).reshape(len(counts), -1)


def _to_float(ordered: jax.Array) -> jax.Array:
    """The float32 at a place in the order; NaN, which nothing reaches, below -inf and above inf."""
    positive = ordered >> 31 == 1
    bits = jnp.where(positive, ordered ^ np.uint32(1 << 31), ~ordered)
    return lax.bitcast_convert_type(bits, jnp.float32)
