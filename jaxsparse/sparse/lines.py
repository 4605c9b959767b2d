"""The activation function of DyReLU: the larger of two lines, on channel-major images."""

import jax
import jax.numpy as jnp

from jaxsparse.kernels.load import on_device
from jaxsparse.sparse.varying import result_type, varying_alike


def larger_line(x: jax.Array, coefficients: jax.Array) -> jax.Array:
    """Returns max(a x + c, b x + d), with two lines for each channel and image.

    If both lines are equal, the gradient is that of the second one. So (a, b, c, d) = (1, 0, 0, 0)
    is ReLU, with a gradient of 0 at x = 0.

    Args:
      x: float32[channels, ..., images].
      coefficients: float32[channels, 4, images]: a, b, c and d.

    Returns:
      float32, the shape of x. It does not depend on the number of threads, to the bit.

    Raises:
      ValueError: shapes or dtypes do not fit together.
    """
    if x.ndim < 2:
        raise ValueError(f"x has shape {x.shape}; it must be [channels, ..., images]")
    shape = (x.shape[0], 4, x.shape[-1])
    if coefficients.shape != shape:
        raise ValueError(f"coefficients have shape {coefficients.shape}; it must be {shape}")
    for name, array in {"x": x, "coefficients": coefficients}.items():
        if array.dtype != jnp.float32:
            raise ValueError(f"{name} has dtype {array.dtype}; it must be float32")
    return _larger_line(*varying_alike(x, coefficients))


@jax.custom_vjp
def _larger_line(x: jax.Array, coefficients: jax.Array) -> jax.Array:
    return on_device(_compiled_forward, _plain_forward, x, coefficients)


def _forward(
    x: jax.Array, coefficients: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _larger_line(x, coefficients), (x, coefficients)


def _backward(kept: tuple[jax.Array, jax.Array], grad: jax.Array) -> tuple[jax.Array, jax.Array]:
    return on_device(_compiled_backward, _plain_backward, *kept, grad)


_larger_line.defvjp(_forward, _backward)


def _compiled_forward(x: jax.Array, coefficients: jax.Array) -> jax.Array:
    call = jax.ffi.ffi_call(
        "jaxsparse_lines_forward", result_type(x.shape, x), vmap_method="sequential"
    )
    return call(x, coefficients)


def _compiled_backward(
    x: jax.Array, coefficients: jax.Array, grad: jax.Array
) -> tuple[jax.Array, jax.Array]:
    outputs = (result_type(x.shape, x), result_type(coefficients.shape, x))
    call = jax.ffi.ffi_call("jaxsparse_lines_backward", outputs, vmap_method="sequential")
    grad_x, grad_coefficients = call(x, coefficients, grad)
    return grad_x, grad_coefficients


def _plain_forward(x: jax.Array, coefficients: jax.Array) -> jax.Array:
    a, b, c, d = _lines(x, coefficients)
    first, second = a * x + c, b * x + d
    return jnp.where(first > second, first, second)


def _plain_backward(
    x: jax.Array, coefficients: jax.Array, grad: jax.Array
) -> tuple[jax.Array, jax.Array]:
    a, b, c, d = _lines(x, coefficients)
    is_first = a * x + c > b * x + d
    product, pixels = grad * x, tuple(range(1, x.ndim - 1))
    parts = [jnp.where(is_first, product, 0.0), jnp.where(is_first, 0.0, product)]
    parts += [jnp.where(is_first, grad, 0.0), jnp.where(is_first, 0.0, grad)]
    sums = jnp.stack([part.sum(pixels) for part in parts], 1)
    return grad * jnp.where(is_first, a, b), sums


def _lines(x: jax.Array, coefficients: jax.Array) -> list[jax.Array]:
    """The four coefficients, each with the rank of x."""
    shape = (x.shape[0], *(1,) * (x.ndim - 2), x.shape[-1])
    return [coefficients[:, i].reshape(shape) for i in range(4)]
