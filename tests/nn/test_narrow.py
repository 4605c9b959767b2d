"""Narrow linen and NNX models are the full ones without the removed units, and they train."""

import functools
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

import jaxsparse
from jaxsparse.nn import Narrowed, WideResNet, cifar_resnet, narrow_module, narrow_nnx
from jaxsparse.structured import (
    channel_groups,
    channel_importance,
    check_narrow,
    group_costs,
    plan_of_units,
    plan_widths,
)


class Cnn(nn.Module):
    """All kinds of convolutions and norms, a flatten, and an activation that moves 0."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.relu(nn.GroupNorm(4)(nn.Conv(16, (3, 3), name="c1")(x)))
        x = nn.relu(nn.Conv(16, (3, 3), feature_group_count=16, name="depthwise")(x))
        x = nn.Conv(24, (3, 3), strides=2, name="c2")(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        x = nn.relu(nn.Conv(32, (3, 3), feature_group_count=4, name="grouped")(x))
        x = x.reshape(x.shape[0], -1)
        return nn.Dense(5, name="d2")(nn.sigmoid(nn.Dense(20, name="d1")(x)))


class Vit(nn.Module):
    """A transformer whose heads, MLP and stream are narrowed; the norms of the stream are noted."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(16, (4, 4), strides=(4, 4), name="patch")(x)
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        h = nn.LayerNorm()(x)
        x = x + nn.MultiHeadDotProductAttention(num_heads=4, name="attention")(h, h)
        width = x.shape[-1]
        x = x + nn.Dense(width, name="down")(nn.gelu(nn.Dense(40, name="up")(nn.LayerNorm()(x))))
        return nn.Dense(7, name="head")(x.mean(1))


class Block(nn.Module):
    """A bottleneck as Flax's examples write it: layers are arguments, shapes say what is added."""

    filters: int
    conv: Any
    norm: Any
    strides: tuple[int, int] = (1, 1)

    @nn.compact
    def __call__(self, x):
        y = nn.relu(self.norm()(self.conv(self.filters, (1, 1))(x)))
        y = nn.relu(self.norm()(self.conv(self.filters, (3, 3), self.strides)(y)))
        y = self.norm(scale_init=nn.initializers.zeros_init())(
            self.conv(4 * self.filters, (1, 1))(y)
        )
        if x.shape != y.shape:
            x = self.conv(4 * self.filters, (1, 1), self.strides, name="conv_proj")(x)
            x = self.norm(name="norm_proj")(x)
        return nn.relu(x + y)


class Residual(nn.Module):
    """Two stages of such blocks."""

    @nn.compact
    def __call__(self, x):
        conv = functools.partial(nn.Conv, use_bias=False)
        norm = functools.partial(nn.BatchNorm, use_running_average=True)
        x = nn.relu(norm(name="bn_init")(conv(8, (3, 3), name="conv_init")(x)))
        for stage, blocks in enumerate((2, 1)):
            for number in range(blocks):
                strides = (2, 2) if stage > 0 and number == 0 else (1, 1)
                x = Block(4 * 2**stage, conv=conv, norm=norm, strides=strides)(x)
        return nn.Dense(6)(x.mean((1, 2)))


def drawn(tree, seed=0):
    """Variables away from their initial ones and zeros, variances above 0."""
    leaves, treedef = jax.tree.flatten(tree)
    rng = np.random.default_rng(seed)
    new = [np.asarray(x) + 0.1 * rng.normal(size=x.shape).astype(x.dtype) ** 2 for x in leaves]
    return jax.tree.unflatten(treedef, map(jnp.asarray, new))


IMAGES = jnp.asarray(np.random.default_rng(1).normal(size=(2, 8, 8, 3)), jnp.float32)
MODELS = {
    "cnn": Cnn(),
    "vit": Vit(),
    "in flax's way": Residual(),
    "resnet": cifar_resnet(8, width=4),
    "wide resnet": WideResNet(depth=10, width=1),
}


@pytest.fixture(scope="module", params=MODELS)
def network(request):
    model = MODELS[request.param]
    variables = drawn(model.init(jax.random.key(0), IMAGES))
    groups = channel_groups(model.apply, variables, IMAGES)
    flops = jaxsparse.layer_flops(model.apply, variables, IMAGES[:1])
    return model, variables, groups, flops


