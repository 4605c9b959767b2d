"""Wide residual networks for CIFAR, with the norm before each convolution.

Parameters for 10 classes, and those in kernels:

    WideResNet(22, 2)      1,079,642     1,076,912    of RigL's CIFAR-10 table
    WideResNet(16, 8)     10,961,370    10,954,160
    WideResNet(28, 10)    36,479,194    36,461,232

Layers are "conv1" (the stem), "stage1_block1/norm1", ".../conv1", ".../norm2", ".../conv2", and at
the end "norm" and "fc". A block that changes the shape also has ".../shortcut_conv" (1 x 1, without
a norm).

Reference: Zagoruyko and Komodakis, "Wide residual networks", 2016; blocks of He et al., "Identity
mappings in deep residual networks", 2016.
"""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from jaxsparse.checks import check_in, check_whole
from jaxsparse.integers import whole_number
from jaxsparse.nn.dyrelu import DyReLUOptions
from jaxsparse.nn.layers import (
    CONV_INIT,
    FC_INIT,
    Activation,
    Convs,
    Initializer,
    conv,
    head,
    norm,
    scales_of,
    to_layout,
)
from jaxsparse.sparse import Layout


class WideBlock(nn.Module):
    """Norm, ReLU, 3 x 3 convolution, twice, and a shortcut.

    Attributes:
      features: channels out.
      stride: of the first convolution and the shortcut.
      projects: whether the shortcut is a convolution, as it has to be where height, width or
        channels change.
      dropout_rate: between the convolutions.
      kernel_init: of the convolutions.
      dtype: of activations.
      layout: of images, inputs and outputs.
    """

    features: int
    stride: int = 1
    projects: bool = False
    dropout_rate: float = 0.0
    kernel_init: Initializer = CONV_INIT
    dtype: DTypeLike = jnp.float32
    layout: Layout = "NHWC"

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
        make_norm = functools.partial(norm, train=train, **options)
        scales = scales_of(self, convs)
        first, second = convs or (
            make_conv(self.features, 3, stride=self.stride, name="conv1"),
            make_conv(self.features, 3, name="conv2"),
        )
        y = activation.of_norm(make_norm(name="norm1"), x, name="dyrelu1")
        if self.projects:
            # The shortcut takes the activated input, unlike the identity: both share norm1.
            x = make_conv(self.features, 1, stride=self.stride, name="shortcut_conv")(y)
        y = first(y, scales[0])
        y = activation.of_norm(make_norm(name="norm2"), y, name="dyrelu2")
        y = nn.Dropout(self.dropout_rate, deterministic=not train)(y)
        return x + second(y, scales[1]), (first, second)


class WideResNet(nn.Module):
    """WRN-depth-width: a stem of 16 channels and three stages of 16, 32 and 64 times `width`.

    Attributes:
      depth: 6n + 4 layers, at least 10. All shortcuts count as one layer, as in the paper.
      width: factor on the channels of the stages, at least 1.
      num_classes: width of the output.
      dropout_rate: between the convolutions of a block, in [0, 1). Above 0, training needs
        `rngs={"dropout": key}`. RigL's CIFAR code has 0.3; its paper does not say so.
      kernel_init: of the convolutions.
      fc_init: of the classifier.
      dtype: of activations; parameters, statistics of norms and logits are float32.
      layout: of images between layers: "NHWC", or "CHWN" for sparse execution on CPU (where the
        same key gives other dropout).
      dyrelu: DyReLU in place of every ReLU, phased out in training; None for ReLU.
      num_owners: as in `ResNet`; EAST's authors have no network with the norm first.

    Raises:
      ValueError: a depth, width, dropout rate or number of owners out of its range.

    Differs from the official code in: RigL's code starts all kernels as TensorFlow does,
    `jax.nn.initializers.glorot_uniform()`; it pads convolutions as "SAME", with stride 2 on the
    right and bottom only; and it always has a dropout of 0.3.
    """

    depth: int
    width: int
    num_classes: int = 10
    dropout_rate: float = 0.0
    kernel_init: Initializer = CONV_INIT
    fc_init: Initializer = FC_INIT
    dtype: DTypeLike = jnp.float32
    layout: Layout = "NHWC"
    dyrelu: DyReLUOptions | None = None
    num_owners: int | None = None

    def __post_init__(self):
        depth = whole_number(self.depth)
        if depth is None or depth < 10 or depth % 6 != 4:
            raise ValueError(f"depth {self.depth!r} must be 6n + 4, at least 10, such as 16 or 22")
        check_whole("width", self.width, 1)
        check_in("dropout_rate", self.dropout_rate, "[0, 1)")
        if self.num_owners is not None:
            check_whole("num_owners", self.num_owners, 2)
        super().__post_init__()

    @property
    def stage_sizes(self) -> tuple[int, ...]:
        """Blocks per stage."""
        return ((self.depth - 4) // 6,) * 3

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Maps float[batch, height, width, 3] images to float32[batch, num_classes] logits."""
        of_all = {"dtype": self.dtype, "layout": self.layout}
        options = {"kernel_init": self.kernel_init, **of_all}
        x = to_layout(x, self.layout)
        activation = Activation.of(self, self.layout)
        x = conv(16, 3, name="conv1", **options)(x)
        for stage, num_blocks in enumerate(self.stage_sizes):
            convs: Convs = ()
            for number in range(num_blocks):
                block = WideBlock(
                    features=16 * self.width * 2**stage,
                    stride=2 if stage > 0 and number == 0 else 1,
                    projects=number == 0 and (stage > 0 or self.width > 1),
                    dropout_rate=self.dropout_rate,
                    name=f"stage{stage + 1}_block{number + 1}",
                    **options,
                )
                owns = number < (self.num_owners or num_blocks)
                x, convs = block.with_convs(x, () if owns else convs, activation, train=train)
        x = activation.of_norm(norm(train=train, name="norm", **of_all), x, name="dyrelu")
        return head(x, self.num_classes, kernel_init=self.fc_init, layout=self.layout)
