"""`masked` around many optimizers keeps weights and slots at exactly 0; `apply_event` restarts."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsparse
from jaxsparse.transforms import mask_slots

SHAPES = {"fc": {"kernel": (4, 6), "bias": (6,)}, "out": [{"kernel": (6, 4)}]}


def draw(seed: int, dtype=jnp.float32):
    rng = np.random.default_rng(seed)
    is_shape = lambda x: isinstance(x, tuple)
    return jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s), dtype), SHAPES, is_leaf=is_shape)


def labels(params):
    return jax.tree.map(lambda x: "matrix" if x.ndim > 1 else "vector", params)


def is_matrix(params):
    return jax.tree.map(lambda x: x.ndim > 1, params)


OPTIMIZERS = {
    "momentum": optax.sgd(0.1, momentum=0.9),
    "nesterov": optax.sgd(0.1, momentum=0.9, nesterov=True),
    "adam": optax.adam(0.01),
    "adamw": optax.adamw(0.01, weight_decay=0.1),
    "adamw_on_matrices": optax.adamw(0.01, weight_decay=0.1, mask=is_matrix),
    "lion": optax.lion(0.01),
    "rmsprop": optax.rmsprop(0.01, momentum=0.9, initial_scale=1.0),
    "adagrad": optax.adagrad(0.1),
    "lamb": optax.lamb(0.01),
    "clipped_adam": optax.chain(optax.clip_by_global_norm(0.5), optax.adam(0.01)),
    "coupled_decay": optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.1, momentum=0.9)),
    "muon": optax.contrib.muon(0.01),
    "injected": optax.inject_hyperparams(optax.adamw)(
        learning_rate=optax.linear_schedule(0.1, 0.01, 30)
    ),
    "scheduled": optax.sgd(optax.cosine_decay_schedule(0.1, 30), momentum=0.9),
    "partitioned": optax.partition(
        {"matrix": optax.adam(0.01), "vector": optax.sgd(0.1, momentum=0.9)}, labels
    ),
    "trace_of_matrices": optax.masked(optax.trace(0.9), is_matrix),
    "multi_steps": optax.MultiSteps(optax.adam(0.01), 2).gradient_transformation(),
    "apply_if_finite": optax.apply_if_finite(optax.adam(0.01), 3),
    "schedule_free": optax.contrib.schedule_free_sgd(0.1),
}


def slot_leaves(tx, opt_state, params):
    """(slot, path) of every parameter-shaped slot, found by optax."""
    found = []
    hole = lambda x: isinstance(x, optax.MaskedNode)

    def visit(slot, path):
        if not hole(slot):
            found.append((np.asarray(slot), path))
        return slot

    paths = jax.tree_util.tree_map_with_path(lambda path, _: jax.tree_util.keystr(path), params)
    optax.tree.map_params(tx, visit, opt_state, paths, is_leaf=hole)
    return found


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_thirty_steps_with_events_leave_nothing_off_the_mask(name, key):
    tx = jaxsparse.masked(OPTIMIZERS[name])
    method = jaxsparse.granet_st(sparsity=0.75, total_steps=30, update_interval=6)
    step = jax.jit(tx.update)
    update = jax.jit(method.update)
    params = draw(0)
    masks = method.init(key, params)
    params = jaxsparse.apply_masks(params, masks)
    opt_state = tx.init(params)
    structure = jax.tree.structure(opt_state)
    for n in range(1, 31):
        grads = draw(n)
        updates, opt_state = step(grads, opt_state, params, masks=masks)
        params = optax.apply_updates(params, updates)
        if method.is_due(n):
            event = update(params, grads, masks, n, key=key)
            params, opt_state = jaxsparse.apply_event(tx, event, params, opt_state)
            masks = event.masks
        by_path = {
            jax.tree_util.keystr(path): np.asarray(mask)
            for path, mask in jax.tree_util.tree_flatten_with_path(masks)[0]
        }
        for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
            off = np.asarray(leaf)[~by_path[jax.tree_util.keystr(path)]]
            assert not off.any() and not np.signbit(off).any()
        for slot, path in slot_leaves(tx, opt_state, params):
            assert slot.shape != by_path[path].shape or not slot[~by_path[path]].any(), path
        jaxsparse.check(params, opt_state, masks)
    assert jax.tree.structure(opt_state) == structure
    chex.assert_tree_all_finite(params)
    assert jaxsparse.num_active(masks) == 12
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), params, draw(0))
    assert all(jax.tree.leaves(moved))


@pytest.mark.parametrize("name", ["momentum", "adamw", "clipped_adam", "muon", "multi_steps"])
def test_masked_adds_no_state(name):
    params = draw(0)
    masked = jaxsparse.masked(OPTIMIZERS[name])
    chex.assert_trees_all_equal(masked.init(params), OPTIMIZERS[name].init(params))


@pytest.mark.parametrize("name", ["momentum", "nesterov", "adamw", "clipped_adam"])
def test_dense_masks_change_nothing(name):
    params, masks = draw(0), jaxsparse.dense_masks(draw(0))
    plain, masked = OPTIMIZERS[name], jaxsparse.masked(OPTIMIZERS[name])
    states = plain.init(params), masked.init(params)
    for n in range(3):
        expected, state = plain.update(draw(n), states[0], params)
        updates, masked_state = masked.update(draw(n), states[1], params, masks=masks)
        chex.assert_trees_all_equal((updates, masked_state), (expected, state))
        states = state, masked_state


@pytest.mark.parametrize("nesterov", [False, True])
def test_masked_sgd_is_the_dense_step_then_the_mask(nesterov, key):
    """GraNet's code steps on the dense gradient, then masks weights and momentum."""
    inner = optax.sgd(0.1, momentum=0.9, nesterov=nesterov)
    tx = jaxsparse.masked(inner)
    masks = jaxsparse.static(sparsity=0.6, total_steps=10).init(key, draw(0))
    ours = theirs = jaxsparse.apply_masks(draw(0), masks)
    our_state, their_state = tx.init(ours), inner.init(theirs)
    for n in range(10):
        updates, our_state = tx.update(draw(n), our_state, ours, masks=masks)
        ours = optax.apply_updates(ours, updates)
        updates, their_state = inner.update(draw(n), their_state, theirs)
        theirs = jaxsparse.apply_masks(optax.apply_updates(theirs, updates), masks)
        their_state = mask_slots(inner, their_state, masks)
        chex.assert_trees_all_equal(ours, theirs)
        chex.assert_trees_all_equal(our_state, their_state)