def test_outputs_costs_and_initial_variables(network):
    model, variables, groups, flops = network
    ranking = "layer" if isinstance(model, Vit) else "isomorphic"
    importance = channel_importance(groups, jax.tree.map(jnp.abs, variables))
    costs = group_costs(groups, flops)
    plan = plan_widths(groups, importance, costs, target=0.6, ranking=ranking, round_to=2)
    narrow = narrow_module(model, plan)
    found = check_narrow(plan, model.apply, narrow.apply, variables, IMAGES)
    assert found < 1e-5 or plan.notes
    after = jaxsparse.layer_flops(narrow.apply, plan.apply(variables), IMAGES[:1])
    other = after.get("(other)", 0) - flops.get("(other)", 0)
    assert sum(after.values()) - other == 2 * costs(plan.widths) <= 0.6 * sum(flops.values())
    made = narrow.init(jax.random.key(1), IMAGES)
    shapes = lambda tree: jax.tree.map(jnp.shape, tree)
    assert shapes(made) == shapes(plan.apply(variables))
    parameters = group_costs(groups)
    assert parameters(plan.widths) == sum(x.size for x in jax.tree.leaves(made))


def test_a_narrow_model_trains_with_masks_and_its_old_optimizer_state():
    model, tx = Cnn(), jaxsparse.masked(optax.adam(1e-2))
    variables = drawn(model.init(jax.random.key(0), IMAGES))
    params, stats = variables["params"], variables["batch_stats"]
    groups = channel_groups(model.apply, variables, IMAGES)
    importance = channel_importance(groups, jax.tree.map(jnp.abs, variables))
    plan = plan_widths(groups, importance, group_costs(groups), target=0.5)
    masks = jaxsparse.magnitude_masks(params, sparsity=0.5)
    state = tx.init(params)
    grads = jax.tree.map(jnp.ones_like, params)
    _, state = tx.update(grads, state, params, masks=masks)
    narrow = narrow_module(model, plan)
    params, stats, masks, state = map(plan.apply, (params, stats, masks, state))
    jaxsparse.check(jaxsparse.apply_masks(params, masks), state, masks)

    def loss(params):
        given = {"params": params, "batch_stats": stats}
        logits, _ = narrow.apply(given, IMAGES, train=True, mutable=["batch_stats"])
        return (logits[:, 0] ** 2).sum()

    first, params = None, jaxsparse.apply_masks(params, masks)
    for _ in range(3):
        value, grads = jax.jit(jax.value_and_grad(loss))(params)
        first = value if first is None else first
        updates, state = tx.update(grads, state, params, masks=masks)
        params = optax.apply_updates(params, updates)
    assert value < first
    jaxsparse.check(params, state, masks)


def test_widths_are_saved_as_text():
    model = Cnn()
    variables = jax.eval_shape(model.init, jax.random.key(0), IMAGES)
    groups = channel_groups(model.apply, variables, IMAGES)
    plan = plan_of_units(groups, {"params/d1": range(9), "params/c1": [0, 2]})
    narrow = narrow_module(model, plan)
    again = Narrowed.from_json(model, narrow.to_json())
    assert again == narrow and hash(again) == hash(narrow)
    assert json.loads(narrow.to_json())["d1"]["kernel"] == [[512, 20], [512, 9], 1]
    with pytest.raises(ValueError, match="the text is not that of widths"):
        Narrowed.from_json(model, "[1]")


