"""Every method has the number of active weights that its timetable says, whatever the scores."""

import itertools
import math

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsparse
from tests.conformance.table import (
    CASES,
    EVERY,
    OPTIMIZERS,
    TOTAL,
    alike_are_long,
    init,
    method_of,
    train,
    update,
)
from tests.trees import FIXED, NUM_WEIGHTS, fill, map_prunable, others, prunable, trees

EVENTFUL = [name for name, case in CASES.items() if case.steps]


def counts(tree) -> list[int]:
    return [int(mask.sum()) for mask in prunable(tree)]


def target(sparsity: float, size: int = NUM_WEIGHTS) -> int:
    return size - math.floor(sparsity * size + 1e-6)


@pytest.mark.parametrize("name", CASES)
def test_events_are_due_at_the_steps_of_the_table(name):
    case, method = CASES[name], method_of(name)
    assert tuple(n for n in range(-1, TOTAL + 2) if method.is_due(n)) == case.steps
    segments = list(method.segments())
    assert [s.start for s in segments] == [0, *(s.stop for s in segments[:-1])]
    assert segments[-1].stop == TOTAL
    assert tuple(s.stop for s in segments if s.event) == case.steps
    later = [s.stop for s in method.segments(start=5) if s.event]
    assert later == [n for n in case.steps if n > 5]


@pytest.mark.parametrize("name", CASES)
def test_the_plan_says_what_the_table_says(name):
    case, plan = CASES[name], method_of(name).plan(FIXED)
    assert plan.num_prunable == NUM_WEIGHTS
    assert tuple(row.step for row in plan.rows) == (0, *case.steps)
    assert [row.num_active for row in plan.rows] == [target(s) for s in case.sparsities]
    assert plan.total_steps == TOTAL


@pytest.mark.parametrize("name", CASES)
def test_counts_are_exact_at_every_step(name, key):
    case, method = CASES[name], method_of(name)
    params = fill(FIXED, 0)
    plan = method.plan(params)
    before = counts(init(method, key, params))
    assert sum(before) == plan.rows[0].num_active == target(case.sparsities[0])
    assert before == list(plan.rows[0].layers.values())
    planned = dict(zip(case.steps, case.sparsities[1:], strict=True))
    for step in train(method, params, OPTIMIZERS["momentum"], key):
        after = counts(step.masks)
        if step.event is None:
            assert after == before
            continue
        assert sum(after) == target(planned[step.n])
        if sum(after) == sum(before):
            assert after == before, "an exchange changed the count of a leaf"
        before = after
    if case.scope == "leaf":
        assert before == list(plan.rows[-1].layers.values())
    assert jaxsparse.num_active(step.masks) == plan.rows[-1].num_active
    assert jaxsparse.sparsity(step.masks) == pytest.approx(case.sparsities[-1], abs=1 / NUM_WEIGHTS)


@pytest.mark.parametrize("name", CASES)
def test_metrics_agree_with_the_masks(name, key):
    for step in train(method_of(name), fill(FIXED, 0), OPTIMIZERS["momentum"], key):
        if step.event is None:
            continue
        old, new, kept = map(prunable, (step.old_masks, step.event.masks, step.event.kept))
        metrics = jax.tree.map(np.asarray, step.event.metrics)
        assert metrics.num_active.tolist() == [m.sum() for m in new]
        assert metrics.num_dropped.tolist() == [
            (a & ~b).sum() for a, b in zip(old, new, strict=True)
        ]
        assert metrics.num_grown.tolist() == [(b & ~a).sum() for a, b in zip(old, new, strict=True)]
        assert metrics.num_restarted.tolist() == [
            (b & ~k).sum() for b, k in zip(new, kept, strict=True)
        ]
        assert (metrics.num_restarted >= metrics.num_grown).all()
        assert metrics.num_nan.tolist() == [0] * len(new)
        np.testing.assert_array_equal(
            metrics.num_active,
            [m.sum() for m in old] - metrics.num_dropped + metrics.num_grown,
        )
        assert int(step.event.metrics.num_empty) == sum(not m.any() for m in new)


ODD = {
    "ties": lambda x: jnp.sign(x),
    "all_equal": lambda x: jnp.ones_like(x),
    "all_zero": lambda x: jnp.zeros_like(x),
    "minus_zero": lambda x: -jnp.zeros_like(x),
    "all_nan": lambda x: jnp.full_like(x, jnp.nan),
    "some_nan": lambda x: jnp.where(x > 0.5, jnp.nan, x),
    "infinite": lambda x: jnp.where(x > 0.5, jnp.inf, -jnp.inf),
    "denormal": lambda x: x * 1e-39,
}


NOT_FINITE = {"all_nan", "some_nan", "infinite"}


