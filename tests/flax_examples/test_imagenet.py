"""Images as Flax's imagenet example trains on them: `pmap`, batch norm, loss scaling in float16.

Written anew, on made-up images. Lines that sparse training adds or changes are marked "sparse"; the
test at the end counts them.
"""

import functools
from pathlib import Path
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import jax_utils
from flax.training import dynamic_scale, train_state

import jaxsparse  # sparse

CLASSES, SIZE, BATCH, STEPS = 4, 8, 32, 18
METHOD = jaxsparse.granet(sparsity=0.8, total_steps=STEPS, update_interval=3)  # sparse


class ResNet(nn.Module):
    """A stem, a residual block with batch norm, and a classifier."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, train):
        norm = functools.partial(
            nn.BatchNorm, use_running_average=not train, momentum=0.9, dtype=self.dtype
        )
        conv = functools.partial(nn.Conv, use_bias=False, dtype=self.dtype)
        x = nn.relu(norm()(conv(16, (3, 3))(x)))
        y = nn.relu(norm()(conv(16, (3, 3))(x)))
        x = nn.relu(x + norm(scale_init=nn.initializers.zeros)(conv(16, (3, 3))(y)))
        return nn.Dense(CLASSES, dtype=self.dtype)(x.mean((1, 2))).astype(jnp.float32)


@jaxsparse.with_masks  # sparse
class TrainState(train_state.TrainState):
    batch_stats: Any
    dynamic_scale: dynamic_scale.DynamicScale | None


def create(key, dtype):
    model = ResNet(dtype)
    variables = model.init(key, jnp.zeros((1, SIZE, SIZE, 3)), train=False)
    return TrainState.create(
        apply_fn=model.apply,
        params=variables["params"],
        tx=optax.sgd(0.2, momentum=0.9, nesterov=True),
        batch_stats=variables["batch_stats"],
        dynamic_scale=dynamic_scale.DynamicScale() if dtype == jnp.float16 else None,
        method=METHOD,  # sparse
        key=key,  # sparse
    )


def train_step(state, images, labels):
    def loss(params):
        variables = {"params": params, "batch_stats": state.batch_stats}
        logits, updated = state.apply_fn(variables, images, train=True, mutable=["batch_stats"])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean(), updated["batch_stats"]

    scale = state.dynamic_scale
    if scale:
        grad_fn = scale.value_and_grad(loss, has_aux=True, axis_name="batch")
        scale, is_finite, (value, batch_stats), grads = grad_fn(state.params)
    else:
        (value, batch_stats), grads = jax.value_and_grad(loss, has_aux=True)(state.params)
        grads = jax.lax.pmean(grads, "batch")
    new = state.apply_gradients(grads=grads, batch_stats=batch_stats)
    if scale:
        keep = functools.partial(jnp.where, is_finite)
        new = new.replace(
            opt_state=jax.tree.map(keep, new.opt_state, state.opt_state),
            params=jax.tree.map(keep, new.params, state.params),
            dynamic_scale=scale,
        )
    return new, jax.lax.pmean(value, "batch")


def batches():
    """Images whose mean colour is the class."""
    rng = np.random.default_rng(0)
    for _ in range(STEPS):
        labels = rng.integers(CLASSES, size=BATCH)
        colours = np.eye(CLASSES)[labels][:, :3]
        images = rng.normal(size=(BATCH, SIZE, SIZE, 3)) + 2 * colours[:, None, None]
        per_device = lambda x: x.reshape(jax.device_count(), -1, *x.shape[1:])
        yield per_device(images.astype(np.float32)), per_device(labels)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float16])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of pmap and what goes with it
def test_it_trains_on_all_devices(dtype):
    state = jax_utils.replicate(create(jax.random.key(0), dtype))
    p_train_step = jax.pmap(train_step, axis_name="batch")  # noqa: TID251
    losses, left_out = [], []
    for n, (images, labels) in enumerate(batches(), start=1):
        state = state.replace(event=METHOD.is_due(n))  # sparse
        state, loss = p_train_step(state, images, labels)
        losses.append(float(loss[0]))
        left_out.append(int(state.events.num_left_out[0]))
    for masks in jax.tree.leaves(jax.device_get(state.masks)):
        assert (masks == masks[:1]).all(), "all devices have the same masks"
    state = jax_utils.unreplicate(state)
    jaxsparse.check(state.params, state.opt_state, state.masks)
    chex.assert_tree_all_finite(state.params)
    assert state.sparsity == pytest.approx(0.8, abs=2e-3)
    assert np.isfinite(losses).all() and np.mean(losses[-3:]) < losses[0]
    taken = int(state.events.num_taken)
    assert taken + left_out[-1] == len(METHOD.timetable.events)
    if dtype == jnp.float16:  # a scale of 65,536 overflows at first
        assert int(state.opt_state[0].trace is not None) and float(state.dynamic_scale.scale) > 0
    else:
        state.check()


def test_how_many_lines_it_took():
    lines = Path(__file__).read_text().splitlines()
    assert sum("# sparse" in line for line in lines) == 6 + 1  # and this one
