"""What all networks with norms are made of: convolutions, norms and the head, as PyTorch has them.

The layers are `flax.linen`'s own, so that whatever intercepts those serves every network here, and
their numbers are PyTorch's, so that its weights give its logits.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

Initializer = jax.nn.initializers.Initializer

CONV_INIT: Initializer = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
"""Normal, variance 2 / (height * width * out): He et al., "Delving deep into rectifiers", 2015."""

PYTORCH_INIT: Initializer = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
"""What PyTorch's Conv2d and Linear start with: uniform in +-1 / sqrt(fan_in)."""

FC_INIT: Initializer = nn.initializers.normal(0.01)
"""Goyal et al., "Accurate, large minibatch SGD", 2017; VGG; RigL's and GraNet's VGG code."""


def conv(
    features: int,
    size: int,
    *,
    name: str,
    stride: int = 1,
    kernel_init: Initializer = CONV_INIT,
    dtype: DTypeLike = jnp.float32,
) -> nn.Conv:
    """Returns a convolution of odd `size` without bias, padded by size // 2 on all four sides.

    "SAME" pads a stride of 2 on the right and bottom only, which is another network.
    """
    return nn.Conv(
        features,
        (size, size),
        strides=(stride, stride),
        padding=((size // 2, size // 2),) * 2,
        use_bias=False,
        kernel_init=kernel_init,
        dtype=dtype,
        name=name,
    )


def norm(*, train: bool, name: str, dtype: DTypeLike = jnp.float32) -> nn.BatchNorm:
    """Returns a batch norm with PyTorch's epsilon and momentum (0.1 there, as the new one's share).

    Its statistics are float32 whatever the dtype. The running variance follows the variance of the
    batch; PyTorch's follows n / (n - 1) times that, over the n positions of a channel.
    """
    return nn.BatchNorm(
        use_running_average=not train, momentum=0.9, epsilon=1e-5, dtype=dtype, name=name
    )


def head(
    x: jax.Array, num_classes: int, *, use_bias: bool = True, kernel_init: Initializer = FC_INIT
) -> jax.Array:
    """Maps [batch, height, width, channels] to float32[batch, num_classes]: mean, layer "fc"."""
    x = jnp.mean(x, axis=(1, 2), dtype=jnp.float32)
    return nn.Dense(num_classes, use_bias=use_bias, kernel_init=kernel_init, name="fc")(x)


def check_at_least(name: str, value: int, least: int) -> None:
    """Raises a ValueError unless `value` is a whole number of at least `least`."""
    if not (isinstance(value, int) and value >= least):
        raise ValueError(f"{name} {value!r} must be a whole number of at least {least}")
