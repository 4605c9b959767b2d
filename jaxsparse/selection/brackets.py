"""The k-th largest of many integers, found by counting, for all leaves in one loop.

A bracket is a pair of integers: at least k entries reach (>=) its low end, and fewer than k reach
its high end, so the k-th largest entry lies between them. A pass counts how many entries reach each
of a few candidates inside the bracket, and the bracket shrinks to the two neighbours between which
the count falls below k.

For example, let k be 2 and the entries 9, 7, 4 and 2. The bracket starts at [0, 16).

    pass  candidates  counts   new bracket  reach its low end
    1     4, 8, 12    3, 1, 0  [4, 8)       3
    2     5, 6, 7     2, 2, 2  [7, 8)       2, which is k: the entries that reach 7 are the best 2

Nothing here knows what the entries are: a function that counts is given. Every leaf has a bracket
of its own. If the leaves compete, their counts are added up, and their brackets stay equal.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Rows: TypeAlias = tuple[jax.Array, ...]
"""int32[] for each leaf, its row in tables of one row a leaf; from `first_rows`."""


class Bracket(NamedTuple):
    """Two integers around the k-th largest entry; if k is 0, both are the high end.

    Attributes:
      low: uint32[leaves], which at least k entries reach.
      high: uint32[leaves], which fewer than k entries reach.
      num_low: int32[leaves], the number of entries that reach the low end.
      num_high: int32[leaves], the number of entries that reach the high end.
    """

    low: jax.Array
    high: jax.Array
    num_low: jax.Array
    num_high: jax.Array


class Narrowing(NamedTuple):
    """The state of the loop.

    Attributes:
      bracket: as narrow as the passes so far have made it.
      candidates: uint32[leaves, n], rising: the integers that the next pass counts.
      num_first: int32[leaves], how many entries of the leaf reached the first candidate of the
        first pass; -1 before that pass.
      rows: of the leaves.
    """

    bracket: Bracket
    candidates: jax.Array
    num_first: jax.Array
    rows: Rows


def first_rows(num_leaves: int) -> Rows:
    """Returns 0, 1, 2, ... for `take_row`, hidden from the compiler.

    XLA compiles one kernel for all leaves of a shape if nothing in it says which leaf it is for. An
    index that is a constant would say so; hence the rows travel through the loops as variables.
    RigL on the 54 leaves of ResNet-50 then has 256 kernels in place of 418.
    """
    return tuple(lax.optimization_barrier([np.int32(row) for row in range(num_leaves)]))


def take_row(table: jax.Array, row: jax.Array) -> jax.Array:
    """Returns table[row]."""
    return lax.dynamic_index_in_dim(table, row, keepdims=False)


def make_bracket(k: jax.Array, low: np.uint32, high: np.uint32, num_low: jax.Array) -> Bracket:
    """Returns the bracket to begin with.

    Args:
      k: int32[leaves], at least 0.
      low: reached by num_low entries, at least k.
      high: reached by no entry.
      num_low: int32[leaves].
    """
    full = lambda value: jnp.full(k.shape, value, jnp.uint32)
    low_end = jnp.where(k == 0, full(high), full(low))
    return Bracket(low_end, full(high), jnp.where(k == 0, 0, num_low), jnp.zeros_like(k))


def spread(bracket: Bracket, num_candidates: int) -> jax.Array:
    """Returns candidates that cut each bracket into equal parts: uint32[leaves, n], rising.

    In a bracket of fewer integers than parts the last candidates are its high end. A bracket is at
    most 2**32 - 1 - n wide.

    >>> one = lambda x: jnp.array([x], jnp.uint32)
    >>> spread(Bracket(one(0), one(16), one(4), one(0)), 3).tolist()
    [[4, 8, 12]]
    """
    low, high, n = bracket.low, bracket.high, num_candidates
    step = (high - low + np.uint32(n)) // np.uint32(n + 1)
    ranks = jnp.arange(1, n + 1, dtype=jnp.uint32)
    return jnp.minimum(low[:, None] + step[:, None] * ranks[None, :], high[:, None])


def narrow(
    count: Callable[[jax.Array, Rows], jax.Array],
    add_up: Callable[[jax.Array], jax.Array],
    k: jax.Array,
    bracket: Bracket,
    candidates: jax.Array,
    rows: Rows,
) -> Narrowing:
    """Narrows brackets until exactly k entries reach the low end, or one integer is left in them.

    In the second case that integer, the low end, is the k-th largest entry, and others tie with it.

    Args:
      count: (uint32[leaves, n], rows) -> int32[leaves, n], how many entries of each leaf reach each
        of its candidates.
      add_up: int32[leaves, n] -> the same, counts added up over the leaves that compete.
      k: int32[leaves].
      bracket: from `make_bracket`.
      candidates: of the first pass, which is always made: uint32[leaves, n], rising, from `spread`
        or others. A pass with n candidates leaves 1 / (n + 1) of a bracket.
      rows: of the leaves.

    Returns:
      The state at the end. What follows has to take its rows from there.

    >>> entries = jnp.array([[9, 7, 4, 2]], jnp.uint32)
    >>> reach = lambda candidates: entries[:, :, None] >= candidates[:, None, :]
    >>> count = lambda candidates, rows: reach(candidates).sum(1, dtype=jnp.int32)
    >>> k = jnp.array([2])
    >>> bracket = make_bracket(k, np.uint32(0), np.uint32(16), jnp.array([4]))
    >>> found = narrow(count, lambda n: n, k, bracket, spread(bracket, 3), first_rows(1)).bracket
    >>> found.low.tolist(), found.num_low.tolist()
    ([7], [2])
    """

    def is_open(state: Narrowing) -> jax.Array:
        return (state.num_first < 0).any() | ~_done(state.bracket, k).all()

    def body(state: Narrowing) -> Narrowing:
        rows = lax.optimization_barrier(state.rows)
        counts = count(state.candidates, rows)
        bracket = _narrowed(state.bracket, state.candidates, add_up(counts), k)
        num_first = jnp.where(state.num_first < 0, counts[:, 0], state.num_first)
        return Narrowing(bracket, spread(bracket, candidates.shape[1]), num_first, rows)

    unknown = jnp.full(len(rows), -1, jnp.int32)
    return lax.while_loop(is_open, body, Narrowing(bracket, candidates, unknown, rows))


def _narrowed(bracket: Bracket, candidates: jax.Array, counts: jax.Array, k: jax.Array) -> Bracket:
    """Returns the part of each bracket, between two neighbours, that has the k-th largest entry."""
    low, high, num_low, num_high = bracket
    # Counts fall along a row, so the last candidate that k entries reach is the new low end.
    ends = jnp.concatenate([low[:, None], candidates, high[:, None]], 1)
    counts = jnp.concatenate([num_low[:, None], counts, num_high[:, None]], 1)
    last = (counts[:, 1:-1] >= k[:, None]).sum(1, dtype=jnp.int32)
    at = lambda table, index: jnp.take_along_axis(table, index[:, None], 1)[:, 0]
    moved = Bracket(at(ends, last), at(ends, last + 1), at(counts, last), at(counts, last + 1))
    done = _done(bracket, k)
    return jax.tree.map(lambda old, new: jnp.where(done, old, new), bracket, moved)


def _done(bracket: Bracket, k: jax.Array) -> jax.Array:
    return (bracket.num_low == k) | (bracket.high - bracket.low <= 1)
