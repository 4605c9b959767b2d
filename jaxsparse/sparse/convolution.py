"""Convolutions and dense layers by their active weights alone.

Time and memory fall with the number of active weights, forward and backward. Only active weights
get a gradient. Methods that grow by gradient take the dense gradient from a dense layer.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxsparse.kernels import load
from jaxsparse.kernels.load import on_device
from jaxsparse.sparse.loop import loop_backward, loop_forward
from jaxsparse.sparse.positions import Positions, check_known
from jaxsparse.sparse.varying import result_type, varying_alike
from jaxsparse.sparse.window import ConcreteWindow, Window, check_window, concrete

Layout: TypeAlias = Literal["NHWC", "CHWN"]
"""How images lie in memory: [image, y, x, channel] or [channel, y, x, image]."""

_LAYOUTS = ("NHWC", "CHWN")  # the kernels take the index in this tuple


def sparse_conv(
    images: jax.Array,
    values: jax.Array,
    positions: Positions,
    window: Window,
    *,
    layout: Layout = "NHWC",
) -> jax.Array:
    """Convolves images with a kernel that is given by its active weights.

    Args:
      images: float32, [image, y, x, channel] or [channel, y, x, image]. The second layout is
        faster from 16 images on, since the kernels read and write it without copies.
      values: float32[capacity], the active weights, from `to_sparse`.
      positions: of the values in a kernel of shape (height, width, input channels / groups,
        outputs).
      window: strides, padding, dilation, groups.
      layout: of images and outputs.

    Returns:
      float32, the outputs in the layout of the images. They do not depend on the number of
      threads, to the bit.

      Images and values can be differentiated once, in reverse mode. Forward mode (`jax.jvp`,
      `jax.linearize`, hence `jax.hessian` and Hessian-vector products) raises JAX's TypeError.
      Under `jax.vmap` over images alone, the forward pass is one call. The backward pass, and
      `jax.vmap` over anything else, are a loop of calls, so give a batch as a batch.

    Raises:
      ValueError: shapes, dtypes and window do not fit together, or a position is outside of the
        kernel. Positions that are traced (arguments of `jit`, or of a transformation) are only
        known when the kernels run: the compiled ones then raise a `jax.errors.JaxRuntimeError`, and
        the loop in JAX makes all outputs and gradients NaN.
    """
    found = checked_window(images, values, positions, window, layout)
    shape = out_shape(images, positions, found, layout)
    if 0 in (*images.shape, *shape, positions.capacity):  # what follows needs at least one of each
        return jnp.zeros(shape, jnp.float32)
    images, values, positions = varying_alike(images, values, positions)
    return _compiled_once(found, layout, load.backend().name, images, values, positions)


def sparse_dot(x: jax.Array, values: jax.Array, positions: Positions) -> jax.Array:
    """Multiplies by a matrix that is given by its active weights: a dense layer without bias.

    Args:
      x: float32[..., inputs].
      values: float32[capacity].
      positions: of the values in a kernel of shape (inputs, outputs).

    Returns:
      float32[..., outputs].

    Raises:
      ValueError: shapes or dtypes do not fit together.
    """
    if len(positions.shape) != 2 or x.ndim < 1 or x.shape[-1] != positions.shape[0]:
        raise ValueError(f"x has shape {x.shape}; the kernel of shape {positions.shape} takes none")
    # Rows become pixels, which the kernels copy in vectors. Many rows become several images: the
    # working memory is that of one image.
    rows = math.prod(x.shape[:-1])
    pixels = _pixels_of(rows)
    as_images = x.reshape(max(rows // max(pixels, 1), 1), 1, pixels, x.shape[-1])
    as_kernel = Positions(positions.flat, positions.num, (1, 1, *positions.shape))
    out = sparse_conv(as_images, values, as_kernel, Window((1, 1)))
    return out.reshape(*x.shape[:-1], positions.shape[1])


def _pixels_of(rows: int) -> int:
    """Number of rows that make one image: all, or a divisor in [256, 4096] if there are many.

    All if there is no such divisor.

    >>> _pixels_of(128), _pixels_of(10_000), _pixels_of(10_007)
    (128, 2500, 10007)
    """
    many, few = 4096, 256
    if rows <= many:
        return rows
    return next((n for n in range(many, few - 1, -1) if rows % n == 0), rows)


@functools.partial(jax.jit, static_argnums=(0, 1, 2), inline=True)
def _compiled_once(
    window: ConcreteWindow,
    layout: Layout,
    engine: str,
    images: jax.Array,
    values: jax.Array,
    positions: Positions,
) -> jax.Array:
    """Keeps a call outside of `jit` from being compiled every time.

    `engine` is part of the cache's key, since `_conv` is lowered to another call for each engine.
    """
    del engine
    return _conv(window, layout, images, values, positions)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _conv(
    window: ConcreteWindow,
    layout: Layout,
    images: jax.Array,
    values: jax.Array,
    positions: Positions,
) -> jax.Array:
    return _foldable(window, layout)(images, values, positions)


def _forward(
    window: ConcreteWindow,
    layout: Layout,
    images: jax.Array,
    values: jax.Array,
    positions: Positions,
) -> tuple[jax.Array, tuple[jax.Array, jax.Array, Positions]]:
    return _conv(window, layout, images, values, positions), (images, values, positions)


def _backward(
    window: ConcreteWindow,
    layout: Layout,
    kept: tuple[jax.Array, jax.Array, Positions],
    grads: jax.Array,
) -> tuple[jax.Array, jax.Array, None]:
    grad_images, grad_values = _gradients(window, layout, load.backend().name, *kept, grads)
    return grad_images, grad_values, None


_conv.defvjp(_forward, _backward)


@functools.partial(jax.jit, static_argnums=(0, 1, 2), inline=True)
def _gradients(
    window: ConcreteWindow,
    layout: Layout,
    engine: str,
    images: jax.Array,
    values: jax.Array,
    positions: Positions,
    grads: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    del engine  # see `_compiled_once`
    compiled = functools.partial(_compiled_backward, window, layout)
    loop = functools.partial(_loop_backward, window, layout)
    return on_device(compiled, loop, images, values, positions, grads)


def _foldable(window: ConcreteWindow, layout: Layout) -> Callable[..., jax.Array]:
    """The forward pass. `jax.vmap` over images alone becomes one call with a larger batch.

    The backward pass cannot do the same, as each element of the outer batch has its own gradient of
    the values.
    """
    compiled = functools.partial(_compiled_forward, window, layout)
    loop = functools.partial(_loop_forward, window, layout)
    once = functools.partial(on_device, compiled, loop)
    call = jax.custom_batching.custom_vmap(once)
    batch = layout.index("N")

    @call.def_vmap
    def fold(
        size: int, batched: Any, images: jax.Array, values: jax.Array, positions: Positions
    ) -> tuple[jax.Array, bool]:
        if any(jax.tree.leaves(batched[1:])):
            axes = jax.tree.map(lambda is_batched: 0 if is_batched else None, tuple(batched))
            return jax.vmap(once, in_axes=axes, axis_size=size)(images, values, positions), True
        apart = jnp.moveaxis(images, 0, batch)
        out = call(lax.collapse(apart, batch, batch + 2), values, positions)
        apart = out.reshape(*out.shape[:batch], size, -1, *out.shape[batch + 1 :])
        return jnp.moveaxis(apart, batch, 0), True

    return call


def _compiled_forward(
    window: ConcreteWindow,
    layout: Layout,
    images: jax.Array,
    values: jax.Array,
    positions: Positions,
) -> jax.Array:
    out = result_type(out_shape(images, positions, window, layout), images)
    call = jax.ffi.ffi_call("jaxsparse_conv_forward", out, vmap_method="sequential")
    return call(images, values, positions.flat, positions.num[None], **attributes(window, layout))


def _compiled_backward(
    window: ConcreteWindow,
    layout: Layout,
    images: jax.Array,
    values: jax.Array,
    positions: Positions,
    grads: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    out = (result_type(images.shape, images), result_type(values.shape, values))
    call = jax.ffi.ffi_call("jaxsparse_conv_backward", out, vmap_method="sequential")
    grad_images, grad_values = call(
        images, values, positions.flat, positions.num[None], grads, **attributes(window, layout)
    )
    return grad_images, grad_values


def _loop_forward(
    window: ConcreteWindow,
    layout: Layout,
    images: jax.Array,
    values: jax.Array,
    positions: Positions,
) -> jax.Array:
    out = loop_forward(_channel_major(images, layout), values, positions, window)
    return _channel_major(out, layout)


def _loop_backward(
    window: ConcreteWindow,
    layout: Layout,
    images: jax.Array,
    values: jax.Array,
    positions: Positions,
    grads: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    grad_images, grad_values = loop_backward(
        _channel_major(images, layout), values, positions, _channel_major(grads, layout), window
    )
    return _channel_major(grad_images, layout), grad_values


def _channel_major(x: jax.Array, layout: Layout) -> jax.Array:
    """Converts from the layout to CHWN, or back: this transposition is its own inverse."""
    return x if layout == "CHWN" else x.transpose(3, 1, 2, 0)


def out_shape(
    images: jax.Array, positions: Positions, window: ConcreteWindow, layout: Layout
) -> tuple[int, ...]:
    """Returns the shape of the outputs."""
    first, *size, last = images.shape
    outputs = positions.shape[-1]
    ends = (first, outputs) if layout == "NHWC" else (outputs, last)
    return ends[0], *window.out_size(size), ends[1]


def attributes(window: ConcreteWindow, layout: Layout) -> dict[str, np.generic | np.ndarray]:
    """Returns the attributes of a kernel's call, beside its arrays."""
    before = [ends[0] for ends in window.padding]
    numbers = [*window.taps, *window.strides, *before, *window.dilation, window.groups]
    return {"layout": np.int64(_LAYOUTS.index(layout)), "window": np.array(numbers, np.int64)}


def checked_window(
    images: jax.Array, values: jax.Array, positions: Positions, window: Window, layout: Layout
) -> ConcreteWindow:
    """Returns the window for these images.

    Raises:
      ValueError: the arguments do not fit together.
    """
    if layout not in _LAYOUTS:
        raise ValueError(f"layout {layout!r} must be NHWC or CHWN")
    for name, x in {"images": images, "values": values}.items():
        if x.dtype != jnp.float32:
            raise ValueError(f"{name} have dtype {x.dtype}; they must be float32")
    if images.ndim != 4:
        raise ValueError(f"images have shape {images.shape}; they must have four axes, {layout}")
    check_known(positions)
    if values.shape != (positions.capacity,):
        raise ValueError(
            f"values have shape {values.shape}, their positions ({positions.capacity},)"
        )
    shape = [images.shape[layout.index(axis)] for axis in "NHWC"]
    found = concrete(window, shape[1:3])
    check_window(found, shape, positions.shape)
    return found
