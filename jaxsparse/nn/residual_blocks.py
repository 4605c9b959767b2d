"""The blocks of residual networks: two or three convolutions and a shortcut.

The inner convolutions of a block are all but its last, which the shortcut is added to. Structured
pruning makes them narrower: `widths` gives their channels, and `after_inner` what follows them.

Reference: He et al., "Deep residual learning for image recognition", 2015. The stride of a
bottleneck is on its 3 x 3 convolution, not on the 1 x 1 before it ("v1.5"), as in PyTorch.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, Literal, TypeAlias

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from jaxsparse.nn.compactor import Compactor
from jaxsparse.nn.layers import (
    CONV_INIT,
    Activation,
    Conv,
    Convs,
    Initializer,
    Norm,
    conv,
    conv_norm,
    norm,
    num_channels,
    scales_of,
)
from jaxsparse.nn.widths import SHORTCUT
from jaxsparse.sparse import Layout

AfterInner: TypeAlias = Literal["norm", "compactor", "bias"]
"""An inner convolution is followed by a norm, a norm and a compactor, or only its own bias."""


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions and a shortcut: `width` channels out.

    Attributes:
      width: channels, inside and out.
      stride: of the first convolution and the shortcut.
      kernel_init: of the convolutions.
      dtype: of activations.
      layout: of images, inputs and outputs.
      axis_name: as in `jaxsparse.nn.ResNet`.
      widths: output channels of its convolutions by name, where they differ from the above.
      after_inner: as in `jaxsparse.nn.ResNet`.
      projects: whether the shortcut is a convolution, as it has to be where height, width or
        channels change. None decides by that; a network whose widths change later says it.
    """

    CONVS: ClassVar = ("conv1", "conv2")
    EXPANSION: ClassVar = 1

    width: int
    stride: int = 1
    kernel_init: Initializer = CONV_INIT
    dtype: DTypeLike = jnp.float32
    layout: Layout = "NHWC"
    axis_name: str | None = None
    widths: Mapping[str, int] | None = None
    after_inner: AfterInner = "norm"
    projects: bool | None = None

    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Maps images to images, whose height and width are divided by the stride."""
        return self.with_convs(x, (), Activation(layout=self.layout), train=train)[0]

    @nn.compact
    def with_convs(
        self, x: jax.Array, convs: Convs, activation: Activation, *, train: bool
    ) -> tuple[jax.Array, Convs]:
        """Returns the images and the convolutions: `convs` if given, else the block's own."""
        options = {"dtype": self.dtype, "layout": self.layout}
        make_conv = functools.partial(conv, kernel_init=self.kernel_init, **options)
        make_norm = functools.partial(norm, train=train, axis_name=self.axis_name, **options)
        scales, widths = scales_of(self, convs), self.widths or {}
        bias, width_out = self.after_inner == "bias", widths.get("conv2", self.width)
        width = widths.get("conv1", self.width)
        first, second = convs or (
            make_conv(width, 3, stride=self.stride, use_bias=bias, name="conv1"),
            make_conv(width_out, 3, name="conv2"),
        )
        y = inner(self, 1, first, x, activation, make_norm, scales)
        if _projects(self, x, width_out):
            shortcut = make_conv(width_out, 1, stride=self.stride, name=SHORTCUT)
            x = conv_norm(shortcut, make_norm(name="shortcut_norm"), x)
        y = activation.after_norm(
            second, make_norm(name="norm2"), y, x, name="dyrelu2", scale=scales[1]
        )
        return y, (first, second)


class Bottleneck(nn.Module):
    """Convolutions 1 x 1, 3 x 3 and 1 x 1 and a shortcut: 4 * `width` channels out.

    Attributes:
      width: channels inside.
      stride: of the 3 x 3 convolution and the shortcut.
      kernel_init: of the convolutions.
      dtype: of activations.
      layout: of images, inputs and outputs.
      axis_name: as in `jaxsparse.nn.ResNet`.
      widths: output channels of its convolutions by name, where they differ from the above.
      after_inner: as in `jaxsparse.nn.ResNet`.
      projects: whether the shortcut is a convolution, as it has to be where height, width or
        channels change. None decides by that; a network whose widths change later says it.
    """

    CONVS: ClassVar = ("conv1", "conv2", "conv3")
    EXPANSION: ClassVar = 4

    width: int
    stride: int = 1
    kernel_init: Initializer = CONV_INIT
    dtype: DTypeLike = jnp.float32
    layout: Layout = "NHWC"
    axis_name: str | None = None
    widths: Mapping[str, int] | None = None
    after_inner: AfterInner = "norm"
    projects: bool | None = None

    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Maps images to images, whose height and width are divided by the stride."""
        return self.with_convs(x, (), Activation(layout=self.layout), train=train)[0]

    @nn.compact
    def with_convs(
        self, x: jax.Array, convs: Convs, activation: Activation, *, train: bool
    ) -> tuple[jax.Array, Convs]:
        """Returns the images and the convolutions: `convs` if given, else the block's own."""
        options = {"dtype": self.dtype, "layout": self.layout}
        make_conv = functools.partial(conv, kernel_init=self.kernel_init, **options)
        make_norm = functools.partial(norm, train=train, axis_name=self.axis_name, **options)
        scales, widths = scales_of(self, convs), self.widths or {}
        bias, width_out = self.after_inner == "bias", widths.get("conv3", 4 * self.width)
        width = lambda name: widths.get(name, self.width)
        first, second, third = convs or (
            make_conv(width("conv1"), 1, use_bias=bias, name="conv1"),
            make_conv(width("conv2"), 3, stride=self.stride, use_bias=bias, name="conv2"),
            make_conv(width_out, 1, name="conv3"),
        )
        y = inner(self, 1, first, x, activation, make_norm, scales)
        y = inner(self, 2, second, y, activation, make_norm, scales)
        if _projects(self, x, width_out):
            shortcut = make_conv(width_out, 1, stride=self.stride, name=SHORTCUT)
            x = conv_norm(shortcut, make_norm(name="shortcut_norm"), x)
        y = activation.after_norm(
            third, make_norm(name="norm3"), y, x, name="dyrelu3", scale=scales[2]
        )
        return y, (first, second, third)


def _projects(block: BasicBlock | Bottleneck, x: jax.Array, width_out: int) -> bool:
    """Returns whether the shortcut from x is a convolution."""
    if block.projects is not None:
        return block.projects
    is_other = block.stride > 1 or num_channels(x, block.layout) != width_out
    return is_other or SHORTCUT in (block.widths or {})


def inner(
    block: BasicBlock | Bottleneck,
    number: int,
    conv: Conv,
    x: jax.Array,
    activation: Activation,
    make_norm: Callable[..., Norm],
    scales: Sequence[jax.Array | None],
) -> jax.Array:
    """Applies inner convolution `number`, what `block.after_inner` says, and the activation."""
    scale, name = scales[number - 1], f"dyrelu{number}"
    if block.after_inner == "bias":
        return activation(conv(x), name=name)
    norm = make_norm(name=f"norm{number}")
    if block.after_inner == "norm":
        return activation.after_norm(conv, norm, x, name=name, scale=scale)
    compactor = Compactor(axis=block.layout.index("C"), name=f"compactor{number}")
    return activation(compactor(conv_norm(conv, norm, x)), name=name)
