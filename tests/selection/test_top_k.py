"""Exact selection against a sort in NumPy: ties, NaN, infinities, eligibility, any k."""

import functools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxsparse.selection.top_k import top_k, top_k_mask
from tests import draw_selections

DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}
SHAPES = [(), (0,), (1,), (2,), (3, 5), (0, 4), (4, 1, 8), (200,)]

jitted_mask = jax.jit(top_k_mask)
jitted_top_k = jax.jit(top_k)


def best(scores, k, eligible):
    """The oracle: the values of the k best eligible scores, largest first, NaN last."""
    values = [float(s) for s, ok in zip(scores, eligible, strict=True) if ok]
    return sorted(values, key=lambda x: (np.isnan(x), -x))[: max(k, 0)]


def chosen(scores, mask):
    return best(scores, scores.size, mask)


def flat(leaves):
    return np.concatenate([np.ravel(np.asarray(x)) for x in leaves.values()])


def assert_best(scores, mask, k, eligible):
    """Right values, hence the right number, and none that is not eligible."""
    assert not (mask & ~eligible).any()
    np.testing.assert_array_equal(chosen(scores, mask), best(scores, k, eligible))


# Many ties, both zeros, infinities, NaN, the smallest and the largest floats.
SPECIAL = [0.0, -0.0, 1.0, -1.0, 2.0, np.inf, -np.inf, np.nan, 65504.0, 2.0**-14, 2.0**-24]
numbers = st.sampled_from(SPECIAL) | st.integers(-40, 40).map(lambda n: n / 8)


@st.composite
def leaves_drawn(draw, shapes):
    """Scores and eligibility by path, of one dtype."""
    dtype = DTYPES[draw(st.sampled_from(sorted(DTYPES)))]
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    share = draw(st.sampled_from([0.0, 0.1, 0.5, 1.0]))
    scores, eligible = {}, {}
    for i, shape in enumerate(shapes):
        few = np.array(draw(st.lists(numbers, min_size=1, max_size=12)), np.float32)
        scores[f"leaf{i}"] = np.asarray(rng.choice(few, shape), dtype)  # repeated: ties
        eligible[f"leaf{i}"] = np.asarray(rng.random(shape) < share)
    return scores, eligible


# A fixed set of shapes, so that few programs compile.
one_leaf = st.sampled_from(SHAPES).flatmap(lambda shape: leaves_drawn([shape]))
several_leaves = leaves_drawn([(3, 5), (), (0, 4), (2, 1, 6)])


@given(leaves=one_leaf, k=st.integers(-1, 230))
def test_one_leaf(leaves, k):
    (scores,), (eligible,) = (list(tree.values()) for tree in leaves)
    mask = np.asarray(jitted_mask(scores, k, eligible))
    assert mask.shape == scores.shape and mask.dtype == bool
    assert_best(scores.ravel(), mask.ravel(), k, eligible.ravel())


@given(leaves=several_leaves, k=st.integers(-1, 40))
def test_leaves_together(leaves, k):
    scores, eligible = leaves
    selected = jitted_top_k(scores, k, eligible)
    assert_best(flat(scores), flat(selected.masks), k, flat(eligible))
    for path, count in zip(selected.masks, selected.num_nan.tolist(), strict=True):
        assert count == np.isnan(scores[path].astype(np.float32))[eligible[path]].sum()


@given(leaves=several_leaves, ks=st.lists(st.integers(-1, 20), min_size=4, max_size=4))
def test_each_leaf(leaves, ks):
    scores, eligible = leaves
    wanted = dict(zip(scores, ks, strict=True))
    selected = jitted_top_k(scores, wanted, eligible)
    for path, mask in selected.masks.items():
        assert_best(scores[path].ravel(), np.ravel(mask), wanted[path], eligible[path].ravel())


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_k_from_none_to_all(shape, key):
    scores = jnp.round(3 * jax.random.normal(key, shape))
    for k in {-1, 0, 1, scores.size - 1, scores.size, scores.size + 1, 2**31 - 1}:
        assert jitted_mask(scores, k).sum() == np.clip(k, 0, scores.size)
    half = scores.size // 2
    np.testing.assert_array_equal(jitted_mask(scores, half), top_k_mask(scores, half))  # no jit


# Subnormal numbers of float32 are left out: whether they differ from 0 is up to the device.
ORDERED = [np.nan, -np.inf, -3e38, -1.0, -2e-38, 0.0, 2e-38, 1e-7, 1.0, 1.0 + 2**-23, 3e38, np.inf]


