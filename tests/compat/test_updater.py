"""Scripts as jaxpruner's users have them run after one import, and train as our own loops do.

Its README, the loop of its quick start (a matrix that is to become orthogonal) and that of its
notebook on images, written anew on tiny networks.
"""

import functools
import types

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax.training import train_state

import jaxsparse
from jaxsparse import compat as jaxpruner  # the one new line of all that follows

CONFIG = {
    "algorithm": "magnitude",
    "dist_type": "uniform",
    "sparsity": 0.6,
    "update_freq": 2,
    "update_start_step": 5,
    "update_end_step": 15,
}


def loss_fn(params):
    matrix = params["w"]
    return jnp.sum((matrix @ matrix.T - jnp.eye(8)) ** 2)


@functools.partial(jax.jit, static_argnames="optimizer")
def update_fn(params, opt_state, optimizer):
    loss, grads = jax.value_and_grad(loss_fn)(params)
    updates, opt_state = optimizer.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, loss


def start():
    return {"w": jax.random.uniform(jax.random.key(8), (8, 8))}


def run_pruning_experiment(pruner, tx, steps=20):
    """The loop of the quick start; returns params and state after every call."""
    optimizer = pruner.wrap_optax(tx)  # Modification #1
    params = start()
    opt_state = optimizer.init(params)
    seen = [(params, opt_state)]
    for _ in range(steps):
        params, opt_state, _ = update_fn(params, opt_state, optimizer)
        params = pruner.post_gradient_update(params, opt_state)  # Modification #2
        seen.append((params, opt_state))
    return seen


def test_the_readme():
    tx, params = optax.adam(1e-3), {"layer": {"kernel": jnp.ones((4, 4)), "bias": jnp.ones(4)}}
    pruner = jaxpruner.create_updater_from_config(CONFIG)  # Line 1: Create pruner.
    tx = pruner.wrap_optax(tx)  # Line 2: Wrap optimizer.
    opt_state = tx.init(params)
    assert isinstance(opt_state, jaxpruner.SparseState)
    updates, opt_state = tx.update(params, opt_state, params)
    assert int(opt_state.count) == 1
    chex.assert_trees_all_equal_structs(updates, params, opt_state.masks)


def test_the_quick_start_prunes_in_one_step():
    one_shot = {**CONFIG, "update_start_step": 10, "update_end_step": 10, "sparsity": 0.8}
    pruner = jaxpruner.create_updater_from_config(types.SimpleNamespace(**one_shot))
    seen = run_pruning_experiment(pruner, optax.sgd(0.005))
    active = [int(state.masks["w"].sum()) for _, state in seen]
    assert active == [64] * 11 + [13] * 10  # call 10 is the eleventh
    before, (after, state) = seen[10][0]["w"], seen[11]
    np.testing.assert_array_equal(
        state.masks["w"], abs(before) >= np.sort(abs(before).ravel())[-13]
    )
    # That call steps, too, under the new masks, by the gradient of the dense matrix.
    stepped = before - 0.005 * jax.grad(loss_fn)({"w": before})["w"]
    np.testing.assert_allclose(after["w"], jnp.where(state.masks["w"], stepped, 0), atol=1e-6)
    summary = jaxpruner.summarize_sparsity(after, only_total_sparsity=True)
    assert float(summary["_total_sparsity"]) == 1 - 13 / 64


@pytest.mark.parametrize("algorithm", ["magnitude", "global_saliency", "rigl", "no_prune"])
def test_a_run_is_that_of_our_own_loop(algorithm):
    """Masks beside params, `masked` and `method.update`, in the order of jaxpruner's calls."""
    tx = optax.adam(0.01)
    pruner = jaxpruner.create_updater_from_config({**CONFIG, "algorithm": algorithm, "rng_seed": 3})
    seen = run_pruning_experiment(pruner, tx)

    params, key = start(), jax.random.key(3)
    method, own = pruner.method(params), jaxsparse.masked(tx)
    masks, opt_state = method.init(key, params), own.init(params)
    step = jax.jit(lambda grads, *state: own.update(grads, *state[:-1], masks=state[-1]))
    for n in range(1, 21):
        grads = jax.grad(loss_fn)(params)
        if method.is_due(n):
            event = method.update(params, grads, masks, n, key=key)
            params, opt_state = jaxsparse.apply_event(own, event, params, opt_state)
            masks = event.masks
        if not (method.is_due(n) and method.skip_step):
            updates, opt_state = step(grads, opt_state, params, masks)
            params = optax.apply_updates(params, updates)
        params = jaxsparse.apply_masks(params, masks)
        theirs, state = seen[n]
        chex.assert_trees_all_equal(state.masks, masks)
        chex.assert_trees_all_close(theirs, params, atol=1e-5)
        assert bool(((theirs["w"] != 0) <= masks["w"]).all())
    assert int(state.count) == 20
    assert method.skip_step == (algorithm == "rigl")
    changes = [
        n for n in range(1, 21) if (seen[n][1].masks["w"] != seen[n - 1][1].masks["w"]).any()
    ]
    assert set(changes) <= {event.step for event in method.timetable.events}
    assert bool(changes) == (algorithm != "no_prune")


