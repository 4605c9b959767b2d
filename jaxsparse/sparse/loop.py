"""Sparse convolution in JAX alone: a loop over the active weights.

It runs if there are no compiled kernels: on other processors, or without a C++ compiler. Each
weight adds a shifted copy of one input channel to one output channel. Images are
[channel, y, x, image], so that each channel is one piece of memory.

A device cannot raise an error. So the sums begin with NaN if a position is outside of the kernel,
or if there are more active weights than the capacity.
"""

import math

import jax
import jax.numpy as jnp
from jax import lax

from jaxsparse.sparse.positions import Positions
from jaxsparse.sparse.window import ConcreteWindow


def loop_forward(
    images: jax.Array, values: jax.Array, positions: Positions, window: ConcreteWindow
) -> jax.Array:
    """Returns float32[out channels, out y, out x, image]."""
    _, height, width, batch = images.shape
    size = window.out_size((height, width))
    padded = _padded(images, window)

    def add(i: jax.Array, out: jax.Array) -> jax.Array:
        to, channel, y, x = _decoded(positions, i, window)
        return out.at[to].add(values[i] * _read(padded, channel, y, x, size, window))

    empty = jnp.zeros_like(images, shape=(positions.shape[-1], *size, batch)) + _start(positions)
    return lax.fori_loop(0, _num(positions), add, empty)


def loop_backward(
    images: jax.Array,
    values: jax.Array,
    positions: Positions,
    grads: jax.Array,
    window: ConcreteWindow,
) -> tuple[jax.Array, jax.Array]:
    """Returns the gradients of the images and of the values."""
    size = (grads.shape[1], grads.shape[2])
    padded, add_padding = jax.vjp(lambda images: _padded(images, window), images)

    def add(i: jax.Array, state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        grad_padded, grad_values = state
        to, channel, y, x = _decoded(positions, i, window)
        read = _read(padded, channel, y, x, size, window)
        grad_values = grad_values.at[i].add((read * grads[to]).sum())
        return _add_back(grad_padded, channel, y, x, values[i] * grads[to], window), grad_values

    first = _start(positions)
    start = (jnp.zeros_like(padded) + first, jnp.zeros_like(values) + first)
    grad_padded, grad_values = lax.fori_loop(0, _num(positions), add, start)
    return add_padding(grad_padded)[0], grad_values


def _start(positions: Positions) -> jax.Array:
    """The value that sums begin with: 0, or NaN for wrong positions."""
    size = math.prod(positions.shape)
    is_one = (positions.flat >= 0) & (positions.flat < size) | ~positions.is_active
    has_capacity = (positions.num >= 0) & (positions.num <= positions.capacity)
    return jnp.where(is_one.all() & has_capacity, 0.0, jnp.nan)


def _num(positions: Positions) -> jax.Array:
    """Number of steps of the loop: the active weights, at most the capacity."""
    return jnp.minimum(positions.num, positions.capacity)


def _padded(images: jax.Array, window: ConcreteWindow) -> jax.Array:
    return jnp.pad(images, ((0, 0), *window.padding, (0, 0)))


def _decoded(
    positions: Positions, i: jax.Array, window: ConcreteWindow
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """The output channel, the input channel, and the first y and x that weight i reads."""
    _, width, inputs, outputs = positions.shape
    row, column = jnp.divmod(positions.flat[i], inputs)
    row, x = jnp.divmod(row, width)
    out, y = jnp.divmod(row, window.taps[0])
    channel = out // (outputs // window.groups) * inputs + column
    return out, channel, y * window.dilation[0], x * window.dilation[1]


def _read(
    padded: jax.Array,
    channel: jax.Array,
    y: jax.Array,
    x: jax.Array,
    size: tuple[int, int],
    window: ConcreteWindow,
) -> jax.Array:
    """The inputs that one tap reads for all outputs, [out y, out x, image]."""
    height, width = ((n - 1) * s + 1 for n, s in zip(size, window.strides, strict=True))
    piece = lax.dynamic_slice(padded, (channel, y, x, 0), (1, height, width, padded.shape[3]))
    return piece[0, :: window.strides[0], :: window.strides[1]]


def _add_back(
    padded: jax.Array,
    channel: jax.Array,
    y: jax.Array,
    x: jax.Array,
    grad: jax.Array,
    window: ConcreteWindow,
) -> jax.Array:
    """Adds the transpose of `_read` to the gradient of the padded images."""
    down, right = window.strides
    spread = lax.pad(
        grad, jnp.zeros((), grad.dtype), ((0, 0, down - 1), (0, 0, right - 1), (0, 0, 0))
    )
    at = (channel, y, x, jnp.zeros_like(channel))
    before = lax.dynamic_slice(padded, at, (1, *spread.shape))
    return lax.dynamic_update_slice(padded, before + spread[None], at)
