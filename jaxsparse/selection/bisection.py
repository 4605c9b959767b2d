"""The k largest scores without sorting: bisection on the bits of the scores, in XLA.

The k best scores are those that reach a threshold, and the threshold is found by counting how many
scores reach a candidate. Floats order like 32-bit integers (their bits, flipped if negative), so
the candidates are integers in a bracket that every pass over the scores narrows (see `brackets`).
Seven candidates leave an eighth of the bracket, hence 11 passes at most for 32 bits; the loop ends
as soon as exactly k scores reach one.

For example, the best 3 of 5.0, 2.0, 2.0, 2.0 and 1.0: any threshold up to 2.0 has 4 scores or more,
any above it 1 or none. The bracket ends with 2.0 alone in it. Now 5.0 is in, and 2 of the 3 scores
that tie at 2.0 are wanted. The same loop finds them among the hashes of their indices. No two
indices share a hash, so the count is always exact, and the choice does not depend on layout or
devices.

A pass keeps nothing but counts, and it computes `Scores` anew. Selecting therefore takes no memory
beside the masks, and on a mesh it communicates a few integers, where a sort would gather scores.
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
"""How many thresholds a pass tries: more of them cost arithmetic, fewer cost passes."""

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
    """Returns masks of the largest scores, and how many scores are NaN.

    Args:
      compute: inputs -> float arrays, one for each leaf; called in every pass.
      inputs: a pytree of arrays.
      wanted: int32[leaves], or int32[1] if leaves compete; cut to [0, number of candidates].
      candidates: the entries to choose from.
      together: whether the leaves compete.

    Returns:
      bool arrays, one for each leaf; and int32[leaves], NaN scores among the candidates.
    """
    kinds = jax.eval_shape(compute, inputs)
    sizes = [kind.size for kind in kinds]
    eligible, num_eligible = _not_given(candidates, sizes)
    starts = np.cumsum([0, *sizes], dtype=np.uint32)[:-1]
    entries = _Entries(compute, inputs, eligible, starts if together else np.zeros_like(starts))
    add_up = _added_up if together else lambda counts: counts
    wanted = jnp.clip(wanted, 0, add_up(num_eligible))

    # NaN takes the place below -inf. Trying the place above NaN in the first pass counts all scores
    # that are numbers, and the other candidates are NaN.
    bracket = make_bracket(wanted, _NAN, _INF + np.uint32(1), add_up(num_eligible))
    tried = spread(bracket, CANDIDATES).at[:, 0].set(_NAN + np.uint32(1))
    count = functools.partial(_num_reaching, entries)
    found = narrow(count, add_up, wanted, bracket, tried, first_rows(len(sizes)))
    num_nan = num_eligible - found.num_first

    # If more than k scores reach the low end, it is the k-th largest score. The scores above it are
    # in, and so are those at it whose hashes are largest. This rarely takes more than a pass or
    # none, so three candidates will do: more would cost time to compile.
    low, _, reached, above = found.bracket
    level = _to_float(jnp.minimum(low, _INF))
    num_tied = reached - above
    wanted_tied = jnp.where(reached == wanted, num_tied, wanted - above)
    bracket = make_bracket(wanted_tied, np.uint32(0), _NUM_HASHES, num_tied)
    count = functools.partial(_num_tied_reaching, entries, level)
    found = narrow(count, add_up, wanted_tied, bracket, spread(bracket, 3), found.rows)

    first, rows = found.bracket.low, found.rows
    masks = [_chosen(*leaf, level, first) for leaf in _leaves_again(entries, rows)]
    if candidates.given is not None:
        masks = [mask | given for mask, given in zip(masks, candidates.given, strict=True)]
    return masks, num_nan


class _Entries(NamedTuple):
    """The entries to select from.

    Attributes:
      compute: inputs -> scores, one array for each leaf.
      inputs: a pytree of arrays.
      eligible: bool arrays, one for each leaf; None if all entries are eligible.
      starts: uint32[leaves], the index of each leaf's first entry, whose hash cuts ties.
    """

    compute: Callable[[Any], list[jax.Array]]
    inputs: Any
    eligible: list[jax.Array] | None
    starts: np.ndarray


def _not_given(
    candidates: Candidates, sizes: list[int]
) -> tuple[list[jax.Array] | None, jax.Array]:
    """Returns where each leaf has candidates, None if everywhere, and int32[leaves], how many."""
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
    """Counts the eligible scores that are at least the candidate: int32[leaves, n]."""
    # Without the barrier the compiler hoists the scores out of the loop, and stores them.
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
    """Counts the scores at the level whose hash is at least the candidate: int32[leaves, n]."""
    leaves = _leaves_again(entries, rows)
    return _stacked([_count_tied_reaching(*leaf, level, candidates) for leaf in leaves])


# These functions of one leaf are traced once for all leaves of a shape.


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
    """Returns which entries of a leaf are above the level, which are at it, and all hashes."""
    at = take_row(level, row)
    nan = jnp.isnan(at)
    over = (x > at) | (nan & (x == x))  # every number is above NaN
    tied = (x == at) | (nan & (x != x))
    return mask & over, mask & tied, index_hash(x.shape, take_row(starts, row))


def _leaves_again(entries: _Entries, rows: Rows) -> Iterator[tuple[jax.Array, ...]]:
    """Yields, for each leaf, float32 scores, where they are eligible, the starts, and the row."""
    # The barrier depends on the rows, else it would leave the loop, and the hashes be stored.
    rows, inputs, eligible, starts = lax.optimization_barrier(
        (rows, entries.inputs, entries.eligible, entries.starts)
    )
    leaves = _leaves(entries.compute(inputs), eligible)
    for row, (x, mask) in zip(rows, leaves, strict=True):
        yield x, mask, starts, row


def _leaves(
    scores: list[jax.Array], eligible: list[jax.Array] | None
) -> Iterator[tuple[jax.Array, jax.Array]]:
    """Yields, for each leaf, scores in float32 and where they are eligible."""
    for i, x in enumerate(scores):
        yield x.astype(jnp.float32), jnp.ones(x.shape, bool) if eligible is None else eligible[i]


def _added_up(counts: jax.Array) -> jax.Array:
    """Returns int32[leaves, ...], the sum over all leaves in every row."""
    return jnp.broadcast_to(counts.sum(0, jnp.int32), counts.shape)


def _stacked(counts: list[tuple[jax.Array, ...]]) -> jax.Array:
    """Returns n counts of each leaf as one array: int32[leaves, n]."""
    # One concatenation: small operations by leaf take longer to compile than the counting.
    return jnp.stack([count for leaf in counts for count in leaf]).reshape(len(counts), -1)


def _to_float(ordered: jax.Array) -> jax.Array:
    """Returns the float32 at a place in the order.

    Places below that of -inf and above that of inf are NaN, which no score reaches.
    """
    positive = ordered >> 31 == 1
    bits = jnp.where(positive, ordered ^ np.uint32(1 << 31), ~ordered)
    return lax.bitcast_convert_type(bits, jnp.float32)
