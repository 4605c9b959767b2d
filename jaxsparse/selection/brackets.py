"""The k-th largest of many integers, by counting: brackets narrowed in one loop for all leaves.

A search knows nothing of what it counts: it proposes candidates and is told how many entries reach
each. Every leaf has a bracket; where one search goes over all leaves together, theirs are equal.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Rows: TypeAlias = tuple[jax.Array, ...]
"""int32[] per leaf: its row in every table of the search, from `first_rows`."""


class Bracket(NamedTuple):
    """Around the k-th largest entry. Where k is 0 both ends are the high one.

    Attributes:
      low: uint32[leaves], reached by at least k entries.
      high: uint32[leaves], reached by fewer than k.
      num_low: int32[leaves], entries that reach the low end.
      num_high: int32[leaves], entries that reach the high end.
    """

    low: jax.Array
    high: jax.Array
    num_low: jax.Array
    num_high: jax.Array


class Search(NamedTuple):
    """The state of a search.

    Attributes:
      bracket: narrowed so far.
      candidates: uint32[leaves, n], rising: what the next pass counts.
      num_first: int32[leaves], the leaf's entries that reached the first candidate of the first
        pass; -1 before it.
      rows: of the leaves.
    """

    bracket: Bracket
    candidates: jax.Array
    num_first: jax.Array
    rows: Rows


def first_rows(num_leaves: int) -> Rows:
    """Returns 0, 1, 2, ... for `take_row`, hidden from the compiler.

    XLA compiles one kernel for all leaves of a shape as long as nothing in it says which leaf it is
    for. An index that is a constant would; so the rows travel through the loops as variables. (RigL
    on the 54 leaves of ResNet-50: 256 kernels in place of 418.)
    """
    return tuple(lax.optimization_barrier([np.int32(row) for row in range(num_leaves)]))


def take_row(table: jax.Array, row: jax.Array) -> jax.Array:
    """Returns table[row]."""
    return lax.dynamic_index_in_dim(table, row, keepdims=False)


def make_bracket(k: jax.Array, low: np.uint32, high: np.uint32, num_low: jax.Array) -> Bracket:
    """Returns the bracket to begin with, from `low`, which num_low >= k reach, to `high`."""
    full = lambda value: jnp.full(k.shape, value, jnp.uint32)
    low_end = jnp.where(k == 0, full(high), full(low))
    return Bracket(low_end, full(high), jnp.where(k == 0, 0, num_low), jnp.zeros_like(k))


def spread(bracket: Bracket, num_candidates: int) -> jax.Array:
    """uint32[leaves, num_candidates]: what cuts each bracket into equal parts, rising."""
    low, high, n = bracket.low, bracket.high, num_candidates
    step = (high - low + np.uint32(n)) // np.uint32(n + 1)
    ranks = jnp.arange(1, n + 1, dtype=jnp.uint32)
    return jnp.minimum(low[:, None] + step[:, None] * ranks[None, :], high[:, None])


def narrow(
    count: Callable[[jax.Array, Rows], jax.Array],
    joined: Callable[[jax.Array], jax.Array],
    k: jax.Array,
    bracket: Bracket,
    candidates: jax.Array,
    rows: Rows,
) -> Search:
    """Narrows brackets until exactly k entries reach the low end, or they hold one integer.

    Args:
      count: (uint32[leaves, n], rows) to int32[leaves, n], the leaf's entries that are at least the
        candidate.
      joined: int32[leaves, n] to the same, counts added up over the leaves that are searched
        together.
      k: int32[leaves].
      bracket: to begin with.
      candidates: of the first pass, which is always made; from `spread` or others that rise. A pass
        with n candidates leaves 1 / (n + 1) of the bracket.
      rows: handed on to `count`.

    Returns:
      The search at its end. Take its rows for what follows.
    """

    def searching(state: Search) -> jax.Array:
        return (state.num_first < 0).any() | ~_done(state.bracket, k).all()

    def body(state: Search) -> Search:
        rows = lax.optimization_barrier(state.rows)
        counts = count(state.candidates, rows)
        bracket = _narrowed(state.bracket, state.candidates, joined(counts), k)
        num_first = jnp.where(state.num_first < 0, counts[:, 0], state.num_first)
        return Search(bracket, spread(bracket, candidates.shape[1]), num_first, rows)

    unknown = jnp.full(len(rows), -1, jnp.int32)
    return lax.while_loop(searching, body, Search(bracket, candidates, unknown, rows))


def _narrowed(bracket: Bracket, candidates: jax.Array, counts: jax.Array, k: jax.Array) -> Bracket:
    """The part between two neighbouring candidates that the k-th largest entry is in."""
    low, high, num_low, num_high = bracket
    # Counts fall along the row: the new bracket lies where they fall below k.
    ends = jnp.concatenate([low[:, None], candidates, high[:, None]], 1)
    counts = jnp.concatenate([num_low[:, None], counts, num_high[:, None]], 1)
    last = (counts[:, 1:-1] >= k[:, None]).sum(1, dtype=jnp.int32)
    at = lambda table, index: jnp.take_along_axis(table, index[:, None], 1)[:, 0]
    moved = Bracket(at(ends, last), at(ends, last + 1), at(counts, last), at(counts, last + 1))
    done = _done(bracket, k)
    return jax.tree.map(lambda old, new: jnp.where(done, old, new), bracket, moved)


def _done(bracket: Bracket, k: jax.Array) -> jax.Array:
    return (bracket.num_low == k) | (bracket.high - bracket.low <= 1)