def test_a_skipped_step_changes_nothing_but_the_masks():
    pruner = jaxpruner.create_updater_from_config({**CONFIG, "algorithm": "rigl"})
    seen = run_pruning_experiment(pruner, optax.adam(0.01), steps=8)
    (before, old), (after, new) = seen[6:8]  # call 6 is on the grid of 2
    kept = old.masks["w"] & new.masks["w"]
    assert bool((new.masks["w"] & ~old.masks["w"]).any())
    np.testing.assert_array_equal(after["w"], jnp.where(kept, before["w"], 0))
    for slot in ("mu", "nu"):
        ours, theirs = (getattr(s.inner_state[0], slot)["w"] for s in (new, old))
        np.testing.assert_array_equal(ours, jnp.where(kept, theirs, 0))
    assert int(new.inner_state[0].count) == int(old.inner_state[0].count)


def test_weights_that_the_first_call_grows_start_at_0():
    # It is given the dense matrix, which no mask has touched yet.
    config = {**CONFIG, "algorithm": "rigl", "update_start_step": 0, "drop_fraction": 0.5}
    for skip in (True, False):
        pruner = jaxpruner.create_updater_from_config({**config, "skip_gradients": skip})
        (params, old), (after, new) = run_pruning_experiment(pruner, optax.sgd(0.0), steps=1)
        kept = old.masks["w"] & new.masks["w"]
        assert bool((new.masks["w"] & ~kept).any())
        np.testing.assert_allclose(after["w"], jnp.where(kept, params["w"], 0), atol=1e-7)


