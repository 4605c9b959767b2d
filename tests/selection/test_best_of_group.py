"""The best n of every m: known answers, a sort in NumPy, ties, refused patterns."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsparse
from jaxsparse.selection.best_of_group import best_in_groups
from jaxsparse.selection.ties import index_hash

NAN, INF = np.nan, np.inf


def picture(mask):
    """A mask as a string of 0 and 1."""
    return "".join("01"[int(bit)] for bit in np.asarray(mask))


@pytest.mark.parametrize(
    ("scores", "n", "expected"),
    [
        ([1, 3, 2, 0], 2, "0110"),
        ([-1, -3, -2, -4], 1, "1000"),
        ([NAN, -INF, NAN, NAN], 1, "0100"),
        ([INF, 1, INF, 5], 3, "1011"),
        ([0.0, 1e-30, -0.0, -1e-30], 1, "0100"),
        ([0.0, -0.0, 0.0, -0.0], 1, "0100"),  # all tie, and entry 1 has the largest hash
    ],
)
def test_best_of_a_group(scores, n, expected):
    groups = jaxsparse.n_of_m(n, 4, axis=0).cut((4,))
    assert picture(best_in_groups(jnp.array([scores])[0], groups)) == expected


@pytest.mark.parametrize(
    ("scores", "first", "expected"),
    [
        ([9, 3, 2, 0], "0010", "1010"),  # the one that comes first, and the best of the others
        ([9, 3, 2, 0], "0110", "0110"),
        ([9, 3, 2, 0], "0111", "0110"),  # too many: the best of them
        ([NAN, 3, 2, 0], "1000", "1100"),
    ],
)
def test_what_comes_first_goes_before_all_others(scores, first, expected):
    groups = jaxsparse.n_of_m(2, 4, axis=0).cut((4,))
    first = jnp.array([c == "1" for c in first])
    assert picture(best_in_groups(jnp.array(scores), groups, first)) == expected


@hypothesis.settings(max_examples=12)
@hypothesis.given(
    m=st.integers(2, 6),
    axis=st.integers(0, 2),
    kind=st.sampled_from(["normal", "ties", "equal", "nan"]),
    dtype=st.sampled_from([jnp.float32, jnp.bfloat16]),
    seed=st.integers(0, 99),
    data=st.data(),
)
def test_best_in_groups_agrees_with_a_sort(m, axis, kind, dtype, seed, data):
    n = data.draw(st.integers(1, m - 1))
    shape = [3, 2, 2]
    shape[axis] = 2 * m
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=shape)
    scores = {"ties": np.round(scores), "equal": np.ones(shape)}.get(kind, scores)
    if kind == "nan":
        scores = np.where(rng.random(shape) < 0.4, NAN, scores)
    scores = jnp.asarray(scores, dtype)
    first = jnp.asarray(rng.random(shape) < 0.3)
    groups = jaxsparse.n_of_m(n, m, axis=axis).cut(tuple(shape))
    mask = np.asarray(jax.jit(best_in_groups, static_argnums=1)(scores, groups, first))
    together = lambda x: np.moveaxis(np.asarray(x), axis, -1).reshape(-1, m)
    rows = zip(together(mask), together(scores.astype(jnp.float32)), together(first), strict=True)
    for chosen, values, goes_first in rows:
        assert chosen.sum() == n
        worth = np.where(np.isnan(values), -INF, values)
        order = lambda i, worth=worth, goes_first=goes_first: (goes_first[i], worth[i])
        if not chosen.all():
            lowest = min(order(i) for i in np.flatnonzero(chosen))
            assert lowest >= max(order(i) for i in np.flatnonzero(~chosen))


def test_ties_go_to_the_largest_hashes():
    groups = jaxsparse.n_of_m(2, 4, axis=0).cut((8,))
    hashes = np.asarray(index_hash((8,), np.uint32(0))).reshape(2, 4)
    expected = np.argsort(np.argsort(hashes, 1), 1) >= 2
    assert picture(best_in_groups(jnp.zeros(8), groups)) == picture(expected.ravel())


def test_the_best_of_a_group_need_an_n():
    with pytest.raises(ValueError, match="2x2 is no N:M pattern"):
        best_in_groups(jnp.zeros((4, 4)), jaxsparse.block((2, 2)).cut((4, 4)))
