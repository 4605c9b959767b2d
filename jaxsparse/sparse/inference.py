"""A convolution with its norm, shortcut and ReLU in inference, in one pass over the outputs.

In inference a norm scales and shifts every channel. The kernels do that, add the shortcut and take
the ReLU before they write; otherwise each of these would read and write all images once more.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxsparse.kernels.load import on_device
from jaxsparse.sparse.convolution import (
    Layout,
    attributes,
    checked_window,
    out_shape,
    sparse_conv,
)
from jaxsparse.sparse.positions import Positions
from jaxsparse.sparse.varying import result_type, varying_alike
from jaxsparse.sparse.window import ConcreteWindow, Window


class Epilogue(NamedTuple):
    """Norm and shortcut after a convolution in inference: (x - mean) * factor + bias + shortcut.

    Attributes:
      mean: float32[channels], the running mean.
      factor: float32[channels], scale / sqrt(running variance + epsilon).
      bias: float32[channels].
      shortcut: float32, shape of the outputs; nothing is added if it is None.
    """

    mean: jax.Array
    factor: jax.Array
    bias: jax.Array
    shortcut: jax.Array | None = None


class _Options(NamedTuple):
    """Static options."""

    window: ConcreteWindow
    layout: Layout
    relu: bool


def sparse_conv_norm(
    images: jax.Array,
    values: jax.Array,
    positions: Positions,
    window: Window,
    epilogue: Epilogue,
    *,
    relu: bool = False,
    layout: Layout = "NHWC",
) -> jax.Array:
    """Convolves as `sparse_conv`, scales and shifts every channel, adds a shortcut, takes the ReLU.

    Args:
      images: as in `sparse_conv`, like the next three.
      values: float32[capacity].
      positions: of the values.
      window: strides, padding, dilation, groups.
      epilogue: the norm and the shortcut.
      relu: whether the positive part is taken at the end.
      layout: of images, shortcut and outputs.

    Returns:
      float32, the outputs. They can be differentiated, but then each step is a pass of its own.

    Raises:
      ValueError: as `sparse_conv`, or the epilogue does not fit the outputs.
    """
    found = checked_window(images, values, positions, window, layout)
    out = out_shape(images, positions, found, layout)
    _check_epilogue(epilogue, out, out[layout.index("C")])
    args = varying_alike(images, values, positions, epilogue)
    options = _Options(found, layout, bool(relu))
    if 0 in (*images.shape, *out, positions.capacity):
        return _in_steps(options, *args)
    return _fused(options, *args)


def _check_epilogue(epilogue: Epilogue, out: tuple[int, ...], channels: int) -> None:
    for name, array in epilogue._asdict().items():
        if name == "shortcut" and array is None:
            continue
        shape = out if name == "shortcut" else (channels,)
        if array is None or (array.shape, array.dtype) != (shape, jnp.float32):
            kind = "missing" if array is None else f"{array.dtype}{array.shape}"
            raise ValueError(f"{name} is {kind}; it must be float32{shape}")


def _in_steps(
    options: _Options,
    images: jax.Array,
    values: jax.Array,
    positions: Positions,
    epilogue: Epilogue,
) -> jax.Array:
    window = Window(*options.window)
    x = sparse_conv(images, values, positions, window, layout=options.layout)
    shape = (1, 1, 1, -1) if options.layout == "NHWC" else (-1, 1, 1, 1)
    *by_channel, shortcut = epilogue
    mean, factor, bias = (array.reshape(shape) for array in by_channel)
    y = (x - mean) * factor + bias
    y = y if shortcut is None else y + shortcut
    return jax.nn.relu(y) if options.relu else y


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _fused(
    options: _Options,
    images: jax.Array,
    values: jax.Array,
    positions: Positions,
    epilogue: Epilogue,
) -> jax.Array:
    compiled = functools.partial(_compiled, options)
    in_steps = functools.partial(_in_steps, options)
    return on_device(compiled, in_steps, images, values, positions, epilogue)


def _forward(
    options: _Options,
    images: jax.Array,
    values: jax.Array,
    positions: Positions,
    epilogue: Epilogue,
) -> tuple[jax.Array, Callable[..., Any]]:
    # The gradient needs the results between the steps.
    def differentiable(images: jax.Array, values: jax.Array, epilogue: Epilogue) -> jax.Array:
        return _in_steps(options, images, values, positions, epilogue)

    return jax.vjp(differentiable, images, values, epilogue)


def _backward(
    options: _Options, pull: Callable[..., Any], grads: jax.Array
) -> tuple[jax.Array, jax.Array, None, Epilogue]:
    del options
    images, values, epilogue = pull(grads)
    return images, values, None, epilogue


_fused.defvjp(_forward, _backward)


def _compiled(
    options: _Options,
    images: jax.Array,
    values: jax.Array,
    positions: Positions,
    epilogue: Epilogue,
) -> jax.Array:
    window, layout, relu = options
    out = result_type(out_shape(images, positions, window, layout), images)
    call = jax.ffi.ffi_call("jaxsparse_conv_norm", out, vmap_method="sequential")
    *by_channel, shortcut = epilogue
    more = jnp.zeros_like(images, shape=(0,)) if shortcut is None else shortcut
    where = (positions.flat, positions.num[None])
    settings = attributes(window, layout) | {"relu": np.bool_(relu)}
    return call(images, values, *where, *by_channel, more, **settings)