@pytest.mark.parametrize("k", range(len(ORDERED) + 1))
def test_order_of_all_kinds_of_numbers(k):
    order = np.random.default_rng(0).permutation(len(ORDERED))
    mask = np.asarray(jitted_mask(np.array(ORDERED, np.float32)[order], k))
    assert sorted(order[mask]) == list(range(len(ORDERED) - k, len(ORDERED)))


def test_negative_zero_ties_with_zero():
    scores = np.where(np.arange(1000) % 2 == 0, -0.0, 0.0).astype(np.float32)
    mask = np.asarray(jitted_mask(scores, 500))
    assert mask.sum() == 500
    assert 200 < mask[::2].sum() < 300


def test_minus_infinity_is_below_every_number_and_above_nan():
    scores = np.array([np.nan, -np.inf, -3.4e38, -np.inf], np.float32)
    assert np.asarray(jitted_mask(scores, 1)).tolist() == [False, False, True, False]
    assert np.asarray(jitted_mask(scores, 3)).tolist() == [False, True, True, True]


@pytest.mark.parametrize(
    ("k", "eligible", "message"),
    [
        (2.9, None, "k is 2.9; it must be one integer"),
        ([1, 2], None, r"k is .*; it must be one integer"),
        (2**31, None, "k is 2147483648; it must be below 2147483648"),
        (1, np.ones(3, np.int32), r"eligible is int32\(3,\); it must be bool\(3,\)"),
        (1, np.ones(2, bool), r"eligible is bool\(2,\); it must be bool\(3,\)"),
    ],
)
def test_what_is_no_count_or_no_mask(k, eligible, message):
    with pytest.raises(ValueError, match=message):
        top_k_mask(jnp.arange(3.0), k if np.ndim(k) == 0 else jnp.array(k), eligible)


def test_paths_that_do_not_fit():
    scores = {"a": jnp.arange(3.0), "b": jnp.arange(2.0)}
    with pytest.raises(ValueError, match=r"k counts \['a'\], the scores are those of"):
        top_k(scores, {"a": 1})
    with pytest.raises(ValueError, match=r"eligible of b is missing; it must be bool\(2,\)"):
        top_k(scores, 1, {"a": jnp.ones(3, bool)})
    with pytest.raises(ValueError, match="no scores"):
        top_k({}, 1)


def test_what_is_not_eligible_never_wins():
    scores = np.array([np.inf, 5.0, -np.inf, np.nan], np.float32)
    eligible = np.array([False, False, True, True])
    for k, expected in [(1, [0, 0, 1, 0]), (2, [0, 0, 1, 1]), (4, [0, 0, 1, 1])]:
        np.testing.assert_array_equal(jitted_mask(scores, k, eligible), np.array(expected, bool))


def test_what_is_given_is_in_beside_the_k_and_is_no_candidate():
    scores = {"a": np.array([4.0, 3.0, 2.0, 1.0], np.float32)}
    given = {"a": np.array([1, 0, 0, 1], bool)}
    eligible = {"a": np.array([1, 0, 1, 1], bool)}
    for k, allowed, expected in [
        (0, None, [1, 0, 0, 1]),
        (1, None, [1, 1, 0, 1]),
        (1, eligible, [1, 0, 1, 1]),
        (4, eligible, [1, 0, 1, 1]),
    ]:
        masks = jitted_top_k(scores, k, allowed, given=given).masks
        np.testing.assert_array_equal(masks["a"], np.array(expected, bool))
    with pytest.raises(ValueError, match=r"given of a is missing; it must be bool\(4,\)"):
        top_k(scores, 1, given={})