def test_one_program_for_all_calls():
    pruner = jaxpruner.create_updater_from_config({**CONFIG, "algorithm": "set"})
    optimizer = pruner.wrap_optax(optax.adam(0.01))
    params = start()
    opt_state = optimizer.init(params)

    @jax.jit
    @chex.assert_max_traces(n=1)
    def step(params, opt_state):
        updates, opt_state = optimizer.update(jax.grad(loss_fn)(params), opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    for _ in range(8):
        params, opt_state = step(params, opt_state)
    assert float(jaxpruner.summarize_sparsity(params)["w"]) >= 0.59


class CNN(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(4, (3, 3), strides=2)(x))
        return nn.Dense(3)(x.reshape((x.shape[0], -1)))


def test_the_notebook_on_images():
    config = {**CONFIG, "algorithm": "rigl", "sparsity": 0.9, "dist_type": "erk"}
    images, labels = jax.random.normal(jax.random.key(0), (32, 8, 8, 1)), jnp.arange(32) % 3
    images += labels[:, None, None, None]

    def create_train_state(rng):
        cnn = CNN()
        params = cnn.init(rng, jnp.ones([1, 8, 8, 1]))["params"]
        sparsity_updater = jaxpruner.create_updater_from_config(config)
        tx = sparsity_updater.wrap_optax(optax.sgd(0.05, 0.9))
        state = train_state.TrainState.create(apply_fn=cnn.apply, params=params, tx=tx)
        return state, sparsity_updater

    @jax.jit
    def apply_model(state):
        def loss_fn(params):
            logits = state.apply_fn({"params": params}, images)
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return jnp.mean(losses), logits

        (loss, logits), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
        return grads, loss, jnp.mean(jnp.argmax(logits, -1) == labels)

    @jax.jit
    def update_model(state, grads):
        updates, opt_state = state.tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return state.replace(step=state.step + 1, params=params, opt_state=opt_state)

    with jax.numpy_rank_promotion("allow"):  # flax adds biases so
        state, sparsity_updater = create_train_state(jax.random.key(0))
        pre_op = jax.jit(sparsity_updater.pre_forward_update)
        losses = []
        for _ in range(30):
            forward_state = state.replace(params=pre_op(state.params, state.opt_state))
            grads, loss, accuracy = apply_model(forward_state)
            state = update_model(state, grads)
            params = sparsity_updater.post_gradient_update(state.params, state.opt_state)
            state = state.replace(params=params)
            losses.append(float(loss))
    assert losses[-1] < 0.8 * losses[0] and float(accuracy) > 0.6
    size = 9 * 4 + 64 * 3
    masks = state.opt_state.masks
    assert jaxsparse.num_active(masks) == size - int(0.9 * size)
    jaxsparse.check(state.params, (), masks)
    assert masks["Conv_0"]["bias"].all()
    found = jaxpruner.summarize_sparsity(masks)
    assert float(found["Dense_0/bias"]) == 0.0
    assert float(found["_nparams"]) == size + 7


def test_one_shot_pruning():
    matrix = jax.random.uniform(jax.random.key(8), (5, 5))
    config = {"algorithm": "magnitude", "dist_type": "uniform", "sparsity": 0.8}
    pruner = jaxpruner.create_updater_from_config(config)
    pruned, mask = pruner.instant_sparsify(matrix)
    np.testing.assert_array_equal(mask, matrix >= np.sort(np.ravel(matrix))[-5])
    np.testing.assert_array_equal(pruned, jnp.where(mask, matrix, 0))

    by_group = jaxpruner.create_updater_from_config({**config, "sparsity_type": "nm_1,5"})
    _, masks = by_group.instant_sparsify({"pos": matrix, "inv": 1 - matrix})
    np.testing.assert_array_equal(masks["pos"], matrix == matrix.max(1, keepdims=True))
    np.testing.assert_array_equal(masks["inv"], matrix == matrix.min(1, keepdims=True))

    saliency = jaxpruner.create_updater_from_config({**config, "algorithm": "saliency"})
    pruned, mask = saliency.instant_sparsify(matrix, grads=1 - matrix)
    worth = matrix * (1 - matrix)
    np.testing.assert_array_equal(mask, worth >= np.sort(np.ravel(worth))[-5])
    with pytest.raises(ValueError, match="algorithm 'saliency' needs grads="):
        saliency.instant_sparsify(matrix)


def test_one_shot_pruning_over_all_leaves_and_at_random():
    params = {"a": jnp.arange(1.0, 9).reshape(2, 4), "b": 100 * jnp.ones((2, 4)), "c": jnp.zeros(4)}
    config = {"algorithm": "global_magnitude", "sparsity": 0.5}
    pruner = jaxpruner.create_updater_from_config({**config, "use_normalization": False})
    _, masks = pruner.instant_sparsify(params)
    assert [int(masks[name].sum()) for name in "abc"] == [0, 8, 4]
    _, masks = jaxpruner.create_updater_from_config(config).instant_sparsify(params)
    # Of a norm of 14.28 and 282.8: 5 / 14.28 = .350, 6 / 14.28 = .42; all of b is .354.
    assert [int(masks[name].sum()) for name in "abc"] == [3, 5, 4]
    at_random = {"algorithm": "random", "dist_type": "uniform", "sparsity": 0.5}
    drawn = [
        jaxpruner.create_updater_from_config(at_random | seed).instant_sparsify(params)[1]["b"]
        for seed in ({}, {"rng_seed": 8}, {"rng_seed": jax.random.key(9)})
    ]
    assert [int(mask.sum()) for mask in drawn] == [4, 4, 4]
    assert bool((drawn[0] == drawn[1]).all()) and bool((drawn[0] != drawn[2]).any())
    dense = jaxpruner.create_updater_from_config({"algorithm": "no_prune"})
    chex.assert_trees_all_equal(dense.instant_sparsify(params)[0], params)


def test_keys_of_the_old_kind():
    drawn = []
    for key in (jax.random.key_data(jax.random.key(5)), jax.random.key(5), 5, np.int64(5)):
        config = {"algorithm": "static_sparse", "dist_type": "erk", "sparsity": 0.5}
        pruner = jaxpruner.create_updater_from_config({**config, "rng_seed": key})
        drawn.append(pruner.wrap_optax(optax.sgd(0.1)).init(start()).masks)
    chex.assert_trees_all_equal(*drawn)


def test_target_sparsities_are_there_to_be_read():
    params = {"w": jnp.ones((4, 4)), "b": jnp.ones(4)}
    of = lambda **config: (
        jaxpruner.create_updater_from_config({**CONFIG, **config})
        .wrap_optax(optax.sgd(0.1))
        .init(params)
        .target_sparsities
    )
    floats = lambda tree: jax.tree.map(lambda x: round(float(x), 6), tree)
    assert floats(of()) == {"w": 0.6, "b": 0.0}
    assert floats(of(algorithm="no_prune")) == {"w": 0.0, "b": 0.0}
    assert floats(of(algorithm="global_magnitude")) == 0.6
    assert floats(of(sparsity_type="nm_1,4")) == {"w": 0.75, "b": 0.0}


def test_refusals():
    for algorithm in ("static_sparse", "set"):
        pruner = jaxpruner.create_updater_from_config({**CONFIG, "algorithm": algorithm})
        with pytest.raises(ValueError, match="trains sparse from the start"):
            pruner.instant_sparsify(start())
    never = {key: x for key, x in CONFIG.items() if not key.startswith("update")}
    with pytest.raises(ValueError, match="'magnitude' without update_start_step would train dense"):
        jaxpruner.create_updater_from_config(never).wrap_optax(optax.sgd(0.1))
    jaxpruner.create_updater_from_config({**never, "sparsity": 0}).wrap_optax(optax.sgd(0.1))
    tx = jaxpruner.create_updater_from_config(CONFIG).wrap_optax(optax.sgd(0.1))
    with pytest.raises(ValueError, match=r"needs params: tx.update\(grads, state, params\)"):
        tx.update(start(), tx.init(start()))


def test_what_is_not_there_says_what_is():
    with pytest.raises(AttributeError, match="create_updater_from_config with algorithm='rigl'"):
        jaxpruner.RigL  # noqa: B018
    with pytest.raises(AttributeError, match="straight-through estimators are not served"):
        jaxpruner.SteMagnitudePruning  # noqa: B018
    with pytest.raises(AttributeError, match="has no sparsity_schedules; it has SparseState"):
        jaxpruner.sparsity_schedules  # noqa: B018
    assert "rigl" in jaxpruner.all_algorithm_names()
