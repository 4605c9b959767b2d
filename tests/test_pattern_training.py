"""Training with a pattern behind ReLUs: masks of input channels move, of output channels cannot."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxsparse

IMAGES = jnp.asarray(np.random.default_rng(0).normal(size=(8, 6, 6, 2)), jnp.float32)
LABELS = jnp.arange(8) % 3


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        for name in ("conv1", "conv2"):
            x = nn.relu(nn.Conv(12, (3, 3), name=name)(x))
        return nn.Dense(3, name="fc")(x.mean((1, 2)))


NET = Net()


@jax.jit
def gradient(params):
    def loss(params):
        logits = NET.apply({"params": params}, IMAGES)
        return optax.softmax_cross_entropy_with_integer_labels(logits, LABELS).mean()

    return jax.grad(loss)(params)


@functools.partial(jax.jit, static_argnames="event")
def step(state, grads, event):
    return state.apply_gradients(grads=grads, event=event)


def start(pattern):
    method = jaxsparse.with_pattern(
        jaxsparse.rigl(sparsity=0.5, total_steps=24, update_interval=4, drop_fraction=0.5),
        [("conv2", pattern), ("", None)],
    )
    params = jax.jit(NET.init)(jax.random.key(1), IMAGES)["params"]
    return jaxsparse.TrainState.create(
        apply_fn=NET.apply, params=params, tx=optax.sgd(0.1), method=method, key=jax.random.key(0)
    )


def test_rigl_moves_input_channels():
    state = start(jaxsparse.channels(-2))
    seen = [state.masks["conv2"]["kernel"]]
    for n in range(1, 9):
        state = step(state, gradient(state.params), event=state.method.is_due(n))
        if state.method.is_due(n):
            jaxsparse.check_pattern(state.masks, state.method.pattern)
            seen.append(state.masks["conv2"]["kernel"])
    moved = [bool((a != b).any()) for a, b in zip(seen, seen[1:], strict=False)]
    assert moved == [True] * 2


def test_output_channels_have_no_gradient_to_grow_by():
    for axis, has_gradient in ((-1, False), (-2, True)):
        state = start(jaxsparse.channels(axis))
        inactive = ~state.masks["conv2"]["kernel"]
        grads = gradient(state.params)["conv2"]["kernel"]
        assert bool((grads[inactive] != 0).any()) is has_gradient
        assert (grads[~inactive] != 0).any()
