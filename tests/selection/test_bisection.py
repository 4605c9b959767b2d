"""Bisection against a sort by score and hash: the same masks, not only the same values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxsparse.selection.bisection import bisect
from jaxsparse.selection.ties import index_hash
from jaxsparse.types import Candidates

ALL = Candidates(None, None, None)
SHAPES = ((2, 3), (), (0,), (7,))
NUMBERS = (0.0, -0.0, 1.0, -1.0, 2.5, np.inf, -np.inf, np.nan)
as_they_are = lambda scores: scores
bisected = jax.jit(bisect, static_argnames=("compute", "together"))


def best(scores, eligible, k, start):
    """The oracle: the k best by score, NaN last, and among equals by the hash of the index."""
    hashes = np.asarray(index_hash((len(scores),), np.uint32(start)))
    worth = [(not np.isnan(x), 0.0 if np.isnan(x) else x) for x in scores]
    order = sorted(np.flatnonzero(eligible), key=lambda i: (*worth[i], hashes[i]), reverse=True)
    mask = np.zeros(len(scores), bool)
    mask[order[: max(k, 0)]] = True
    return mask


def test_the_example_of_the_module():
    """5 is in, and of the three that tie at 2 the two with the largest hashes."""
    scores = jnp.array([5.0, 2.0, 2.0, 2.0, 1.0])
    (mask,), num_nan = bisected(as_they_are, [scores], jnp.array([3]), ALL, together=True)
    hashes = np.asarray(index_hash((5,), np.uint32(0)))[1:4]
    assert mask.tolist() == [True, *(hashes > hashes.min()).tolist(), False]
    assert num_nan.tolist() == [0]


@pytest.mark.parametrize("together", [True, False])
@given(
    seed=st.integers(0, 999),
    numbers=st.lists(st.sampled_from(NUMBERS), min_size=1, max_size=5),
    share=st.sampled_from([0.0, 0.4, 1.0]),
    wanted=st.lists(st.integers(-1, 16), min_size=4, max_size=4),
)
def test_against_a_sort(together, seed, numbers, share, wanted):
    rng = np.random.default_rng(seed)
    scores = [np.asarray(rng.choice(numbers, shape), np.float32) for shape in SHAPES]
    eligible = [np.asarray(rng.random(shape) < share) for shape in SHAPES]
    wanted = wanted[:1] if together else wanted
    candidates = Candidates(eligible, None, None)
    masks, num_nan = bisected(
        as_they_are, scores, jnp.array(wanted, jnp.int32), candidates, together=together
    )
    flat = lambda arrays: np.concatenate([np.ravel(np.asarray(x)) for x in arrays])
    if together:
        np.testing.assert_array_equal(flat(masks), best(flat(scores), flat(eligible), wanted[0], 0))
    else:
        for mask, x, may, k in zip(masks, scores, eligible, wanted, strict=True):
            np.testing.assert_array_equal(np.ravel(mask), best(x.ravel(), may.ravel(), k, 0))
    expected = [(np.isnan(x) & may).sum() for x, may in zip(scores, eligible, strict=True)]
    assert num_nan.tolist() == expected


def test_given_entries_are_in_and_are_no_candidates():
    scores = [jnp.array([4.0, 3.0, jnp.nan, 1.0])]
    given_mask = [jnp.array([False, False, True, True])]
    candidates = Candidates(None, given_mask, None)
    (mask,), num_nan = bisected(as_they_are, scores, jnp.array([1]), candidates, together=True)
    assert mask.tolist() == [True, False, True, True]
    assert num_nan.tolist() == [0]  # the NaN is no candidate


def test_scores_are_computed_in_every_pass():
    """Computed scores give the masks that the same scores give when they are stored."""
    w = jnp.asarray(np.random.default_rng(0).normal(size=(40, 5)), jnp.float32)
    square = lambda w: [w * w]
    wanted = jnp.array([60])
    computed, _ = bisected(square, w, wanted, ALL, together=True)
    stored, _ = bisected(as_they_are, square(w), wanted, ALL, together=True)
    np.testing.assert_array_equal(computed[0], stored[0])
    assert computed[0].sum() == 60
