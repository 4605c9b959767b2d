"""Fifty steps with events inside every optimizer leave weights and slots at 0 off the mask."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsparse
from jaxsparse.transforms import mask_slots
from tests.optimizers import KEY, ROWS
from tests.trees import fill, shape

STEPS, EVERY = 50, 6  # the last event at 48: what it grows has two steps to move
TREE = {
    "conv": {"kernel": shape(3, 3, 2, 4), "bias": shape(4)},
    "blocks": [{"kernel": shape(8, 16)}],
    "head": {"kernel": shape(16, 4), "bias": shape(4)},
}
METHOD = jaxsparse.granet_st(sparsity=0.8, total_steps=STEPS, update_interval=EVERY)


def slots_by_path(tx, opt_state, params):
    """(path, slot) of everything of a parameter's shape that optax knows to be that parameter's."""
    found = []
    hole = lambda x: isinstance(x, optax.MaskedNode)

    def visit(slot, path, param):
        if not hole(slot) and slot.shape == param.shape:
            found.append((path, np.asarray(slot)))
        return slot

    paths = jax.tree_util.tree_map_with_path(lambda path, _: jax.tree_util.keystr(path), params)
    optax.tree.map_params(tx, visit, opt_state, paths, params, is_leaf=hole)
    return found


def floats(tree):
    """The leaves that chex can compare: it knows no typed keys."""
    return [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]


def by_path(tree):
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def assert_zero(leaves, masks):
    for path, leaf in leaves:
        off = leaf[~masks[path]]
        assert not off.any() and not np.signbit(off.astype(np.float32)).any(), path


@pytest.mark.parametrize("name", ROWS)
def test_fifty_steps_with_events_leave_nothing_off_the_mask(name, key):
    row = ROWS[name]
    tx = jaxsparse.masked(row.tx)
    target = fill(TREE, 1)

    @jax.jit
    def step(params, opt_state, masks, noise):
        grads = jax.tree.map(lambda w, t, e: 0.5 * (w - t) + 0.3 * e, params, target, noise)
        updates, opt_state = tx.update(grads, opt_state, params, masks=masks, **row.extra)
        return optax.apply_updates(params, updates), opt_state, grads

    first = params = fill(TREE, 0)
    masks = METHOD.init(key, params)
    params = jaxsparse.apply_masks(params, masks)
    opt_state = tx.init(params)
    structure = jax.tree.structure(opt_state)
    dropped = grown = wrote = 0
    for n in range(1, STEPS + 1):
        params, opt_state, grads = step(params, opt_state, masks, fill(TREE, 100 + n))
        assert_zero(by_path(params).items(), by_path(masks))
        if row.writes:
            clean = mask_slots(tx, opt_state, masks)
            pairs = zip(jax.tree.leaves(clean), jax.tree.leaves(opt_state), strict=True)
            wrote += any(bool((a != b).any()) for a, b in pairs)
        else:
            assert_zero(slots_by_path(tx, opt_state, params), by_path(masks))
            jaxsparse.check(params, opt_state, masks)
        if METHOD.is_due(n):
            event = METHOD.update(params, grads, masks, n, key=key)
            params, opt_state = jaxsparse.apply_event(tx, event, params, opt_state)
            masks = event.masks
            dropped += int(event.metrics.num_dropped.sum())
            grown += int(event.metrics.num_grown.sum())
            jaxsparse.check(params, opt_state, event.kept)
    assert dropped > 20 and grown > 20
    assert bool(wrote) == row.writes
    assert jax.tree.structure(opt_state) == structure
    chex.assert_tree_all_finite(floats((params, opt_state)))
    chex.assert_trees_all_equal_shapes_and_dtypes(params, first)
    for path, leaf in by_path(params).items():
        assert leaf[by_path(masks)[path]].all(), f"{path}: what was grown does not train"
        assert (leaf != by_path(first)[path]).any(), f"{path} did not move"
    slots = [path for path, _ in slots_by_path(tx, opt_state, params)]
    assert slots.count("['blocks'][0]['kernel']") == row.num_slots


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row.writes])
def test_what_an_optimizer_writes_off_the_mask_is_not_read(name):
    """The next step is the same bit for bit as from slots without it."""
    tx, params = jaxsparse.masked(ROWS[name].tx), fill(TREE, 0)
    masks = jax.tree.map(lambda x: x > 0, params)
    params = jaxsparse.apply_masks(params, masks)
    update = jax.jit(tx.update)
    _, state = update(fill(TREE, 1), tx.init(params), params, masks=masks)
    clean = mask_slots(tx, state, masks)
    written = [(a != b).any() for a, b in zip(*map(jax.tree.leaves, (state, clean)), strict=True)]
    assert any(written)
    chex.assert_trees_all_equal(
        floats(update(fill(TREE, 2), state, params, masks=masks)),
        floats(update(fill(TREE, 2), clean, params, masks=masks)),
    )


REFUSED = {
    "lookahead": (optax.lookahead(optax.sgd(0.1), 5, 0.5), "optax.lookahead steps two copies"),
    "rprop": (optax.rprop(0.1), "optax.rprop never moves a weight"),
    "rprop in a chain": (
        optax.MultiSteps(
            optax.chain(optax.clip(1.0), optax.rprop(0.1)), 2
        ).gradient_transformation(),
        "optax.rprop never moves a weight",
    ),
    "sm3": (optax.sm3(0.1), "cannot tell which parts of this optimizer's state"),
    "lbfgs": (optax.lbfgs(0.1), "cannot tell which parts of this optimizer's state"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_an_optimizer_that_cannot_be_masked_is_refused(name):
    inner, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        jaxsparse.masked(inner).init(fill(TREE, 0))


def test_lookahead_is_refused_with_its_own_pair_of_params_too():
    tx = jaxsparse.masked(optax.lookahead(optax.sgd(0.1, momentum=0.9), 5, 0.5))
    with pytest.raises(ValueError, match="optax.lookahead steps two copies"):
        tx.init(optax.LookaheadParams.init_synced(fill(TREE, 0)))


def test_gradients_per_example_go_ahead_of_masked():
    """Differential privacy: what sums over examples comes first, and `masked` sees the sum."""
    params = fill({"kernel": shape(2, 3)}, 0)
    masks = jax.tree.map(lambda x: x > 0, params)
    grads = jax.tree.map(lambda x: jnp.stack([x, x]), params)
    private = optax.contrib.differentially_private_aggregate(1.0, 0.1, KEY)
    inside = jaxsparse.masked(optax.chain(private, optax.sgd(0.1)))
    with pytest.raises(ValueError, match=r"grads at kernel has shape \(2, 2, 3\)"):
        inside.update(grads, inside.init(params), params, masks=masks)
    outside = optax.chain(private, jaxsparse.masked(optax.sgd(0.1)))
    updates, _ = outside.update(grads, outside.init(params), params, masks=masks)
    jaxsparse.check(optax.apply_updates(params, updates), (), masks)
