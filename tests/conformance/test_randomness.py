"""Chance comes from the key alone: same key, same masks; other keys, steps and leaves differ."""

import chex
import jax
import numpy as np
import pytest

import jaxsparse
from jaxsparse.types import Observed
from tests.conformance.table import CASES, init, method_of, update
from tests.trees import FIXED, fill, prunable

RANDOM_START = [name for name, case in CASES.items() if case.random_start]
RANDOM_EVENTS = [name for name, case in CASES.items() if case.random_events]


def same(a, b) -> bool:
    return all(map(np.array_equal, prunable(a), prunable(b)))


@pytest.mark.parametrize("name", CASES)
def test_initial_masks(name):
    method, params = method_of(name), fill(FIXED, 0)
    masks = [init(method, jax.random.key(seed), params) for seed in (0, 0, 1, 2)]
    chex.assert_trees_all_equal(masks[0], masks[1])
    others = [same(masks[i], masks[j]) for i, j in ((0, 2), (0, 3), (2, 3))]
    assert (not all(others)) == CASES[name].random_start  # of a few blocks two may agree
    # Initial masks depend on shapes, not on values.
    chex.assert_trees_all_equal(masks[0], init(method, jax.random.key(0), fill(FIXED, 5)))


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.steps])
def test_events(name, key):
    method, params, grads = method_of(name), fill(FIXED, 0), fill(FIXED, 1)
    masks = init(method, key, params)
    params = jaxsparse.apply_masks(params, masks)
    event = lambda seed, step: update(method, params, grads, masks, step, jax.random.key(seed))
    chex.assert_trees_all_equal(event(0, 4), event(0, 4))
    assert same(event(0, 4).masks, event(1, 4).masks) != CASES[name].random_events
    if not CASES[name].random_events:
        chex.assert_trees_all_equal(event(0, 4), method.update(params, Observed(grads), masks, 4))


@pytest.mark.parametrize("name", RANDOM_EVENTS)
def test_each_event_draws_anew(name, key):
    """Steps 3 and 2 share a row of the timetable, so that only the step's own chance differs."""
    method, params, grads = method_of(name), fill(FIXED, 0), fill(FIXED, 1)
    masks = init(method, key, params)
    events = [update(method, params, grads, masks, step, key) for step in (2, 3)]
    assert not same(events[0].masks, events[1].masks)


@pytest.mark.parametrize("name", RANDOM_EVENTS)
def test_random_growth_needs_a_key(name, key):
    method, params = method_of(name), fill(FIXED, 0)
    with pytest.raises(ValueError, match="needs a key"):
        method.update(params, Observed(params), init(method, key, params), 2)


@pytest.mark.parametrize("name", RANDOM_START)
def test_two_leaves_of_one_shape_draw_different_masks(name, key):
    params = {x: {"kernel": fill(FIXED["pair"][1]["weight"], 0)} for x in "abc"}
    masks = jax.jit(CASES[name].make(params).init)(key, params)
    leaves = prunable(masks)
    assert not np.array_equal(leaves[0], leaves[1])
    assert not np.array_equal(leaves[1], leaves[2])
