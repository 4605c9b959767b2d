"""The core on parameters of every kind: scanned linen, NNX and its Optimizer, Equinox, tuples."""

from typing import Any, NamedTuple

import chex
import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jaxsparse

STEPS, EVERY = 8, 2
X = jnp.asarray(np.random.default_rng(0).normal(size=(4, 8)), jnp.float32)


@pytest.fixture(autouse=True)
def rank_promotion():
    with jax.numpy_rank_promotion("allow"):  # flax.nnx and equinox add biases so
        yield


# Models with 2 * 8 * 8 prunable weights in blocks and 8 * 3 in a head, 152 in all.


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return nn.relu(nn.Dense(8)(x)), None


class Scanned(nn.Module):
    """Kernels of shape (layers, in, out)."""

    @nn.compact
    def __call__(self, x):
        scan = nn.scan(Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=2)
        x, _ = scan(name="blocks")(x, None)
        return nn.Dense(3, name="head")(nn.LayerNorm()(x))


class NNXNet(nnx.Module):
    def __init__(self, rngs):
        self.blocks = nnx.List([nnx.Linear(8, 8, rngs=rngs) for _ in range(2)])
        self.norm = nnx.LayerNorm(8, rngs=rngs)
        self.head = nnx.Linear(8, 3, use_bias=False, rngs=rngs)

    def __call__(self, x):
        for block in self.blocks:
            x = nnx.relu(block(x))
        return self.head(self.norm(x))


class EquinoxNet(eqx.Module):
    blocks: list[eqx.nn.Linear]
    norm: eqx.nn.LayerNorm
    head: eqx.nn.Linear
    activation: Any
    name: str = eqx.field(static=True)

    def __init__(self, key):
        keys = jax.random.split(key, 3)
        self.blocks = [eqx.nn.Linear(8, 8, key=k) for k in keys[:2]]
        self.norm = eqx.nn.LayerNorm(8)
        self.head = eqx.nn.Linear(8, 3, use_bias=False, key=keys[2])
        self.activation = jax.nn.relu
        self.name = "net"

    def __call__(self, x):
        for block in self.blocks:
            x = self.activation(block(x))
        return self.head(self.norm(x))


class Layer(NamedTuple):
    kernel: Any
    bias: Any


def scanned():
    model = Scanned()
    params = model.init(jax.random.key(1), X)["params"]
    return params, lambda params: model.apply({"params": params}, X)


def nnx_state():
    graphdef, params = nnx.split(NNXNet(nnx.Rngs(0)), nnx.Param)
    return params, lambda params: nnx.merge(graphdef, params)(X)


def equinox_module():
    params, static = eqx.partition(EquinoxNet(jax.random.key(1)), eqx.is_inexact_array)
    assert params.activation is None and params.head.bias is None  # holes, not leaves
    return params, lambda params: jax.vmap(eqx.combine(params, static))(X)


def lists_and_tuples():
    rng = np.random.default_rng(1)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    params = [(Layer(draw(8, 8), draw(8)), Layer(draw(8, 8), draw(8))), {"head": [draw(8, 3)]}]

    def forward(params):
        x = X
        for layer in params[0]:
            x = jax.nn.relu(x @ layer.kernel + layer.bias)
        return x @ params[1]["head"][0]

    return params, forward


TREES = {
    "linen scan": (scanned, ["blocks/Dense_0/kernel", "head/kernel"]),
    "nnx": (nnx_state, ["blocks/0/kernel", "blocks/1/kernel", "head/kernel"]),
    "equinox": (equinox_module, ["blocks/0/weight", "blocks/1/weight", "head/weight"]),
    "lists": (lists_and_tuples, ["0/0/kernel", "0/1/kernel", "1/head/0"]),
}
RULES = {"lists": ((r"kernel$", True), (r"head/0$", True))}  # a bare array has no telling name


def granet_st(prunable=None):
    return jaxsparse.granet_st(
        sparsity=0.75, total_steps=STEPS, update_interval=EVERY, prunable=prunable
    )


@pytest.mark.parametrize("name", TREES)
def test_training_and_events_on_any_tree(name, key):
    make, paths = TREES[name]
    params, forward = make()
    method = granet_st(RULES.get(name))
    assert jaxsparse.prunable_paths(params, method.prunable) == paths
    structure = jax.tree.structure(params)
    masks = method.init(key, params)
    params = jaxsparse.apply_masks(params, masks)
    tx = jaxsparse.masked(optax.adamw(0.01))
    opt_state = tx.init(params)

    @jax.jit
    def step(params, opt_state, masks):
        grads = jax.grad(lambda params: ((forward(params) - 1.0) ** 2).mean())(params)
        updates, opt_state = tx.update(grads, opt_state, params, masks=masks)
        return optax.apply_updates(params, updates), opt_state, grads

    for n in range(1, STEPS + 1):
        params, opt_state, grads = step(params, opt_state, masks)
        if method.is_due(n):
            event = method.update(params, grads, masks, n, key=key)
            params, opt_state = jaxsparse.apply_event(tx, event, params, opt_state)
            masks = event.masks
        jaxsparse.check(params, opt_state, masks)
    assert jaxsparse.num_active(masks, method.prunable) == (128 + 24) // 4
    assert [row.path for row in jaxsparse.summary(params, masks, method.prunable).layers] == paths
    for tree in (params, masks, event.kept):
        assert jax.tree.structure(tree) == structure
    assert step._cache_size() == 1
    chex.assert_tree_all_finite(forward(params))