@pytest.mark.parametrize("grads_dtype", [jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("params_dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_a_weight_off_the_mask_lands_on_zero_from_anywhere(params_dtype, grads_dtype):
    tx = jaxsparse.masked(optax.chain(optax.add_noise(1.0, 0.55, 0), optax.adamw(0.1)))
    params = jax.tree.map(lambda x: (x * 1000).astype(params_dtype), draw(0))
    masks = jax.tree.map(lambda x: x > 0, params)
    updates, _ = jax.jit(tx.update)(draw(1, grads_dtype), tx.init(params), params, masks=masks)
    new = optax.apply_updates(params, updates)
    for leaf, mask in zip(jax.tree.leaves(new), jax.tree.leaves(masks), strict=True):
        assert leaf.dtype == params_dtype
        assert not np.asarray(leaf, np.float32)[~np.asarray(mask)].any()
        assert np.asarray(leaf, np.float32)[np.asarray(mask)].any()


@pytest.mark.parametrize("bad", [jnp.inf, -jnp.inf, jnp.nan])
@pytest.mark.parametrize("name", ["momentum", "adamw", "clipped_adam", "lamb"])
def test_a_bad_gradient_off_the_mask_does_not_leak(name, bad):
    tx, params = jaxsparse.masked(OPTIMIZERS[name]), draw(0)
    masks = jax.tree.map(lambda x: x > 0, params)
    params = jaxsparse.apply_masks(params, masks)
    poisoned = jax.tree.map(lambda g, m: jnp.where(m, g, bad), draw(1), masks)
    zeroed = jaxsparse.apply_masks(draw(1), masks)
    results = [
        tx.update(grads, tx.init(params), params, masks=masks) for grads in (poisoned, zeroed)
    ]
    chex.assert_tree_all_finite(results[0])
    chex.assert_trees_all_equal(*results)


def test_a_bad_slot_off_the_mask_is_cleared_on_entry():
    tx, params = jaxsparse.masked(optax.sgd(0.1, momentum=0.9)), draw(0)
    masks = jax.tree.map(lambda x: x > 0, params)
    params = jaxsparse.apply_masks(params, masks)
    state = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), tx.init(params))
    state = mask_slots(
        tx, state, jax.tree.map(jnp.logical_not, masks)
    )  # NaN where inactive, 0 where active
    updates, state = tx.update(draw(1), state, params, masks=masks)
    chex.assert_tree_all_finite((updates, state))
    jaxsparse.check(optax.apply_updates(params, updates), state, masks)


def test_clipping_inside_sees_the_masked_norm_and_outside_the_dense_norm():
    params, grads = {"kernel": jnp.zeros((1, 2))}, {"kernel": jnp.array([[3.0, 4.0]])}
    masks = {"kernel": jnp.array([[True, False]])}
    clip = optax.clip_by_global_norm(1.0)
    inside = jaxsparse.masked(optax.chain(clip, optax.sgd(1.0)))
    outside = optax.chain(clip, jaxsparse.masked(optax.sgd(1.0)))
    for tx, expected in ((inside, -1.0), (outside, -0.6)):
        updates, _ = tx.update(grads, tx.init(params), params, masks=masks)
        np.testing.assert_allclose(updates["kernel"], [[expected, 0.0]], rtol=1e-6)


def test_other_extra_arguments_reach_the_inner_transformation():
    tx = jaxsparse.masked(optax.contrib.reduce_on_plateau(patience=1))
    params = {"kernel": jnp.ones((2, 2))}
    masks = jaxsparse.dense_masks(params)
    _, state = tx.update(params, tx.init(params), params, masks=masks, value=jnp.float32(7.0))
    assert float(state.best_value) == 7.0


def test_an_event_restarts_what_is_not_kept():
    """Three classes of specification 1.5: kept, regrown from outside, pruned and regrown."""
    tx = jaxsparse.masked(optax.adam(0.1))
    params = {"kernel": jnp.array([[1.0, 2.0, 3.0, 4.0]]), "bias": jnp.array([5.0])}
    full = jax.tree.map(lambda x: jnp.full_like(x, 7), tx.init(params))
    event = jaxsparse.Event(
        masks={"kernel": jnp.array([[True, True, True, False]]), "bias": jnp.array([True])},
        kept={"kernel": jnp.array([[True, False, False, False]]), "bias": jnp.array([True])},
        metrics=None,
    )
    for after in (
        jaxsparse.apply_event(tx, event, params, full),
        jax.jit(lambda p, s: jaxsparse.apply_event(tx, event, p, s))(params, full),
    ):
        new, state = after
        np.testing.assert_array_equal(new["kernel"], [[1, 0, 0, 0]])
        np.testing.assert_array_equal(new["bias"], [5])
        for slot in (state[0].mu, state[0].nu):
            np.testing.assert_array_equal(slot["kernel"], [[7, 0, 0, 0]])
            np.testing.assert_array_equal(slot["bias"], [7])
        assert int(state[0].count) == 7


def test_slots_of_other_shapes_are_left_alone():
    tx = optax.adafactor(0.1, min_dim_size_to_factor=2)
    params = {"kernel": jnp.ones((4, 6))}
    state = jax.tree.map(jnp.ones_like, tx.init(params))
    new = mask_slots(tx, state, {"kernel": jnp.zeros((4, 6), bool)})
    chex.assert_trees_all_equal(state, new)


# --- errors


def call(**changes):
    params = {"a": {"kernel": jnp.ones((2, 3))}, "b": jnp.ones(3)}
    tx = jaxsparse.masked(optax.sgd(0.1))
    arguments = {"updates": params, "params": params, "masks": jaxsparse.dense_masks(params)}
    arguments |= changes
    return tx.update(state=tx.init(params), **arguments)


def test_update_needs_masks():
    params = {"kernel": jnp.ones((2, 2))}
    tx = jaxsparse.masked(optax.sgd(0.1))
    with pytest.raises(TypeError, match="masks"):
        tx.update(params, tx.init(params), params)


def test_update_needs_params():
    with pytest.raises(ValueError, match="needs params"):
        call(params=None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"masks": {"a": {}, "b": jnp.ones(3, bool)}}, "masks has no leaf a/kernel"),
        (
            {"masks": {"a": {"kernel": jnp.ones((2, 3), bool)}, "b": jnp.ones(2, bool)}},
            r"masks at b has shape \(2,\), params has \(3,\)",
        ),
        (
            {"masks": {"a": {"kernel": jnp.ones((2, 3))}, "b": jnp.ones(3, bool)}},
            "masks at a/kernel has dtype float32; it must be bool",
        ),
        (
            {"updates": {"a": {"kernel": jnp.ones((2, 3))}, "b": jnp.ones(3), "c": jnp.ones(1)}},
            "grads has a leaf c, which params lacks",
        ),
        (
            {"updates": {"a": {"kernel": jnp.ones((3, 2))}, "b": jnp.ones(3)}},
            r"grads at a/kernel has shape \(3, 2\)",
        ),
    ],
)
def test_trees_that_differ_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        call(**changes)


@pytest.mark.parametrize("name", ["sm3", "lbfgs", "lookahead"])
def test_an_optimizer_that_cannot_be_masked_is_refused(name):
    inner, params = {
        "sm3": (optax.sm3(0.1), draw(0)),
        "lbfgs": (optax.lbfgs(0.1), draw(0)),
        "lookahead": (
            optax.lookahead(optax.sgd(0.1, momentum=0.9), sync_period=5, slow_step_size=0.5),
            optax.LookaheadParams.init_synced(draw(0)),
        ),
    }[name]
    with pytest.raises(ValueError, match="cannot tell which parts of this optimizer's state"):
        jaxsparse.masked(inner).init(params)