class NnxNet(nnx.Module):
    """Convolutions with norms, attention and an embedding of positions."""

    def __init__(self, rngs):
        self.c1 = nnx.Conv(3, 16, (3, 3), rngs=rngs)
        self.norm1 = nnx.GroupNorm(16, num_groups=4, rngs=rngs)
        self.depthwise = nnx.Conv(16, 16, (3, 3), feature_group_count=16, rngs=rngs)
        self.c2 = nnx.Conv(16, 12, (3, 3), strides=4, rngs=rngs)
        self.norm2 = nnx.BatchNorm(12, use_running_average=True, rngs=rngs)
        self.places = nnx.Embed(4, 12, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(4, 12, 8, 12, decode=False, rngs=rngs)
        self.blocks = nnx.List([nnx.Linear(12, 20, rngs=rngs), nnx.Linear(20, 12, rngs=rngs)])
        self.head = nnx.LinearGeneral(12, (5,), rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.depthwise(nnx.relu(self.norm1(self.c1(x)))))
        x = nnx.relu(self.norm2(self.c2(x)))
        x = x.reshape(x.shape[0], -1, x.shape[-1]) + self.places(jnp.arange(4))[None]
        x = x + self.attention(x)
        x = x + self.blocks[1](nnx.relu(self.blocks[0](x)))
        return self.head(x.mean(1))


def test_nnx():
    model = NnxNet(nnx.Rngs(0))
    graph, state = nnx.split(model)
    forward = lambda state, x: nnx.merge(graph, state)(x)
    groups = channel_groups(forward, state, IMAGES)
    importance = channel_importance(groups, jax.tree.map(jnp.abs, state))
    plan = plan_widths(groups, importance, group_costs(groups), target=0.5, ranking="layer")
    narrow = narrow_nnx(model, plan)
    thin = nnx.split(narrow)[0]
    found = check_narrow(plan, forward, lambda state, x: nnx.merge(thin, state)(x), state, IMAGES)
    assert found < 1e-5
    assert model(IMAGES).shape == narrow(IMAGES).shape == (2, 5)
    assert model.c1.out_features == 16  # the model stays as it was
    assert narrow.attention.num_heads == plan.widths["attention/query"] < 4
    assert narrow.norm1.num_groups == plan.widths["c1"]
    assert narrow.depthwise.feature_group_count == narrow.c1.out_features
    assert narrow.blocks[0].out_features == narrow.blocks[1].in_features
    assert narrow.norm2.num_features == narrow.places.features == narrow.c2.out_features
    assert narrow.head.in_features == (narrow.c2.out_features,)
    grads = nnx.grad(lambda model: (model(IMAGES) ** 2).sum())(narrow)
    assert jax.tree.map(jnp.shape, grads) == jax.tree.map(jnp.shape, nnx.state(narrow, nnx.Param))


class Grouped(nn.Module):
    """Groups whose number stays while each becomes smaller, and a group norm by group size."""

    widths: tuple[int, int] = (16, 24)
    group_size: int = 4

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(self.widths[0], (1, 1), name="c1")(x)
        x = nn.relu(nn.GroupNorm(num_groups=None, group_size=self.group_size)(x))
        x = nn.Conv(self.widths[1], (1, 1), feature_group_count=4, name="c2")(x)
        x = nn.relu(nn.GroupNorm(num_groups=4)(x))
        return nn.Dense(3, name="d")(x.mean((1, 2)))


def test_inside_of_groups():
    """The narrow model is the one that is written with these widths."""
    model, written = Grouped(), Grouped(widths=(8, 12), group_size=2)
    variables = drawn(model.init(jax.random.key(0), IMAGES))
    groups = channel_groups(model.apply, variables, IMAGES, inner=True)
    plan = plan_of_units(
        groups, {group.name: np.arange(group.width) < group.width / 2 for group in groups}
    )
    narrow, thin = narrow_module(model, plan), plan.apply(variables)
    np.testing.assert_allclose(
        narrow.apply(thin, IMAGES), written.apply(thin, IMAGES), rtol=1e-5, atol=1e-6
    )


def test_one_plan_after_another():
    model = Cnn()
    variables = drawn(model.init(jax.random.key(0), IMAGES))
    for _ in range(2):
        groups = channel_groups(model.apply, variables, IMAGES)
        importance = channel_importance(groups, jax.tree.map(jnp.abs, variables))
        plan = plan_widths(groups, importance, group_costs(groups), target=0.7, ranking="layer")
        narrow = narrow_module(model, plan)
        assert check_narrow(plan, model.apply, narrow.apply, variables, IMAGES) < 1e-5
        model, variables = narrow, plan.apply(variables)
    shapes = jax.tree.map(jnp.shape, model.init(jax.random.key(1), IMAGES))
    assert shapes == jax.tree.map(jnp.shape, variables)


def test_layers_that_do_not_become_narrower_are_named():
    class Own(nn.Module):
        @nn.compact
        def __call__(self, x):
            return x @ self.param("kernel", nn.initializers.normal(), (3, 8))

    class Sum(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(2)(nn.relu(Own(name="e")(x)))

    x = jnp.ones((2, 3))
    variables = Sum().init(jax.random.key(0), x)
    plan = plan_of_units(channel_groups(Sum().apply, variables, x), {"params/e": range(4)})
    with pytest.raises(
        ValueError, match=r"e/kernel has shape \(3, 8\) at the new widths, and must"
    ):
        narrow_module(Sum(), plan).init(jax.random.key(0), x)
    shared = cifar_resnet(20, width=4, num_owners=2)
    variables = jax.eval_shape(shared.init, jax.random.key(0), IMAGES)
    groups = channel_groups(shared.apply, variables, IMAGES)
    with pytest.raises(ValueError, match=r"share kernels \(num_owners=2\)"):
        narrow_module(shared, plan_of_units(groups, {}))
