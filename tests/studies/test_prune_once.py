"""One pruning: exact counts by layer and over the network, and what regrows."""

import chex
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsparse
from jaxsparse.scores import saliency
from jaxsparse.studies import prune_once
from tests.trees import FIXED, every_other, fill, others, prunable

PARAMS, GRADS, MASKS = fill(FIXED, 0), fill(FIXED, 1), every_other(FIXED)


def pruned(rate, **options):
    params = jaxsparse.apply_masks(PARAMS, MASKS)
    return prune_once(params, MASKS, rate, grads=GRADS, **options)


def oracle(rate, scope):
    """GraNet's counts and a sort, in NumPy."""
    weights = [np.abs(w) for w in prunable(PARAMS)]
    active = prunable(MASKS)
    found = []
    if scope == "global":
        all_active = np.concatenate([w[m] for w, m in zip(weights, active, strict=True)])
        keep = int(all_active.size * (1 - rate))
        least = np.sort(all_active)[::-1][keep - 1]
        return [m & (w >= least) for w, m in zip(weights, active, strict=True)]
    for w, m in zip(weights, active, strict=True):
        zeros = int(np.ceil((~m).sum() + rate * m.sum()))
        order = np.argsort(-np.where(m, w, -1).ravel())[: m.size - zeros]
        found.append((np.isin(np.arange(m.size), order)).reshape(m.shape))
    return found


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_it_keeps_what_a_sort_keeps(scope):
    for rate in (0.25, 0.5, 0.875):
        masks, kept = pruned(rate, scope=scope)
        chex.assert_trees_all_equal(prunable(masks), oracle(rate, scope))
        chex.assert_trees_all_equal(masks, kept)
        assert all(mask.all() for mask in others(masks))


def test_a_rate_is_a_decimal_number():
    """0.1 * 30 is 3.0000000000000004, and 100 * (1 - 0.9) is 9.999999999999998."""
    for size, rate, count in ((30, 0.1, 27), (100, 0.9, 10)):
        params = {"kernel": jnp.ones((1, size))}  # ties, too
        for scope in ("layer", "global"):
            masks, _ = prune_once(params, jaxsparse.dense_masks(params), rate, scope=scope)
            assert jaxsparse.num_active(masks) == count


def test_each_layer_regrows_as_many_as_it_lost_by_gradient():
    masks, kept = pruned(0.5, scope="global", regenerate=True)
    parts = zip(*map(prunable, (MASKS, masks, kept, GRADS)), oracle(0.5, "global"), strict=True)
    for before, after, stayed, grads, expected in parts:
        np.testing.assert_array_equal(stayed, expected)
        assert after.sum() == before.sum()
        grown, g = after & ~stayed, np.abs(grads)
        if grown.any() and not after.all():
            assert g[grown].min() >= g[~after].max()


def test_other_scores_see_the_gradient():
    masks, _ = pruned(0.5, score=saliency)
    scores = [np.abs(w * g) for w, g in zip(prunable(PARAMS), prunable(GRADS), strict=True)]
    for before, after, score in zip(*map(prunable, (MASKS, masks)), scores, strict=True):
        if after.any() and (before & ~after).any():
            assert score[after].min() >= score[before & ~after].max()


@pytest.mark.parametrize(
    ("rate", "options", "message"),
    [
        (1.0, {}, r"rate 1.0 must be in \[0, 1\)"),
        (0.5, {"scope": "block"}, "scope 'block' must be layer or global"),
        (0.5, {"regenerate": True}, "need the gradient: give grads"),
        (0.5, {"score": saliency}, "need the gradient: give grads"),
        (0.5, {"grads": {}}, "grads has no leaf blocks"),
    ],
)
def test_what_is_refused(rate, options, message):
    with pytest.raises(ValueError, match=message):
        prune_once(PARAMS, MASKS, rate, **options)