@pytest.mark.parametrize("value", [0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("k", [0, 1, 50, 999, 1000])
def test_all_equal_scores_have_the_exact_count(value, k):
    assert jitted_mask(np.full(1000, value, np.float32), k).sum() == k


@pytest.mark.parametrize("shape", [(1000,), (10, 100), (5, 2, 100)])
def test_ties_are_spread_over_the_tensor(shape):
    mask = np.asarray(jitted_mask(np.zeros(shape, np.float32), 300)).ravel()
    tenths = mask.reshape(10, 100).sum(1)
    columns = mask.reshape(100, 10).sum(0)
    # Drawn at random, 30 of each 100 +- 4.4; in index order, 100 in three and 0 in seven.
    assert tenths.min() > 15 and tenths.max() < 45
    assert columns.min() > 15 and columns.max() < 45


def test_ties_are_spread_over_leaves():
    scores = {f"leaf{i}": np.zeros(100, np.float32) for i in range(10)}
    counts = [int(mask.sum()) for mask in jitted_top_k(scores, 300).masks.values()]
    assert sum(counts) == 300
    assert min(counts) > 15 and max(counts) < 45


def test_vmap_agrees_with_a_loop(key):
    scores = jnp.round(jax.random.normal(key, (6, 40)) * 2)
    ks = jnp.array([0, 1, 13, 39, 40, 41])
    eligible = jax.random.bernoulli(key, 0.7, (6, 40))
    together = jax.jit(jax.vmap(top_k_mask))(scores, ks, eligible)
    alone = jnp.stack([jitted_mask(*row) for row in zip(scores, ks, eligible, strict=True)])
    np.testing.assert_array_equal(together, alone)


def test_k_may_be_traced_and_does_not_compile_again():
    traces = []

    @jax.jit
    def select(scores, k):
        traces.append(1)
        return top_k(scores, k)

    scores = {"a": jnp.arange(7.0), "b": -jnp.arange(5.0)}
    for k in range(-1, 14):
        masks = select(scores, jnp.int32(k)).masks
        assert int(masks["a"].sum() + masks["b"].sum()) == np.clip(k, 0, 12)
    assert len(traces) == 1


INTEGERS = (int, np.int8, np.uint8, np.int32, np.uint32, np.int64, np.uint64, jnp.int32, jnp.uint32)


@pytest.mark.parametrize("kind", INTEGERS)
def test_k_is_an_integer_of_any_type(kind):
    scores = jnp.arange(100.0) % 97
    for k in (0, 3, 100, 127, -1):
        if k < 0 and "uint" in kind.__name__:
            continue
        for number in (kind(k), np.array(kind(k)), jnp.asarray(kind(k))):
            for mask in (top_k_mask(scores, number), jitted_mask(scores, number)):
                assert mask.sum() == np.clip(k, 0, 100)
            assert top_k({"a": scores}, {"a": number}).masks["a"].sum() == np.clip(k, 0, 100)


@pytest.mark.parametrize("kind", [int, np.uint32, np.int64, np.uint64, jnp.uint32])
@pytest.mark.parametrize("k", [2**31, 4_000_000_000])
def test_a_k_beyond_int32_is_refused_where_it_is_known_and_cut_where_it_is_not(kind, k):
    with pytest.raises(ValueError, match=f"k is {k}; it must be below 2147483648"):
        top_k_mask(jnp.ones(3), kind(k))
    with pytest.raises(ValueError, match=f"k of fc is {k}; it must be below 2147483648"):
        top_k({"fc": jnp.ones(3)}, {"fc": np.array(kind(k))})
    assert jitted_mask(jnp.ones(3), np.uint32(k)).all()
    with jax.enable_x64(True):
        assert jitted_mask(jnp.ones(3), np.int64(k)).all()
        assert jitted_mask(jnp.ones(3), np.uint64(2**64 - k)).all()
        assert not jitted_mask(jnp.ones(3), np.int64(-k)).any()


@pytest.mark.parametrize("k", [True, np.True_, jnp.array(True), 2.0, np.float32(2), "2", None, [2]])
def test_k_is_no_other_number(k):
    with pytest.raises(ValueError, match="k is .*; it must be one integer"):
        top_k_mask(jnp.ones(3), k)


def test_a_traced_k_is_no_other_number():
    for k in (True, 2.0, [2]):
        with pytest.raises(ValueError, match="k is .*; it must be one integer"):
            jax.jit(top_k_mask)(jnp.ones(3), jnp.asarray(k))


@pytest.mark.parametrize("dtype", [jnp.int32, bool, jnp.uint8])
def test_scores_must_be_floats(dtype):
    with pytest.raises(ValueError, match="the scores of fc/kernel have dtype .*; they must be fl"):
        top_k({"fc/kernel": jnp.zeros(3, dtype)}, 1)
    with pytest.raises(ValueError, match="the scores have dtype"):
        top_k_mask(jnp.zeros(3, dtype), 1)


def test_more_scores_than_int32_counts():
    half = jax.ShapeDtypeStruct((2**15, 2**15), jnp.float32)
    choose_one = functools.partial(top_k, k=1)
    with pytest.raises(ValueError, match="2147483648 scores to choose from; at most 2147483647"):
        jax.eval_shape(choose_one, {"a": half, "b": half})
    with pytest.raises(ValueError, match="4294967296 scores of b to choose from"):
        whole = jax.ShapeDtypeStruct((2**16, 2**16), jnp.float32)
        jax.eval_shape(lambda scores: top_k(scores, {"a": 1, "b": 1}), {"a": half, "b": whole})
    # In each leaf on its own there is room for both.
    shapes = jax.eval_shape(lambda s: top_k(s, {"a": 1, "b": 1}), {"a": half, "b": half})
    assert shapes.masks["b"].shape == half.shape


@pytest.mark.variants
def test_drawn_selections_agree_with_sorting():
    assert draw_selections.run(150, seed=1) == (0, 0, 0)
