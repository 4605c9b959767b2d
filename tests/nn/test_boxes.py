"""Params in Flax's boxes give the same masks, steps, events and files as params without boxes."""

import functools

import chex
import jax
import jax.numpy as jnp
import optax
import pytest
from flax import linen as nn

import jaxsparse
from jaxsparse import sparse
from jaxsparse.checkpoint import restore_checkpoint, save_checkpoint
from jaxsparse.nn import layer_shapes, sparse_execution

X = jax.random.normal(jax.random.key(0), (4, 5, 5, 2))
BOXES = {"partitioned": nn.with_partitioning, "logical": nn.with_logical_partitioning}
PLAIN = lambda init, names: init


class Model(nn.Module):
    """A convolution and a linear layer, all of whose params are in boxes."""

    boxed: str = ""

    @nn.compact
    def __call__(self, x):
        box = BOXES.get(self.boxed, PLAIN)
        start, zeros = nn.initializers.lecun_normal(), nn.initializers.zeros
        kernel_init = box(start, (None, None, "in", "out"))
        x = nn.Conv(6, (3, 3), kernel_init=kernel_init, bias_init=box(zeros, ("out",)))(x)
        norm = nn.LayerNorm(
            scale_init=box(nn.initializers.ones, ("out",)), bias_init=box(zeros, ("out",))
        )
        x = jnp.tanh(norm(x)).mean((1, 2))
        return nn.Dense(3, kernel_init=box(start, ("in", "out")), bias_init=box(zeros, ("out",)))(x)


METHOD = jaxsparse.granet_st(sparsity=0.8, total_steps=20, update_interval=4)


def run(boxed, tmp_path):
    """A user's steps with a model, in order."""
    model = Model(boxed)
    params = jax.jit(model.init)(jax.random.key(1), X)["params"]
    forward = lambda params, x: model.apply({"params": params}, x)
    state = jaxsparse.TrainState.create(
        apply_fn=model.apply,
        params=params,
        tx=optax.adamw(1e-2),
        method=METHOD,
        key=jax.random.key(2),
        track_exploration=True,
    )

    @functools.partial(jax.jit, static_argnames="event")
    def step(state, positions, event=False):
        def loss(params):
            with sparse_execution(positions):
                return (forward(params, X) ** 2).sum()

        return state.apply_gradients(grads=jax.grad(loss)(state.params), event=event)

    for n in (1, 2, 3, 4):
        state = step(state, {}, event=n == 4)
    jaxsparse.check(state.params, state.opt_state, state.masks)
    save_checkpoint(tmp_path / "checkpoints", 4, state)
    like = state.replace(params=jax.tree.map(jnp.zeros_like, state.params))
    restored = restore_checkpoint(tmp_path / "checkpoints", like)
    assert restored is not None
    chex.assert_trees_all_equal(restored.state.params, state.params)
    positions = sparse.find_positions(state.masks)
    short = step(sparse.compress(state, positions), positions)
    full = sparse.expand(short, positions)
    chex.assert_trees_all_equal_structs(full, state)
    jaxsparse.check(full.params, full.opt_state, full.masks)
    jaxsparse.save_safetensors(tmp_path / "model.safetensors", full.params, full.masks)
    loaded, _ = jaxsparse.load_safetensors(tmp_path / "model.safetensors", like=full.params)
    chex.assert_trees_all_equal(loaded, full.params)
    flops = jaxsparse.layer_flops(forward, params, X[:1])
    live = jaxsparse.live_weights(forward, params, full.masks, X[:1])
    return {
        "arrays": nn.meta.unbox((full.params, full.masks, full.opt_state, full.explored)),
        "paths": jaxsparse.prunable_paths(params),
        "summary": str(full.summary()),
        "plan": str(METHOD.plan(params, flops)),
        "live": jaxsparse.count_live(full.masks, live),
        "layers": layer_shapes(model.apply, {"params": params}, X),
        "one-shot": nn.meta.unbox(
            jaxsparse.pattern_masks(params, jaxsparse.channels(), sparsity=0.5)
        ),
        "specs": nn.get_partition_spec((full.params, full.masks)),
    }


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return run("", tmp_path_factory.mktemp("plain"))


@pytest.mark.parametrize("boxed", BOXES)
def test_boxes_change_nothing(boxed, plain, tmp_path):
    found = run(boxed, tmp_path)
    for spec in found.pop("specs"):  # masks have the boxes of their params
        assert spec["Dense_0"]["kernel"] == jax.P("in", "out")
    for name in ("arrays", "one-shot"):
        chex.assert_trees_all_equal(found.pop(name), plain[name])
    assert found == {name: plain[name] for name in found}


def test_a_compressed_box_is_not_laid_out_by_its_names():
    """In a mesh Flax shards a box by the names of its axes, and the vector has one axis only."""
    model = Model("partitioned")
    params = model.init(jax.random.key(1), X)["params"]
    positions = sparse.find_positions(METHOD.init(jax.random.key(2), params))
    short = sparse.compress_leaves(params, positions)
    mesh = jax.make_mesh((2, 1), ("in", "out"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    with jax.set_mesh(mesh), sparse_execution(positions):
        found = jax.jit(lambda params: model.apply({"params": params}, X))(short)
    with sparse_execution(positions):
        expected = model.apply({"params": short}, X)
    chex.assert_trees_all_close(found, expected, rtol=1e-5, atol=1e-6)
