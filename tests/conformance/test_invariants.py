"""No weight and no optimizer slot off the mask, at any step, in either dtype, for any optimizer."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsparse
from tests.conformance.table import ALIKE, CASES, OPTIMIZERS, method_of, train
from tests.trees import FIXED, fill, others, prunable

NUM_SLOTS = {"momentum": 1, "adamw": 2, "multi_steps": 2}


def slots_of(opt_state, params):
    """Every part of the state that has the structure of params, whatever the optimizer."""
    structure = jax.tree.structure(params)
    is_slots = lambda node: jax.tree.structure(node) == structure
    return [x for x in jax.tree.leaves(opt_state, is_leaf=is_slots) if is_slots(x)]


def assert_zero_outside(masks, *trees):
    for tree in trees:
        for mask, leaf in zip(jax.tree.leaves(masks), jax.tree.leaves(tree), strict=True):
            off = np.asarray(leaf)[~np.asarray(mask)]
            assert not off.any()
            assert not np.signbit(off).any()


RUNS = [("momentum", "float32"), ("adamw", "float32"), ("multi_steps", "float32")] + [
    ("adamw", "bfloat16")
]
LONG = set(itertools.product(ALIKE, RUNS[1:]))


@pytest.mark.parametrize(
    ("name", "optimizer", "dtype"),
    [
        pytest.param(name, *run, marks=[pytest.mark.long] * ((name, run) in LONG))
        for name, run in itertools.product(CASES, RUNS)
    ],
)
def test_nothing_off_the_mask(name, optimizer, dtype, key):
    method, tx, params = method_of(name), OPTIMIZERS[optimizer], fill(FIXED, 0, dtype)
    first = params, tx.init(params)
    num_events = 0
    for step in train(method, params, tx, key):
        slots = slots_of(step.opt_state, step.params)
        assert len(slots) == NUM_SLOTS[optimizer]
        assert_zero_outside(step.masks, step.params)
        assert_zero_outside(step.masks, *slots)
        jaxsparse.check(step.params, step.opt_state, step.masks)
        if step.event is not None:
            num_events += 1
            assert_zero_outside(step.event.kept, step.params, *slots)
            for kept, mask in zip(prunable(step.event.kept), prunable(step.masks), strict=True):
                assert (kept <= mask).all()
            assert all(x.all() for x in (*others(step.event.kept), *others(step.masks)))
            chex.assert_trees_all_equal_structs(step.event.kept, step.masks, step.params)
        chex.assert_tree_all_finite((step.params, step.opt_state))
        assert all(mask.dtype == jnp.bool_ for mask in jax.tree.leaves(step.masks))
        chex.assert_trees_all_equal_shapes_and_dtypes((step.params, step.opt_state), first)
    assert num_events == len(CASES[name].steps)
    assert all(leaf.all() for leaf in others(step.params)), "a leaf that stays dense has a 0"


@pytest.mark.parametrize("name", ["granet", "rigl", "set_itop", "composed"])
def test_what_is_kept_keeps_its_value_and_slots(name, key):
    tx, last = OPTIMIZERS["adamw"], None
    method = method_of(name)
    for step in train(method, fill(FIXED, 0), tx, key):
        if step.event is not None and method.skip_step:  # nothing but the event happened
            old = last.params, *slots_of(last.opt_state, last.params)
            new = step.params, *slots_of(step.opt_state, step.params)
            for before, after in zip(old, new, strict=True):
                chex.assert_trees_all_equal(jaxsparse.apply_masks(before, step.event.kept), after)
        if step.event is not None:
            for kept, w in zip(prunable(step.event.kept), prunable(step.params), strict=True):
                assert (w[kept] != 0).all()
        last = step


def test_the_slots_are_alive(key):
    """The guard of the tests above: on the mask there is something to find."""
    for optimizer, tx in OPTIMIZERS.items():
        *_, before_last, _ = train(method_of("granet"), fill(FIXED, 0), tx, key)
        for tree in (before_last.params, *slots_of(before_last.opt_state, before_last.params)):
            pairs = zip(prunable(tree), prunable(before_last.masks), strict=True)
            active = np.concatenate([leaf[mask] for leaf, mask in pairs])
            assert np.count_nonzero(active) > active.size / 2, optimizer
