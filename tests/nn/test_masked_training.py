"""Every family trains under masks, and with bfloat16 its parameters and logits stay float32."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsparse
from jaxsparse.nn import VGG, Bottleneck, ResNet, WideResNet, cifar_resnet
from jaxsparse.paths import leaves_by_path

# The smallest of each family; the bottlenecks have the stem for ImageNet.
MODELS = {
    "basic": cifar_resnet(8),
    "bottleneck": ResNet((1, 1), Bottleneck, width=4, num_classes=10, dtype=jnp.bfloat16),
    "wide": WideResNet(10, 1, dropout_rate=0.3, dtype=jnp.bfloat16),
    "vgg": VGG(16),
}
IMAGES = jnp.asarray(np.random.default_rng(0).normal(size=(4, 16, 16, 3)), jnp.float32)
LABELS = jnp.arange(4)


def drawn(model, seed=1):
    """Variables like those of `init`, which takes long to compile."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        if path[-1].key == "kernel":
            std = np.sqrt(2 / np.prod(leaf.shape[:-1]))
            return jnp.asarray(rng.standard_normal(leaf.shape, np.float32) * np.float32(std))
        return jnp.full(leaf.shape, float(path[-1].key in ("scale", "var")), leaf.dtype)

    shapes = jax.eval_shape(model.init, jax.random.key(0), IMAGES)
    return jax.tree_util.tree_map_with_path(draw, shapes)


class TrainState(jaxsparse.TrainState):
    batch_stats: Any


@jax.jit
def step(state):
    def loss(params):
        logits, updates = state.apply_fn(
            {"params": params, "batch_stats": state.batch_stats},
            IMAGES,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": jax.random.fold_in(state.key, state.step)},
        )
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, LABELS)
        return losses.mean(), (logits, updates["batch_stats"])

    grads, (logits, batch_stats) = jax.grad(loss, has_aux=True)(state.params)
    return state.apply_gradients(grads=grads, batch_stats=batch_stats), grads, logits


@pytest.mark.parametrize("name", MODELS)
def test_two_steps(name, key):
    model, rng = MODELS[name], np.random.default_rng(0)
    variables = drawn(model)
    masks = jax.tree.map(lambda x: rng.random(x.shape) < 0.5, variables["params"])
    state = before = TrainState.create(
        apply_fn=model.apply,
        params=variables["params"],
        tx=optax.sgd(0.1, momentum=0.9),
        method=jaxsparse.static(sparsity=0.5, total_steps=2),
        key=key,
        masks=masks,
        batch_stats=variables["batch_stats"],
    )
    for _ in range(2):
        state, grads, logits = step(state)
    jaxsparse.check(state.params, state.opt_state, state.masks)
    before, after, grads, masks = jax.device_get(
        ((before.params, before.batch_stats), (state.params, state.batch_stats), grads, masks)
    )
    still = jax.tree.map(np.array_equal, before, after)
    assert [path for path, equal in leaves_by_path(still).items() if equal] == []
    # Methods that grow by gradient need the dense gradient.
    assert (grads["conv1"]["kernel"][~masks["conv1"]["kernel"]] != 0).any()
    for leaf in jax.tree.leaves((after, jax.device_get(logits))):
        assert leaf.dtype == np.float32 and np.isfinite(leaf).all()


def test_bfloat16_is_near_float32():
    # Not compiled as a whole: on CPU jax 0.12 fuses some bfloat16 networks into ones that give NaN.
    variables = drawn(cifar_resnet(8))
    exact, rounded = (
        cifar_resnet(8, dtype=dtype).apply(variables, IMAGES)
        for dtype in (jnp.float32, jnp.bfloat16)
    )
    error = abs(exact - rounded).max() / abs(exact).max()
    assert 1e-4 < error < 0.05  # 8 bits of mantissa, so it must differ, and by some rounding only
