"""Data parallel on 8 devices: `jax.shard_map` over the batch gives the step of one device."""

import functools
import re

import chex
import jax
import jax.numpy as jnp
import optax
import pytest
from flax import linen as nn
from jax.sharding import AxisType, PartitionSpec

import jaxsparse
from jaxsparse.nn.sparse import sparse_execution
from jaxsparse.sparse import Window, sparse_conv, to_sparse
from jaxsparse.sparse.norm import batch_norm
from jaxsparse.sparse.states import compress, find_positions

ALL, CUT = PartitionSpec(), PartitionSpec("data")
close = functools.partial(chex.assert_trees_all_close, rtol=1e-5, atol=1e-5)


def on_eight(f, in_specs, out_specs, **options):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    return jax.jit(jax.shard_map(f, mesh=mesh, in_specs=in_specs, out_specs=out_specs, **options))


class Model(nn.Module):
    """Two convolutions and a head with a smooth activation."""

    @nn.compact
    def __call__(self, x):
        x = nn.softplus(nn.Conv(8, (3, 3), padding="SAME")(x))
        x = nn.softplus(nn.Conv(8, (3, 3), strides=2, use_bias=False)(x))
        return nn.Dense(5)(x.reshape(x.shape[0], -1))


@pytest.fixture(scope="module")
def started():
    """A compressed train state, its positions, images and labels."""
    images = jax.random.normal(jax.random.key(0), (16, 6, 6, 3))
    model = Model()
    state = jaxsparse.TrainState.create(
        apply_fn=model.apply,
        params=model.init(jax.random.key(1), images)["params"],
        tx=optax.adam(1e-2),
        method=jaxsparse.rigl(sparsity=0.7, total_steps=100, update_interval=10),
        key=jax.random.key(2),
    )
    positions = find_positions(state.masks)
    return compress(state, positions), positions, images, jnp.arange(16) % 5


def loss_of(params, state, positions, images, labels):
    with sparse_execution(positions):
        logits = state.apply_fn({"params": params}, images)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def one_device(state, *given):
    loss, grads = jax.value_and_grad(loss_of)(state.params, state, *given)
    return state.apply_gradients(grads=grads), loss


def mean_loss(state, *given):
    """Params are the same on all devices and images vary, so the gradients are summed."""
    mean = lambda params: jax.lax.pmean(loss_of(params, state, *given), "data")
    loss, grads = jax.value_and_grad(mean)(state.params)
    return state.apply_gradients(grads=grads), loss


def mean_gradients(state, *given):
    """Params that vary have their own gradients on every device."""
    own = jax.lax.pcast(state.params, "data", to="varying")
    loss, grads = jax.value_and_grad(loss_of)(own, state, *given)
    loss, grads = jax.lax.pmean((loss, grads), "data")
    return state.apply_gradients(grads=grads), loss


def unchecked(state, *given):
    loss, grads = jax.value_and_grad(loss_of)(state.params, state, *given)
    loss, grads = jax.lax.pmean((loss, grads), "data")
    return state.apply_gradients(grads=grads), loss


@pytest.mark.parametrize("step", [mean_loss, mean_gradients, unchecked])
def test_a_step_on_eight_devices_is_the_step_on_one(step, started, engine):
    specs = (ALL, ALL, CUT, CUT)
    eight = on_eight(step, specs, ALL, check_vma=step is not unchecked)
    expected = jax.jit(one_device)(*started)
    close(*(jax.tree.map(readable, run) for run in (eight(*started), expected)))
    text = eight.lower(*started).compile().as_text()
    kinds = set(re.findall(r"\b(all-\w+|collective-\w+|reduce-scatter)(?:-start)?\(", text))
    assert kinds == {"all-reduce"}


def readable(leaf):
    is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return jax.device_get(jax.random.key_data(leaf) if is_key else leaf)


def channel_major(values, scale, images, positions):
    """A network of one convolution and its norm, whose statistics are those of each eighth."""
    window = Window((3, 3), padding=((1, 1), (1, 1)))
    x = sparse_conv(images, values, positions, window, layout="CHWN")
    y, _, _ = batch_norm(x, scale, jnp.zeros_like(scale), x)
    return jnp.sin(y).mean()


def test_channel_major_layers_and_norms(engine):
    images = jax.random.normal(jax.random.key(0), (3, 4, 4, 16))
    kernel = jax.random.normal(jax.random.key(1), (3, 3, 3, 4))
    values, positions = to_sparse(kernel, jnp.abs(kernel) > 1)
    given = (values, jnp.arange(1.0, 5.0), images)
    last = PartitionSpec(None, None, None, "data")

    def mean(*given):
        return jax.lax.pmean(channel_major(*given), "data")

    step = on_eight(jax.grad(mean, (0, 1, 2)), (ALL, ALL, last, ALL), (ALL, ALL, last))

    def by_eighths(values, scale, images):
        parts = jnp.split(images, 8, axis=3)
        return sum(channel_major(values, scale, part, positions) for part in parts) / 8

    close(jax.device_get(step(*given, positions)), jax.grad(by_eighths, (0, 1, 2))(*given))
