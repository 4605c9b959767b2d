"""`masked`: its effect on a step, and its place among other transformations; `apply_event`.

That it holds for every optimizer is in test_optimizers.py.
"""

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

SHAPES = {"fc": {"kernel": (4, 6), "bias": (6,)}, "out": [{"kernel": (6, 4)}]}


def draw(seed: int, dtype=jnp.float32):
    rng = np.random.default_rng(seed)
    is_shape = lambda x: isinstance(x, tuple)
    return jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s), dtype), SHAPES, is_leaf=is_shape)


@pytest.mark.parametrize("name", ["momentum", "adamw", "clipped", "muon", "multi_steps"])
def test_masked_adds_no_state(name):
    params = draw(0)
    masked = jaxsparse.masked(ROWS[name].tx)
    chex.assert_trees_all_equal(masked.init(params), ROWS[name].tx.init(params))


@pytest.mark.parametrize("name", ["momentum", "nesterov", "adamw", "clipped"])
def test_dense_masks_change_nothing(name):
    params, masks = draw(0), jaxsparse.dense_masks(draw(0))
    plain, masked = ROWS[name].tx, jaxsparse.masked(ROWS[name].tx)
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
@pytest.mark.parametrize("name", ["momentum", "adamw", "clipped", "lamb"])
def test_a_bad_gradient_off_the_mask_does_not_leak(name, bad):
    tx, params = jaxsparse.masked(ROWS[name].tx), draw(0)
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


def test_what_comes_after_masked_can_undo_it():
    """Noise chained before `masked` is masked, inside it is removed again, after it stays."""
    params = fill({"kernel": shape(4, 6)}, 0)
    masks = jax.tree.map(lambda x: x > 0, params)
    params = jaxsparse.apply_masks(params, masks)
    noise, sgd = optax.add_noise(1.0, 0.55, KEY), optax.sgd(0.1)
    orders = {
        "before": optax.chain(noise, jaxsparse.masked(sgd)),
        "inside": jaxsparse.masked(optax.chain(sgd, noise)),
        "after": optax.chain(jaxsparse.masked(sgd), noise),
    }
    new = {}
    for name, tx in orders.items():
        updates, _ = tx.update(params, tx.init(params), params, masks=masks)
        new[name] = optax.apply_updates(params, updates)
    jaxsparse.check(new["before"], (), masks)
    jaxsparse.check(new["inside"], (), masks)
    with pytest.raises(ValueError, match="params at kernel: .* inactive entries are not 0"):
        jaxsparse.check(new["after"], (), masks)


def test_a_scale_after_masked_keeps_zeros_but_lands_nothing_on_them():
    params = {"kernel": jnp.array([[1.0, 2.0, 0.0]])}  # the second should be 0 and is not yet
    masks = {"kernel": jnp.array([[True, False, False]])}
    grads = {"kernel": jnp.array([[1.0, 1.0, 1.0]])}
    inside = jaxsparse.masked(optax.chain(optax.sgd(1.0), optax.scale(0.5)))
    after = optax.chain(jaxsparse.masked(optax.sgd(1.0)), optax.scale(0.5))
    for tx, expected in ((inside, [[0.5, 0.0, 0.0]]), (after, [[0.5, 1.0, 0.0]])):
        updates, _ = tx.update(grads, tx.init(params), params, masks=masks)
        new = optax.apply_updates(params, updates)
        np.testing.assert_array_equal(new["kernel"], expected)


@pytest.mark.parametrize(
    "decayed",
    [
        jaxsparse.masked(optax.chain(optax.sgd(1.0), optax.add_decayed_weights(-0.1))),
        optax.chain(jaxsparse.masked(optax.sgd(1.0)), optax.add_decayed_weights(-0.1)),
    ],
    ids=["inside", "after"],
)
def test_weight_decay_leaves_zeros_wherever_it_stands(decayed):
    params = {"kernel": jnp.array([[4.0, 0.0]])}
    masks = {"kernel": jnp.array([[True, False]])}
    updates, _ = decayed.update(params, decayed.init(params), params, masks=masks)
    np.testing.assert_allclose(updates["kernel"], [[-4.0 - 0.4, 0.0]], rtol=1e-6)


@pytest.mark.parametrize(
    "outer",
    [
        lambda tx: optax.masked(tx, {"fc": True, "head": False}),
        lambda tx: optax.partition(
            {"sparse": tx, "dense": optax.sgd(0.1)}, {"fc": "sparse", "head": "dense"}
        ),
    ],
    ids=["optax.masked", "optax.partition"],
)
def test_masked_inside_what_chooses_leaves_says_how_to_turn_it_round(outer):
    params = fill({"fc": {"kernel": shape(2, 3)}, "head": {"kernel": shape(3, 2)}}, 0)
    masks = jax.tree.map(lambda x: x > 0, params)
    tx = outer(jaxsparse.masked(optax.sgd(0.1)))
    with pytest.raises(ValueError, match="put it outermost"):
        tx.update(params, tx.init(params), params, masks=masks)
    turned = jaxsparse.masked(outer(optax.sgd(0.1)))
    updates, _ = turned.update(
        params, turned.init(params), jaxsparse.apply_masks(params, masks), masks=masks
    )
    jaxsparse.check(updates, (), masks)


def test_masked_twice_is_masked_once():
    """`TrainState.create` wraps the optimizer; one that is wrapped already does no harm."""
    params = draw(0)
    masks = jax.tree.map(lambda x: x > 0, params)
    once = jaxsparse.masked(optax.adamw(0.1))
    twice = jaxsparse.masked(once)
    results = [tx.update(draw(1), tx.init(params), params, masks=masks) for tx in (once, twice)]
    chex.assert_trees_all_equal(*results)


def test_other_extra_arguments_reach_the_inner_transformation():
    tx = jaxsparse.masked(optax.contrib.reduce_on_plateau(patience=1))
    params = {"kernel": jnp.ones((2, 2))}
    masks = jaxsparse.dense_masks(params)
    _, state = tx.update(params, tx.init(params), params, masks=masks, value=jnp.float32(7.0))
    assert float(state.best_value) == 7.0


def test_an_event_restarts_what_is_not_kept():
    """Three classes of weights: kept, regrown from outside, pruned and regrown."""
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


def test_a_grown_weight_starts_with_the_first_slots_of_its_optimizer():
    tx = jaxsparse.masked(optax.chain(optax.scale_by_rss(0.5), optax.rprop(0.25)))
    params = {"kernel": jnp.array([[1.0, 2.0, 3.0, 4.0]])}
    full = jax.tree.map(lambda x: jnp.full_like(x, 7), tx.init(params))
    row = lambda *values: {"kernel": jnp.array([values], bool)}
    event = jaxsparse.Event(masks=row(1, 1, 1, 0), kept=row(1, 0, 0, 0), metrics=None)
    new, (rss, rprop) = jaxsparse.apply_event(tx, event, params, full)
    np.testing.assert_array_equal(new["kernel"], [[1, 0, 0, 0]])
    np.testing.assert_array_equal(rss.sum_of_squares["kernel"], [[7, 0.5, 0.5, 0]])
    np.testing.assert_array_equal(rprop[0].step_sizes["kernel"], [[7, 0.25, 0.25, 0]])
    np.testing.assert_array_equal(rprop[0].prev_updates["kernel"], [[7, 0, 0, 0]])


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
