"""Batch normalisation of channel-major images, with the shortcut and the ReLU that follow it.

Beside sparse convolutions, norms take most of the time, nearly all of it for reading and writing
memory. One call for norm, shortcut and ReLU reads and writes least.
"""

import functools
import math
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from jaxsparse.checks import check_in
from jaxsparse.kernels.load import on_device
from jaxsparse.sparse.varying import result_type, varying_alike

Outputs: TypeAlias = tuple[jax.Array, jax.Array, jax.Array]
"""(outputs, means, variances)."""

_FLOAT32 = np.finfo(np.float32)


class _Options(NamedTuple):
    """Static options."""

    relu: bool
    epsilon: float


class _Kept(NamedTuple):
    """Arrays that the backward pass needs."""

    x: jax.Array
    y: jax.Array
    scale: jax.Array
    mean: jax.Array
    variance: jax.Array


def batch_norm(
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    shortcut: jax.Array | None = None,
    *,
    relu: bool = False,
    epsilon: float = 1e-5,
) -> Outputs:
    """Normalises every channel with the statistics of the batch.

    Args:
      x: float32[channels, ...].
      scale: float32[channels].
      bias: float32[channels].
      shortcut: float32, the shape of x, added to the normalised x; nothing is added if it is None.
      relu: whether the positive part is taken at the end.
      epsilon: added to the variance; a normal float32 above 0.

    Returns:
      The outputs, and mean and biased variance of every channel, float32[channels] each, which
      carry no gradient. NaN stays NaN. The results do not depend on the number of threads, to the
      bit.

    Raises:
      ValueError: shapes or dtypes do not fit together, or epsilon is out of its range.
    """
    if x.ndim < 1:
        raise ValueError("x has no axis; its first one must be that of the channels")
    epsilon = check_in("epsilon", epsilon, f"[{_FLOAT32.tiny}, {_FLOAT32.max}]")
    for name, array in {"scale": scale, "bias": bias}.items():
        if array.shape != x.shape[:1]:
            raise ValueError(
                f"{name} has shape {array.shape}; it must be {x.shape[:1]}, by channel"
            )
    if shortcut is not None and shortcut.shape != x.shape:
        raise ValueError(f"shortcut has shape {shortcut.shape}; it must be that of x, {x.shape}")
    given = {"x": x, "scale": scale, "bias": bias, "shortcut": x if shortcut is None else shortcut}
    for name, array in given.items():
        if array.dtype != jnp.float32:
            raise ValueError(f"{name} has dtype {array.dtype}; it must be float32")
    return _norm(_Options(bool(relu), epsilon), *varying_alike(x, scale, bias, shortcut))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _norm(
    options: _Options,
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    shortcut: jax.Array | None,
) -> Outputs:
    compiled = functools.partial(_compiled_forward, options)
    plain = functools.partial(_plain_forward, options)
    return on_device(compiled, plain, x, scale, bias, shortcut)


def _forward(
    options: _Options,
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    shortcut: jax.Array | None,
) -> tuple[Outputs, tuple[_Kept, tuple[()] | None]]:
    outputs: Outputs = _norm(options, x, scale, bias, shortcut)
    y, mean, variance = outputs
    # The structure of the residual tells whether there is a shortcut, so that tracing knows it.
    has_shortcut = None if shortcut is None else ()
    return (y, mean, variance), (_Kept(x, y, scale, mean, variance), has_shortcut)


def _backward(
    options: _Options, residual: tuple[_Kept, tuple[()] | None], grads: Outputs
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array | None]:
    kept, has_shortcut = residual
    num = 3 if has_shortcut is None else 4
    compiled = functools.partial(_compiled_backward, options, num)
    plain = functools.partial(_plain_backward, options, num)
    found = on_device(compiled, plain, kept, grads[0])
    return found[0], found[1], found[2], found[3] if num == 4 else None


_norm.defvjp(_forward, _backward)


def _compiled_forward(
    options: _Options,
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    shortcut: jax.Array | None,
) -> Outputs:
    outputs = tuple(result_type(like.shape, like) for like in (x, scale, scale))
    call = jax.ffi.ffi_call("jaxsparse_norm_forward", outputs, vmap_method="sequential")
    more = jnp.zeros_like(x, shape=(0,)) if shortcut is None else shortcut
    y, mean, variance = call(x, scale, bias, more, **_attributes(options))
    return y, mean, variance


def _compiled_backward(
    options: _Options, num: int, kept: _Kept, grad: jax.Array
) -> tuple[jax.Array, ...]:
    x, y, scale, mean, variance = kept
    shapes = (x.shape, scale.shape, scale.shape, x.shape if num == 4 else (0,))
    outputs = tuple(result_type(shape, x) for shape in shapes)
    call = jax.ffi.ffi_call("jaxsparse_norm_backward", outputs, vmap_method="sequential")
    return tuple(call(x, y, grad, scale, mean, variance, **_attributes(options)))[:num]


def _plain_forward(
    options: _Options,
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    shortcut: jax.Array | None,
) -> Outputs:
    axes = tuple(range(1, x.ndim))
    mean = x.mean(axes)
    centred = x - _by_channel(mean, x)
    variance = (centred * centred).mean(axes)
    factor = scale / jnp.sqrt(variance + options.epsilon)
    y = centred * _by_channel(factor, x) + _by_channel(bias, x)
    y = y if shortcut is None else y + shortcut
    return jax.nn.relu(y) if options.relu else y, mean, variance


def _plain_backward(
    options: _Options, num: int, kept: _Kept, grad: jax.Array
) -> tuple[jax.Array, ...]:
    x, y, scale, mean, variance = kept
    axes = tuple(range(1, x.ndim))
    grad = jnp.where(y <= 0, 0.0, grad) if options.relu else grad
    inverse = 1 / jnp.sqrt(variance + options.epsilon)
    normal = (x - _by_channel(mean, x)) * _by_channel(inverse, x)
    grad_bias, grad_scale = grad.sum(axes), (grad * normal).sum(axes)
    size = math.prod(x.shape[1:])
    inner = grad - _by_channel(grad_bias / size, x) - normal * _by_channel(grad_scale / size, x)
    grad_x = inner * _by_channel(scale * inverse, x)
    return (grad_x, grad_scale, grad_bias, grad)[:num]


def _by_channel(values: jax.Array, x: jax.Array) -> jax.Array:
    return values.reshape(-1, *(1,) * (x.ndim - 1))


def _attributes(options: _Options) -> dict[str, np.generic]:
    return {"epsilon": np.float32(options.epsilon), "relu": np.bool_(options.relu)}