@pytest.mark.parametrize("name", alike_are_long(EVENTFUL))
def test_counts_are_exact_for_odd_scores(name, key):
    """An event on a gradient that is not finite is left out, and the next one makes up for it."""
    case, method = CASES[name], method_of(name)
    masks = init(method, key, fill(FIXED, 0))
    for odd, (in_params, in_grads) in itertools.product(
        ODD, [(True, False), (False, True), (True, True)]
    ):
        params, grads = fill(FIXED, 0), fill(FIXED, 1)
        params = map_prunable(ODD[odd], params) if in_params else params
        grads = map_prunable(ODD[odd], grads) if in_grads else grads
        old = masks
        for step, sparsity in zip(case.steps, case.sparsities[1:], strict=True):
            where = f"{odd}, in params: {in_params}, in grads: {in_grads}, step {step}"
            params = jaxsparse.apply_masks(params, old)
            event = update(method, params, grads, old, step, key)
            if in_grads and odd in NOT_FINITE:
                assert counts(event.masks) == counts(event.kept) == counts(old), where
                assert event.metrics.num_left_out == 1
                event = update(method, params, fill(FIXED, 1), old, step, key)
            assert sum(counts(event.masks)) == target(sparsity), where
            if sum(counts(event.masks)) == sum(counts(old)):
                assert counts(event.masks) == counts(old), where
            pairs = zip(prunable(event.kept), prunable(event.masks), strict=True)
            assert all((kept <= mask).all() for kept, mask in pairs), where
            old = event.masks


@pytest.mark.parametrize("name", ["gmp", "granet", "rigl", "set", "composed"])
def test_nan_scores_are_counted_and_go_first(name, key):
    case, method = CASES[name], method_of(name)
    params, grads = fill(FIXED, 0), fill(FIXED, 1)
    masks = init(method, key, params)
    first = lambda mask: (jnp.cumsum(mask.ravel()) == 1).reshape(mask.shape) & mask
    broken = jax.tree.map(lambda w, m: jnp.where(first(m), jnp.nan, w), params, masks)
    params = jaxsparse.apply_masks(
        jax.tree.map(lambda w, b, x: b if x.ndim >= 2 else w, params, broken, params), masks
    )
    event = update(method, params, grads, masks, case.steps[0], key)
    assert (np.asarray(event.metrics.num_nan) >= 1).all()
    assert sum(counts(event.masks)) == target(case.sparsities[1])
    kept = np.concatenate([k.ravel() for k in prunable(event.kept)])
    weights = np.concatenate([w.ravel() for w in prunable(params)])
    if name == "gmp":  # 30 of 61 go, so all four NaN do
        assert not np.isnan(weights[kept]).any()
    healthy = update(method, fill(FIXED, 0), grads, masks, case.steps[0], key)
    assert np.asarray(healthy.metrics.num_nan).tolist() == [0] * 4


@pytest.mark.parametrize("name", ["rigl", "set", "snfs", "rigl_itop", "set_itop"])
def test_an_exchange_does_nothing_to_a_dense_leaf(name, key):
    method, tx = method_of(name), OPTIMIZERS["momentum"]
    params, masks = fill(FIXED, 0), jaxsparse.dense_masks(FIXED)
    opt_state = (tx.init(params)[0]._replace(trace=fill(FIXED, 2)), *tx.init(params)[1:])
    event = update(method, params, fill(FIXED, 1), masks, EVERY, key)
    after, slots = jaxsparse.apply_event(tx, event, params, opt_state)
    for tree in (event.masks, event.kept):
        assert all(leaf.all() for leaf in jax.tree.leaves(tree))
    jax.tree.map(np.testing.assert_array_equal, (after, slots), (params, opt_state))
    assert not any(np.asarray(x).any() for x in event.metrics[1:])


@pytest.mark.parametrize("name", ["gmp_sparse_start", "granet_min_keep", "set"])
@hypothesis.settings(max_examples=4, phases=[hypothesis.Phase.generate])  # each compiles anew
@hypothesis.given(tree=trees(), seed=st.integers(0, 3))
def test_counts_are_exact_on_drawn_trees(name, tree, seed):
    case, params, key = CASES[name], fill(tree, seed), jax.random.key(seed)
    method = case.make(params)
    masks = init(method, key, params)
    size = sum(leaf.size for leaf in prunable(params))
    assert sum(counts(masks)) == target(case.sparsities[0], size)
    for step, sparsity in zip(case.steps, case.sparsities[1:], strict=True):
        params = jaxsparse.apply_masks(fill(tree, seed + step), masks)
        event = update(method, params, fill(tree, seed + 100 + step), masks, step, key)
        masks = event.masks
        assert sum(counts(masks)) == target(sparsity, size)
        assert all(leaf.all() for leaf in (*others(masks), *others(event.kept)))
        if name == "granet_min_keep":
            assert all(m.sum() >= min(2, m.size) for m in prunable(masks))


@pytest.mark.parametrize("initial", [0.0, 0.1, 0.2, 0.3, 0.5, 0.6])
@pytest.mark.parametrize("final", [0.65, 0.7, 0.8, 0.9, 0.95])
def test_the_start_of_the_cubic_is_no_event(initial, final):
    """At start_step the cubic is at s_i exactly, whatever s_f + (s_i - s_f) rounds to."""
    method = jaxsparse.gmp(
        sparsity=final,
        initial_sparsity=initial,
        total_steps=20,
        update_interval=2,
        start_step=4,
        stop_step=12,
    )
    assert [event.step for event in method.timetable.events] == [6, 8, 10, 12]