@pytest.mark.parametrize("name", ["linen scan", "equinox"])
def test_the_train_state_carries_any_tree(name, key):
    make, paths = TREES[name]
    params, forward = make()
    state = jaxsparse.TrainState.create(
        apply_fn=None, params=params, tx=optax.sgd(0.1, momentum=0.9), method=granet_st(), key=key
    )

    @jax.jit
    def step(state):
        grads = jax.grad(lambda params: (forward(params) ** 2).mean())(state.params)
        return state.apply_gradients(grads=grads, event=True)

    state = step(state)
    assert jax.tree.structure(state.params) == jax.tree.structure(params)
    assert [row.path for row in state.summary().layers] == paths
    assert int(state.event_metrics.num_active.sum()) == state.summary().num_active < 152
    jaxsparse.check(state.params, state.opt_state, state.masks)


def test_the_layers_of_a_scan_count_as_layers(key):
    """Two layers of (8, 8) and a head of (8, 3), as unrolled: ERK for 0.3 of 152 weights."""
    params, _ = scanned()
    distribution = jaxsparse.stacked(jaxsparse.erk(), {r"^blocks/": 1})
    method = jaxsparse.static(sparsity=0.7, total_steps=1, distribution=distribution)
    layers = {"b0": (8, 8), "b1": (8, 8), "head": (8, 3)}
    unrolled = jaxsparse.leaf_counts(jaxsparse.erk(), layers, 0.3)
    blocks, head = jaxsparse.summary(params, method.init(key, params)).layers
    assert blocks.shape == (2, 8, 8)
    assert blocks.num_active == unrolled["b0"] + unrolled["b1"]
    assert head.num_active == unrolled["head"]


def test_nnx_optimizer_hands_masks_on_and_takes_events(key):
    """`optimizer.update(model, grads, masks=masks)`; an event writes back what update does."""
    model, method = NNXNet(nnx.Rngs(0)), granet_st()
    params = nnx.as_pure(nnx.state(model, nnx.Param))
    masks = method.init(key, params)
    nnx.update(model, jaxsparse.apply_masks(params, masks))
    optimizer = nnx.Optimizer(model, jaxsparse.masked(optax.adam(0.01)), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer, masks):
        grads = nnx.grad(lambda model: ((model(X) - 1.0) ** 2).mean())(model)
        optimizer.update(model, grads, masks=masks)
        return grads

    for n in range(1, STEPS + 1):
        grads = step(model, optimizer, masks)
        if method.is_due(n):
            params, opt_state = nnx.as_pure((nnx.state(model, nnx.Param), optimizer.opt_state))
            event = method.update(params, nnx.as_pure(grads), masks, n, key=key)
            params, opt_state = jaxsparse.apply_event(optimizer.tx, event, params, opt_state)
            nnx.update(model, params)
            nnx.update(optimizer.opt_state, nnx.state(opt_state))
            masks = event.masks
        params, opt_state = nnx.as_pure((nnx.state(model, nnx.Param), optimizer.opt_state))
        jaxsparse.check(params, opt_state, masks)
        if method.is_due(n):
            jaxsparse.check(params, opt_state, event.kept)
    assert int(optimizer.step[...]) == STEPS
    assert jaxsparse.num_active(masks) == (128 + 24) // 4
    slots = [x for x in jax.tree.leaves(opt_state) if x.shape == (8, 8)]
    assert len(slots) == 4 and all((x != 0).any() for x in slots)


def test_nnx_optimizer_without_masks_says_what_is_missing():
    model = NNXNet(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, jaxsparse.masked(optax.adam(0.01)), wrt=nnx.Param)
    with pytest.raises(TypeError, match="needs masks="):
        optimizer.update(model, nnx.state(model, nnx.Param))


def test_equinox_names_and_layouts():
    """Weights are (out, in, ...): ERK does not see it, Erdos-Renyi counts a kernel's own axes."""
    net = {
        "conv": eqx.nn.Conv2d(4, 16, 3, key=jax.random.key(0)),
        "fc": eqx.nn.Linear(8, 32, key=jax.random.key(0)),
        "norm": eqx.nn.LayerNorm((8, 8)),
        "embed": eqx.nn.Embedding(10, 4, key=jax.random.key(0)),
    }
    params, _ = eqx.partition(net, eqx.is_inexact_array)
    paths = jaxsparse.prunable_paths(params)
    assert paths == ["conv/weight", "fc/weight"]  # the norm's and the embedding's have rank 2 too
    equinox = {"conv": params["conv"].weight.shape, "fc": params["fc"].weight.shape}
    flax = {"conv": (3, 3, 4, 16), "fc": (8, 32)}
    assert equinox == {"conv": (16, 4, 3, 3), "fc": (32, 8)}
    assert jaxsparse.erk()(equinox, 0.2) == pytest.approx(jaxsparse.erk()(flax, 0.2))
    # (4 + 16) / (4 * 16) : (8 + 32) / (8 * 32) = 2, where (3 + 3) / (3 * 3) : ... = 64 / 15
    for shapes, ratio in ((flax, 2), (equinox, 64 / 15)):
        densities = jaxsparse.erdos_renyi()(shapes, 0.1)
        assert densities["conv"] / densities["fc"] == pytest.approx(ratio)
