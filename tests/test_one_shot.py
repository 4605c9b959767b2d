"""Masks in one shot against a sort in NumPy: counts, ties, NaN, both scopes, patterns, refusals."""

import logging
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsparse
from jaxsparse.one_shot import magnitude_masks, masks_from_scores, pattern_masks
from jaxsparse.rounded_counts import leaf_counts
from jaxsparse.unit_counts import one_shot_row
from tests.trees import FIXED, NUM_WEIGHTS, fill, others, prunable

SHAPES = {f"leaf{i}": x.shape for i, x in enumerate(prunable(fill(FIXED, 0)))}


def in_order(tree):
    return [np.asarray(x) for x in prunable(tree)]


def worth(x):
    """In the order of selection: NaN below -inf, -0 equal to 0."""
    x = np.asarray(x, np.float64)
    return np.where(np.isnan(x), -np.inf, np.where(np.isneginf(x), np.finfo(np.float64).min, x))


def assert_best(scores, masks, count):
    """Exactly `count` are in, and nothing outside is worth more than anything inside."""
    values = np.concatenate([worth(x).ravel() for x in scores])
    chosen = np.concatenate([np.asarray(mask).ravel() for mask in masks])
    assert chosen.sum() == count
    if 0 < count < chosen.size:
        assert values[chosen].min() >= values[~chosen].max()


def with_ties(tree, seed):
    """Few values, zeros of both signs, infinities and NaN among them."""
    rng = np.random.default_rng(seed)
    values = np.array([-2, -1, -0.0, 0.0, 1, 1, 2, np.inf, -np.inf, np.nan], np.float32)
    return jax.tree.map(lambda x: jnp.asarray(rng.choice(values, x.shape)), tree)


@pytest.mark.parametrize("make", [fill, with_ties])
@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.98])
def test_over_all_leaves(make, sparsity):
    scores = make(FIXED, 0)
    masks = masks_from_scores(scores, sparsity)
    assert_best(in_order(scores), in_order(masks), NUM_WEIGHTS - math.floor(sparsity * NUM_WEIGHTS))
    assert all(mask.all() for mask in others(masks))
    chex.assert_trees_all_equal_structs(masks, scores)
    by_size = jax.tree.map(jnp.abs, scores)
    chex.assert_trees_all_equal(
        magnitude_masks(scores, sparsity), masks_from_scores(by_size, sparsity)
    )


@pytest.mark.parametrize("make", [fill, with_ties])
@pytest.mark.parametrize("distribution", [None, jaxsparse.uniform()])
def test_in_every_leaf(make, distribution):
    params = make(FIXED, 1)
    masks = magnitude_masks(params, 0.75, scope="layer", distribution=distribution)
    counts = leaf_counts(distribution or jaxsparse.erk(), SHAPES, 0.25)
    for w, mask, count in zip(in_order(params), in_order(masks), counts.values(), strict=True):
        assert_best([np.abs(w)], [mask], count)


def test_in_bfloat16():
    params = fill(FIXED, 2, jnp.bfloat16)
    masks = magnitude_masks(params, 0.8)
    sizes = [np.abs(np.asarray(w, np.float32)) for w in in_order(params)]
    assert_best(sizes, in_order(masks), NUM_WEIGHTS - 48)


def test_a_minimum_in_each_leaf_first():
    scores = {"a": [9.0, 8, 7, 6, 5], "b": [0.3, 0.2, 0.1], "c": [0.01]}
    scores = {path: {"kernel": jnp.array([x])} for path, x in scores.items()}
    kept = lambda k, **options: {
        path: int(mask["kernel"].sum())
        for path, mask in masks_from_scores(scores, 1 - k / 9, **options).items()
    }
    assert kept(4) == {"a": 4, "b": 0, "c": 0}
    assert kept(4, min_keep=1) == {"a": 2, "b": 1, "c": 1}
    assert kept(6, min_keep=2) == {"a": 3, "b": 2, "c": 1}  # c has only one
    by_layer = {"scope": "layer", "distribution": jaxsparse.uniform()}
    assert kept(5, **by_layer) == {"a": 3, "b": 1, "c": 1}
    assert kept(7, min_keep=3, **by_layer) == {"a": 3, "b": 3, "c": 1}


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_one_shot_is_the_last_event_of_gradual_pruning(scope):
    params = fill(FIXED, 3)
    method = jaxsparse.gmp(
        sparsity=0.9, total_steps=1, stop_step=1, update_interval=1, scope=scope, min_keep=1
    )
    masks = method.init(jax.random.key(0), params)
    event = method.update(params, params, masks, 1)
    chex.assert_trees_all_equal(magnitude_masks(params, 0.9, scope=scope, min_keep=1), event.masks)


def test_a_pattern_over_all_leaves():
    params = {"a": {"kernel": jnp.arange(16.0).reshape(4, 4)}, "b": {"kernel": jnp.ones((2, 4))}}
    masks = magnitude_masks(params, 2 / 3, pattern=jaxsparse.block((2, 2)))
    # Sums of a's blocks: 10, 18, 42, 50; of b's 4 and 4: two of six.
    np.testing.assert_array_equal(masks["a"]["kernel"], [[False] * 4] * 2 + [[True] * 4] * 2)
    assert not masks["b"]["kernel"].any()
    jaxsparse.check_pattern(masks, jaxsparse.block((2, 2)))


