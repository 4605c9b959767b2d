"""Brackets: one pass by hand, whole loops against a sort, leaves that compete, number of passes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxsparse.selection.brackets import Bracket, first_rows, make_bracket, narrow, spread

HIGH = 2**32 - 8  # the widest bracket of seven candidates
add_up_all = lambda counts: jnp.broadcast_to(counts.sum(0, jnp.int32), counts.shape)
each_alone = lambda counts: counts


def unsigned(*values):
    return jnp.array(values, jnp.uint32)


def counting(entries):
    """Counts the entries that reach each candidate, and keeps the candidates of every pass."""
    passes = []

    def count(candidates, rows):
        del rows
        passes.append(candidates)
        return (entries[:, :, None] >= candidates[:, None, :]).sum(1, dtype=jnp.int32)

    return count, passes


def narrowed(entries, k, high, num_candidates, add_up=each_alone):
    """The bracket at the end, and the candidates of every pass, from a loop of Python's."""
    entries = jnp.asarray(entries, jnp.uint32)
    count, passes = counting(entries)
    with jax.disable_jit():
        sizes = add_up(jnp.full((len(entries), 1), entries.shape[1], jnp.int32))[:, 0]
        bracket = make_bracket(jnp.asarray(k), np.uint32(0), np.uint32(high), sizes)
        candidates = spread(bracket, num_candidates)
        found = narrow(count, add_up, jnp.asarray(k), bracket, candidates, first_rows(len(entries)))
    return found, [x.tolist() for x in passes]


def test_the_example_of_the_module():
    found, passes = narrowed([[9, 7, 4, 2]], [2], 16, 3)
    assert passes == [[[4, 8, 12]], [[5, 6, 7]]]
    assert [int(x[0]) for x in found.bracket] == [7, 8, 2, 1]
    assert found.num_first.tolist() == [3]  # 9, 7 and 4 reach 4


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 16, [4, 8, 12]),
        (4, 8, [5, 6, 7]),
        (4, 6, [5, 6, 6]),  # fewer integers than parts
        (7, 8, [8, 8, 8]),
        (8, 8, [8, 8, 8]),  # k = 0
        (0, HIGH, [2**30 - 2, 2**31 - 4, 3 * 2**30 - 6]),
    ],
)
def test_candidates_cut_a_bracket_into_equal_parts(low, high, expected):
    bracket = Bracket(unsigned(low), unsigned(high), jnp.array([9]), jnp.array([0]))
    assert spread(bracket, 3).tolist() == [expected]


def test_nothing_reaches_the_bracket_of_no_entry():
    bracket = make_bracket(jnp.array([0, 2]), np.uint32(1), np.uint32(9), jnp.array([5, 5]))
    assert [x.tolist() for x in bracket] == [[9, 1], [9, 9], [0, 5], [0, 0]]


def test_ties_end_with_one_integer():
    """Three 6s tie: 4 entries reach 6, only one reaches 7, so none of both is 2."""
    found, _ = narrowed([[6, 9, 6, 6, 1]], [2], 16, 3)
    assert [int(x[0]) for x in found.bracket] == [6, 7, 4, 1]


def test_leaves_that_compete_share_one_bracket():
    """The best 3 of both: 9, 8 and 7, whichever leaf they are in."""
    found, _ = narrowed([[9, 1, 2], [8, 7, 3]], [3, 3], 16, 3, add_up_all)
    low = int(found.bracket.low[0])
    assert found.bracket.low.tolist() == [low, low] and 3 < low <= 7
    assert found.bracket.num_low.tolist() == [3, 3]


def test_a_leaf_that_is_done_waits_for_the_others():
    found, passes = narrowed([[15, 0, 0], [9, 8, 8]], [1, 2], 16, 3)
    assert len(passes) == 2
    assert found.bracket.num_low.tolist() == [1, 3]
    assert found.bracket.low.tolist() == [12, 8]  # the first was done in the first pass


@pytest.mark.parametrize(("num_candidates", "most"), [(1, 32), (3, 16), (7, 11)])
def test_passes_over_a_bracket_of_all_integers(num_candidates, most):
    """A pass leaves 1 / (n + 1) of a bracket; ties make the loop go on to the end."""
    _, passes = narrowed([[2**31 + 5] * 4], [2], HIGH, num_candidates)
    assert len(passes) == most


@functools.partial(jax.jit, static_argnames="num_candidates")
def narrowed_at_once(entries, k, num_candidates):
    bracket = make_bracket(k, np.uint32(0), np.uint32(HIGH), jnp.full_like(k, entries.shape[1]))
    candidates = spread(bracket, num_candidates)
    count, _ = counting(entries)
    return narrow(count, each_alone, k, bracket, candidates, first_rows(len(k))).bracket


@pytest.mark.parametrize("num_candidates", [1, 3, 7])
@given(
    few=st.lists(st.sampled_from([0, 1, 2, 5, 2**20, 2**31, HIGH - 1]), min_size=7, max_size=7),
    more=st.integers(0, HIGH - 1),
    k=st.integers(0, 8),
)
def test_against_a_sort(num_candidates, few, more, k):
    entries = np.array([*few, more], np.uint32)
    found = narrowed_at_once(entries[None], jnp.array([k]), num_candidates)
    low, high, num_low, num_high = (int(x[0]) for x in found)
    assert num_low == (entries >= low).sum() and num_high == (entries >= high).sum()
    if num_low != k:
        assert (low, high) == (np.sort(entries)[-k], np.sort(entries)[-k] + 1)
        assert num_high < k < num_low
