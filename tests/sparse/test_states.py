"""Compressed train states: round trips, and training with the same results."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

import jaxsparse
from jaxsparse.nn.sparse import sparse_execution
from jaxsparse.sparse import compress, compress_leaves, expand, find_positions

STEPS, EVERY = 12, 4


class Model(nn.Module):
    """Two layers with a smooth activation."""

    @nn.compact
    def __call__(self, x):
        x = nn.softplus(nn.Conv(8, (3, 3), padding="SAME")(x))
        return nn.Dense(5)(x.reshape(x.shape[0], -1))


OPTIMIZERS = {
    "momentum": optax.sgd(0.1, momentum=0.9),
    "adamw": optax.adamw(1e-2),
    "decay of kernels": optax.chain(
        optax.add_decayed_weights(1e-2, mask=lambda params: jax.tree.map(lambda x: True, params)),
        optax.sgd(0.1, momentum=0.9),
    ),
}
METHODS = {
    "rigl": jaxsparse.rigl(sparsity=0.8, total_steps=STEPS, update_interval=EVERY),
    "set": jaxsparse.set_(sparsity=0.8, total_steps=STEPS, update_interval=EVERY),
    "granet_st": jaxsparse.granet_st(sparsity=0.8, total_steps=STEPS, update_interval=EVERY),
    "gmp": jaxsparse.gmp(sparsity=0.8, total_steps=STEPS, update_interval=EVERY),
}


def start(method, tx):
    model = Model()
    images = jax.random.normal(jax.random.key(0), (16, 6, 6, 3))
    return images, jaxsparse.TrainState.create(
        apply_fn=model.apply,
        params=model.init(jax.random.key(1), images)["params"],
        tx=tx,
        method=method,
        key=jax.random.key(2),
        track_exploration=True,
    )


def grads_of(state, images, params, positions):
    labels = jnp.arange(16) % 5

    def loss(params):
        with sparse_execution(positions):
            logits = state.apply_fn({"params": params}, images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    return jax.grad(loss)(params)


@functools.partial(jax.jit, static_argnames="event")
def step(state, images, positions, event=False):
    grads = grads_of(state, images, state.params, positions)
    return state.apply_gradients(grads=grads, event=event)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_there_and_back(name):
    images, state = start(METHODS["rigl"], OPTIMIZERS[name])
    for _ in range(2):
        state = step(state, images, {})
    positions = find_positions(state.masks, state.method.prunable)
    short = compress(state, positions)
    assert short.params["Conv_0"]["kernel"].shape == (positions["Conv_0/kernel"].capacity,)
    sizes = lambda tree: sum(x.size for x in jax.tree.leaves(tree))
    assert sizes(short.opt_state) < 0.35 * sizes(state.opt_state)
    back = expand(short, positions)
    chex.assert_trees_all_equal(back.replace(key=None), state.replace(key=None))
    jaxsparse.check(short.params, short.opt_state, short.masks)


@pytest.mark.parametrize(
    ("name", "optimizer"),
    [("rigl", "momentum"), ("rigl", "adamw"), ("granet_st", "adamw"), ("gmp", "decay of kernels")],
)
def test_a_whole_run_is_that_of_masked_training(name, optimizer):
    method = METHODS[name]
    images, dense = start(method, OPTIMIZERS[optimizer])
    sparse = dense
    positions = find_positions(sparse.masks, method.prunable)
    sparse = compress(sparse, positions)
    for n in range(1, STEPS + 1):
        dense = step(dense, images, {}, event=method.is_due(n))
        if method.is_due(n):
            sparse = step(expand(sparse, positions), images, {}, event=True)
            positions = find_positions(sparse.masks, method.prunable)
            sparse = compress(sparse, positions)
        else:
            sparse = step(sparse, images, positions)
    full = expand(sparse, positions)
    chex.assert_trees_all_equal(full.masks, dense.masks)
    chex.assert_trees_all_equal(full.explored, dense.explored)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    jax.tree.map(close, full.params, dense.params)
    jaxsparse.check(full.params, full.opt_state, full.masks)
    assert not method.timetable.events or int(full.event_metrics.num_active.sum()) > 0


def test_capacity_that_is_not_used_changes_nothing():
    images, state = start(METHODS["rigl"], OPTIMIZERS["adamw"])
    positions = find_positions(state.masks)
    larger = find_positions(state.masks, capacity={p: x.capacity + 7 for p, x in positions.items()})
    ends = []
    for where in (positions, larger):
        short = compress(state, where)
        for _ in range(3):
            short = step(short, images, where)
        ends.append(expand(short, where))
    chex.assert_trees_all_equal(ends[0].replace(key=None), ends[1].replace(key=None))


def test_an_event_asks_for_all_weights():
    images, state = start(METHODS["rigl"], OPTIMIZERS["momentum"])
    every = find_positions(state.masks)
    short = compress(state, {"Conv_0/kernel": every["Conv_0/kernel"]})
    with pytest.raises(ValueError, match="params have 1 prunable leaves, at the start they had 2"):
        short.apply_gradients(grads=short.params, event=True)


def test_what_does_not_fit_is_named():
    _, state = start(METHODS["rigl"], OPTIMIZERS["adamw"])
    positions = find_positions(state.masks)
    with pytest.raises(ValueError, match="capacity for Conv_0/bias, which is no prunable leaf"):
        find_positions(state.masks, capacity={"Conv_0/bias": 3})
    with pytest.raises(ValueError, match="capacity 1 for"):
        find_positions(state.masks, capacity={"Conv_0/kernel": 1})
    other = {"Conv_1/kernel": positions["Conv_0/kernel"]}
    with pytest.raises(ValueError, match="Conv_1/kernel is missing in params, its positions are"):
        compress(state, other)
    short = compress(state, positions)
    with pytest.raises(ValueError, match=r"Conv_0/kernel is \(\d+,\) in params, its positions are"):
        compress(short, positions)


@pytest.mark.parametrize("transform", [lambda f: f, jax.jit])
def test_what_cannot_be_expanded_is_named(transform):
    _, state = start(METHODS["rigl"], OPTIMIZERS["adamw"])
    positions = find_positions(state.masks)
    short = compress(state, positions)
    first = {"Conv_0/kernel": positions["Conv_0/kernel"]}
    lengthen = transform(expand)
    for given, missing in (({}, "Conv_0/kernel, Dense_0/kernel"), (first, "Dense_0/kernel")):
        num = len(given)
        message = f"params have {num} prunable leaves in full, at the start they had 2; positions"
        with pytest.raises(ValueError, match=f"{message} lack {missing}"):
            lengthen(short, given)
    with pytest.raises(ValueError, match=r"Conv_0/kernel is \(3, 3, 3, 8\) in params, its positio"):
        lengthen(state, positions)
    larger = find_positions(
        state.masks, capacity={"Conv_0/kernel": first["Conv_0/kernel"].capacity + 7}
    )
    with pytest.raises(ValueError, match=r"Conv_0/kernel is \(\d+,\) in params, its positions are"):
        lengthen(short, larger)
    with pytest.raises(ValueError, match="Conv_1/kernel is missing in params"):
        lengthen(short, {"Conv_1/kernel": positions["Conv_0/kernel"]})
    # A state without compressed leaves is dense, for any prunable leaves.
    chex.assert_trees_all_equal(lengthen(state, {}).masks, state.masks)
    method = jaxsparse.set_(
        sparsity=0.5, total_steps=STEPS, update_interval=2, prunable=((".", True),)
    )
    _, state = start(method, OPTIMIZERS["momentum"])
    positions = find_positions(state.masks, method.prunable)
    back = lengthen(compress(state, positions), positions)
    chex.assert_trees_all_equal(back.params, state.params)


def test_a_file_as_large_as_the_active_weights_goes_on_in_both_executions(tmp_path):
    images, state = start(METHODS["set"], OPTIMIZERS["momentum"])
    positions = find_positions(state.masks)
    full = expand(step(compress(state, positions), images, positions), positions)
    files = [tmp_path / name for name in ("dense", "sparse")]
    jaxsparse.save_safetensors(files[0], full.params)
    jaxsparse.save_safetensors(files[1], full.params, full.masks)
    assert files[1].stat().st_size < 0.5 * files[0].stat().st_size
    params, masks = jaxsparse.load_safetensors(files[1], like=full.params)
    chex.assert_trees_all_equal((params, masks), (full.params, full.masks))
    short = compress_leaves(params, find_positions(masks))
    with sparse_execution(positions):
        logits = state.apply_fn({"params": short}, images)
    expected = state.apply_fn({"params": params}, images)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


def test_a_method_that_averages_all_gradients_is_refused():
    _, state = start(
        jaxsparse.snfs(sparsity=0.8, total_steps=STEPS, update_interval=2), optax.sgd(0.1)
    )
    with pytest.raises(ValueError, match="snfs reads the gradient of all weights at every step"):
        compress(state, find_positions(state.masks))


def test_a_compressed_state_is_told_from_one_without_kernels():
    _, state = start(METHODS["rigl"], optax.sgd(0.1))
    short = compress(state, find_positions(state.masks))
    with pytest.raises(ValueError, match="a compressed state is to be expanded first"):
        _ = short.sparsity