def test_n_of_m_beside_leaves_that_compete():
    rules = [("^a", jaxsparse.n_of_m(1, 2)), (".", None)]
    params = {
        "a": {"kernel": jnp.array([[1.0], [2.0], [4.0], [3.0]])},
        "b": {"kernel": jnp.array([[0.5, 0.1]])},
        "c": {"kernel": jnp.array([[0.4, 0.3]])},
    }
    masks = magnitude_masks(params, 0.5, pattern=rules)
    assert masks["a"]["kernel"].ravel().tolist() == [False, True, True, False]
    assert masks["b"]["kernel"].tolist() == [[True, False]]
    assert masks["c"]["kernel"].tolist() == [[True, False]]
    alone = magnitude_masks(params["a"], pattern=jaxsparse.n_of_m(1, 2))  # needs no sparsity
    chex.assert_trees_all_equal(alone, masks["a"])


def test_pattern_masks_are_those_of_scope_layer():
    params, pattern = fill({"kernel": jax.ShapeDtypeStruct((8, 8), "float32")}, 4), (4, 1)
    chex.assert_trees_all_equal(
        pattern_masks(params, jaxsparse.block(pattern), sparsity=0.5),
        magnitude_masks(params, 0.5, scope="layer", pattern=jaxsparse.block(pattern)),
    )


def test_only_prunable_leaves_are_looked_at():
    scores = {
        "kernel": jnp.array([[1.0, 2.0]]),
        "bias": jnp.array([1, 2]),
        "key": jax.random.key(0),
    }
    masks = masks_from_scores(scores, 0.5)
    assert masks["kernel"].tolist() == [[False, True]] and masks["bias"].all()
    both = (("kernel|bias", True),)
    params = {"kernel": jnp.array([[1.0, 2.0]]), "bias": jnp.array([3.0, 0.0])}
    masks = magnitude_masks(params, 0.5, prunable=both)
    assert masks["kernel"].tolist() == [[False, True]] and masks["bias"].tolist() == [True, False]


def test_inside_jit_and_no_compilation_at_the_second_call(caplog):
    params, again = fill(FIXED, 5), fill(FIXED, 6)
    first = magnitude_masks(params, 0.5, min_keep=1)
    jitted = jax.jit(lambda p: magnitude_masks(p, 0.5, min_keep=1))
    chex.assert_trees_all_equal(jitted(params), first)
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        magnitude_masks(again, 0.75, min_keep=1)  # another count is no other program
    assert [r.message for r in caplog.records if "ompil" in r.message] == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "leaf blocks/0/kernel has no N:M pattern, so its sparsity= must be given"),
        ({"sparsity": 1.0}, "sparsity 1.0 must be in \\[0, 1\\)"),
        ({"sparsity": -0.1}, "sparsity -0.1 must be in \\[0, 1\\)"),
        ({"sparsity": math.nan}, "sparsity nan must be in \\[0, 1\\)"),
        (
            {"sparsity": 0.99},
            "the target of 1 active weights of 61 is below 2 for each of 4 layers; the sparsity "
            "can be at most 0.885245901",
        ),
        ({"sparsity": 0.99, "scope": "layer"}, "leaves 1 active weights for 4 layers, below 2 a l"),
        ({"sparsity": 0.5, "scope": "leaf"}, "scope 'leaf' must be 'global' or 'layer'"),
        ({"sparsity": 0.5, "min_keep": -1}, "min_keep -1 must be a whole number, at least 0"),
        (
            {"sparsity": 0.5, "distribution": jaxsparse.erk()},
            "scope 'global' ranks all leaves together and has no use for distribution=; "
            "take scope='layer'",
        ),
        (
            {"sparsity": 0.5, "scope": "layer", "distribution": jaxsparse.erk},
            r"distribution erk must be a function such as erk\(\)",
        ),
        (
            {"sparsity": 0.5, "pattern": [("conv", jaxsparse.block((2, 1))), ("", None)]},
            "scope 'global' needs groups of one size, but those of blocks/0/kernel have 1 entries "
            "and those of conv/kernel 2; take scope='layer'",
        ),
        ({"sparsity": 0.5, "pattern": "2:4"}, "pattern '2:4' must be a pattern such as n_of_m"),
        (
            {"sparsity": 0.5, "pattern": jaxsparse.n_of_m(2, 4)},
            r"pattern '2:4' does not fit leaf blocks/0/kernel \(3, 4\)",
        ),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        magnitude_masks(fill(FIXED, 0), **{"min_keep": 2} | options)


def test_scores_of_another_kind_are_refused():
    with pytest.raises(ValueError, match="the scores of kernel have dtype int32; they must be flo"):
        masks_from_scores({"kernel": jnp.ones((2, 2), int)}, 0.5)


def test_more_weights_than_one_number_counts():
    shapes = {path: (2**15, 2**15) for path in "ab"}
    options = {"distribution": None, "min_keep": None}
    with pytest.raises(ValueError, match="2147483648 weights are too many to count together"):
        one_shot_row(shapes, {}, 0.5, scope="global", **options)
    row = one_shot_row(shapes, {}, 0.5, scope="layer", **options)
    assert row.target == {"a": 2**29, "b": 2**29}
