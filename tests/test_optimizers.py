"""Every optimizer converges with events as without; weights and slots off the mask stay 0."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib

import jaxsparse
from jaxsparse.transforms import mask_slots
from tests.optimizers import ADAM, KEY, MOMENTUM, ROWS, labels
from tests.trees import fill, shape

TREE = {
    "conv": {"kernel": shape(3, 3, 2, 4), "bias": shape(4)},
    "blocks": [{"kernel": shape(8, 16)}],
}
STEPS, EVERY, NUM_EVENTS = 150, 10, 5  # the last event at 50: what it grows has 100 steps


def normal(tree, seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), tree)


IMAGES, VECTORS = normal((shape(64, 18), shape(64, 8)), 3)


def drawn_masks(seed):
    """Half of the weights of every matrix."""
    draw = lambda x: x > 0 if x.ndim > 1 else jnp.ones(x.shape, bool)
    return jax.tree.map(draw, normal(TREE, seed))


def outputs(params):
    """Two layers with inputs of their own, so that the weights that they learn are known."""
    kernel = params["conv"]["kernel"].reshape(18, 4)
    return IMAGES @ kernel + params["conv"]["bias"][None], VECTORS @ params["blocks"][0]["kernel"]


MASKS = [drawn_masks(seed) for seed in range(10, 11 + NUM_EVENTS)]
FIRST = jax.tree.map(lambda x: 0.3 * x, normal(TREE, 0))
TARGETS = outputs(jaxsparse.apply_masks(normal(TREE, 1), MASKS[-1]))


def loss(params):
    return sum(((y - t) ** 2).mean() for y, t in zip(outputs(params), TARGETS, strict=True))


def compiled_step(tx, extra):
    """One step; compiled with few optimizations, as it is run a few hundred times."""

    def step(params, opt_state, masks):
        value, grads = jax.value_and_grad(loss)(params)
        can_ask = {"value": value, "obj_fn": loss, "grad_fn": lambda p, _: jax.grad(loss)(p)}
        asked = {name: can_ask[name] for name in extra}
        updates, opt_state = tx.update(grads, opt_state, params, masks=masks, **asked)
        return optax.apply_updates(params, updates), opt_state

    return jax.jit(step, compiler_options={"xla_backend_optimization_level": 0})


def error(params):
    """The loss as a share of the first."""
    return float(loss(params) / loss(FIRST))


def trained(tx, step, masks):
    params = jaxsparse.apply_masks(FIRST, masks)
    opt_state = tx.init(params)
    for _ in range(STEPS):
        params, opt_state = step(params, opt_state, masks)
    return params


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
    """The leaves that chex can compare, which excludes typed keys."""
    return [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]


def by_path(tree):
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def assert_zero(leaves, masks):
    for path, leaf in leaves:
        off = leaf[~masks[path]]
        assert not off.any() and not np.signbit(off.astype(np.float32)).any(), path


@pytest.mark.parametrize("name", ROWS)
def test_it_converges_with_events_as_without(name):
    """To 2 % of the first loss: all weights, the right ones, and the right ones after five events.

    The masks change as drawn, whatever the weights are; the last ones hold all that there is to
    learn. Optimizers that cannot begin again in the middle of a run end at 60 % or infinity.
    """
    row = ROWS[name]
    tx = jaxsparse.masked(row.tx)
    step = compiled_step(tx, row.extra)
    assert error(trained(tx, step, MASKS[-1])) < 0.02
    assert not row.dense or error(trained(tx, step, jaxsparse.dense_masks(FIRST))) < 0.02

    masks = MASKS[0]
    params = jaxsparse.apply_masks(FIRST, masks)
    opt_state = tx.init(params)
    structure, wrote = jax.tree.structure(opt_state), False
    for n in range(1, STEPS + 1):
        params, opt_state = step(params, opt_state, masks)
        if n % 5 in (0, 1) and n < 60:
            assert_zero(by_path(params).items(), by_path(masks))
            if row.writes:
                clean = mask_slots(tx, opt_state, masks)
                pairs = zip(jax.tree.leaves(clean), jax.tree.leaves(opt_state), strict=True)
                wrote |= any(bool((a != b).any()) for a, b in pairs)
            else:
                assert_zero(slots_by_path(tx, opt_state, params), by_path(masks))
                jaxsparse.check(params, opt_state, masks)
        if n % EVERY == 0 and n // EVERY <= NUM_EVENTS:
            new = MASKS[n // EVERY]
            event = jaxsparse.Event(new, jax.tree.map(jnp.logical_and, masks, new), None)
            params, opt_state = jaxsparse.apply_event(tx, event, params, opt_state)
            masks = new
            jaxsparse.check(params, opt_state, masks)
            assert_restarted(tx, params, opt_state, event)
    assert wrote == row.writes
    assert jax.tree.structure(opt_state) == structure
    chex.assert_tree_all_finite(floats((params, opt_state)))
    chex.assert_trees_all_equal_shapes_and_dtypes(params, FIRST)
    slots = [path for path, _ in slots_by_path(tx, opt_state, params)]
    assert slots.count("['blocks'][0]['kernel']") == row.num_slots
    assert error(params) < 0.02


def assert_restarted(tx, params, opt_state, event):
    """Weights that are not kept are 0, and their slots are as `init` makes them."""
    grown = by_path(jax.tree.map(lambda mask, kept: mask & ~kept, event.masks, event.kept))
    assert sum(leaf.sum() for leaf in grown.values()) > 20
    assert not any(leaf[grown[path]].any() for path, leaf in by_path(params).items())
    pairs = zip(
        slots_by_path(tx, opt_state, params),
        slots_by_path(tx, tx.init(params), params),
        strict=True,
    )
    for (path, slot), (_, first) in pairs:
        np.testing.assert_array_equal(slot[grown[path]], first[grown[path]], path)


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row.writes])
def test_what_an_optimizer_writes_off_the_mask_is_not_read(name):
    """The next step is the same bit for bit as from slots without it."""
    tx, masks = jaxsparse.masked(ROWS[name].tx), MASKS[0]
    step = compiled_step(tx, ROWS[name].extra)
    params = jaxsparse.apply_masks(FIRST, masks)
    params, state = step(params, tx.init(params), masks)
    clean = mask_slots(tx, state, masks)
    written = [(a != b).any() for a, b in zip(*map(jax.tree.leaves, (state, clean)), strict=True)]
    assert any(written)
    chex.assert_trees_all_equal(
        floats(step(params, state, masks)), floats(step(params, clean, masks))
    )


ACPROP = contrib.acprop(0.01)
EARLY = "divides by its second moment before it has seen a gradient"
REFUSED = {
    "lookahead": (optax.lookahead(optax.sgd(0.1), 5, 0.5), "optax.lookahead steps two copies"),
    "sm3": (optax.sm3(0.1), "cannot tell which parts of this optimizer's state"),
    "lbfgs": (optax.lbfgs(0.1), "cannot tell which parts of this optimizer's state"),
    "a line search": (
        optax.chain(optax.sgd(1.0), optax.scale_by_backtracking_linesearch(15)),
        "cannot tell which parts of this optimizer's state",
    ),
    "flatten": (optax.flatten(ADAM), "cannot tell which parts of this optimizer's state"),
    "acprop": (ACPROP, f"acprop {EARLY}, so that a weight that an event grows .*; use optax.adab"),
    "acprop by itself": (contrib.scale_by_acprop(), f"optax.contrib.acprop {EARLY}"),
    "acprop in a chain": (optax.chain(optax.clip(1.0), ACPROP), EARLY),
    "acprop of matrices": (optax.partition({"matrix": ACPROP, "vector": MOMENTUM}, labels), EARLY),
    "acprop in steps": (optax.MultiSteps(ACPROP, 2), EARLY),
    "acprop if finite": (optax.apply_if_finite(ACPROP, 3), EARLY),
    "acprop with a schedule": (optax.inject_hyperparams(contrib.acprop)(0.01), EARLY),
    "acprop masked": (jaxsparse.masked(ACPROP), EARLY),
    "acprop inside jit": (optax.GradientTransformation(ACPROP.init, jax.jit(ACPROP.update)), EARLY),
    "adopt": (contrib.adopt(0.1, use_clipping=False), rf"adopt\(use_clipping=False\) {EARLY}"),
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
    """Differential privacy: the sum over examples comes first, and `masked` sees the sum."""
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
