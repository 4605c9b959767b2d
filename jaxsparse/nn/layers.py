"""The parts of all networks with norms: convolutions, norms and the head, as in PyTorch.

The layers derive from `flax.linen`'s, so interceptors for these work with every network here.
Padding, epsilon and momentum are PyTorch's, so its weights give its logits.

The layout of images between layers is "NHWC", Flax's own, or channel-major "CHWN", in which the
sparse kernels are faster. With either layout a network takes images as [batch, height, width,
channels] and has the same variables. Height and width are axes 1 and 2 in both.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Self, TypeAlias, cast

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen.dtypes import promote_dtype

from jaxsparse.nn.dyrelu import DyReLU, DyReLUOptions
from jaxsparse.nn.shapes import kernel_path, of_layer, window_of
from jaxsparse.nn.sparse import positions_of_layer, values_of, variable_of
from jaxsparse.sparse import Epilogue, Layout, batch_norm, sparse_conv_norm

Initializer = jax.nn.initializers.Initializer

CONV_INIT: Initializer = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
"""Normal, variance 2 / (height * width * out): He et al., "Delving deep into rectifiers", 2015."""

PYTORCH_INIT: Initializer = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
"""The start of PyTorch's Conv2d and Linear: uniform in +-1 / sqrt(fan_in)."""

BiasInit: TypeAlias = Callable[[int], Initializer]
"""From the fan-in of a layer to the initialiser of its bias."""


def zero_bias(fan_in: int) -> Initializer:
    """Biases of 0, whatever the fan-in."""
    del fan_in
    return nn.initializers.zeros_init()


def pytorch_bias(fan_in: int) -> Initializer:
    """The start of PyTorch's biases: uniform in +-1 / sqrt(fan_in), with `PYTORCH_INIT` kernels."""
    bound = 1 / math.sqrt(fan_in)
    draw = functools.partial(jax.random.uniform, minval=-bound, maxval=bound)
    return cast(Initializer, draw)


FC_INIT: Initializer = nn.initializers.normal(0.01)
"""Goyal et al., "Accurate, large minibatch SGD", 2017; VGG; RigL's and GraNet's VGG code."""


class Conv(nn.Conv):
    """`nn.Conv` for images in a layout. Its parameters are the same.

    Attributes:
      layout: of its inputs and outputs.
    """

    layout: Layout = "NHWC"

    @nn.compact
    def __call__(self, inputs: jax.Array, scale: jax.Array | None = None) -> jax.Array:
        """Maps images to images in the same layout, with the kernel times `scale` if given."""
        x = inputs if self.layout == "NHWC" else inputs.transpose(3, 1, 2, 0)
        size, strides, padding = cast(Any, (self.kernel_size, self.strides, self.padding))
        shape = (*size, x.shape[-1] // self.feature_group_count, self.features)
        kernel = self.param("kernel", self.kernel_init, shape, self.param_dtype)
        kernel = kernel if scale is None else kernel * scale
        x, kernel = promote_dtype(x, kernel, dtype=self.dtype)
        y = jax.lax.conv_general_dilated(
            x,
            kernel,
            strides,
            padding,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=self.feature_group_count,
        )
        if self.use_bias:
            bias = self.param("bias", self.bias_init, (self.features,), self.param_dtype)
            y = y + bias.astype(y.dtype)[None, None, None]
        return to_layout(y, self.layout)


Convs: TypeAlias = tuple[Conv, ...]


class Norm(nn.BatchNorm):
    """`nn.BatchNorm` for images in a layout, with the shortcut and ReLU of a residual network.

    The variables are those of `nn.BatchNorm`. With layout "CHWN" all is one pass over the images.

    Attributes:
      layout: of its inputs and outputs. "CHWN" takes float32 only.
    """

    layout: Layout = "NHWC"

    @nn.compact
    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, x: jax.Array, shortcut: jax.Array | None = None, *, relu: bool = False
    ) -> jax.Array:
        """Normalises x, adds the shortcut if given, and takes the positive part if `relu`."""
        if self.layout == "CHWN" and not self.use_running_average:
            return self._of_batch(x, shortcut, relu)
        if self.layout == "CHWN":
            y = self._of_running(x)
        else:
            y = super().__call__(x)
        y = y if shortcut is None else y + shortcut
        return nn.relu(y) if relu else y

    def _of_batch(self, x: jax.Array, shortcut: jax.Array | None, relu: bool) -> jax.Array:
        if self.axis_name is not None:
            raise ValueError(
                f"axis_name {self.axis_name!r}: layout CHWN takes the norm of a device"
            )
        scale, bias, mean, var = self._variables(x)
        y, *found = batch_norm(x, scale, bias, shortcut, relu=relu, epsilon=self.epsilon)
        if not self.is_initializing():
            for running, new in zip((mean, var), found, strict=True):
                running.value = self.momentum * running.value + (1 - self.momentum) * new
        return y

    def _of_running(self, x: jax.Array) -> jax.Array:
        by_channel = lambda values: values[:, None, None, None]
        scale, bias, mean, var = self._variables(x)
        factor = scale * jax.lax.rsqrt(var.value + self.epsilon)
        return (x - by_channel(mean.value)) * by_channel(factor) + by_channel(bias)

    def _variables(self, x: jax.Array) -> tuple[jax.Array, jax.Array, nn.Variable, nn.Variable]:
        shape, dtype = (x.shape[0],), self.param_dtype
        if x.dtype != jnp.float32:
            raise ValueError(f"images are {x.dtype}; layout CHWN takes float32")
        mean = self.variable("batch_stats", "mean", jnp.zeros, shape, jnp.float32)
        var = self.variable("batch_stats", "var", jnp.ones, shape, jnp.float32)
        scale = self.param("scale", self.scale_init, shape, dtype)
        return scale, self.param("bias", self.bias_init, shape, dtype), mean, var


def conv(
    features: int,
    size: int,
    *,
    name: str,
    stride: int = 1,
    use_bias: bool = False,
    kernel_init: Initializer = CONV_INIT,
    **options: Any,
) -> Conv:
    """Returns a convolution of odd `size`, padded by size // 2 on all four sides.

    "SAME" would pad a stride of 2 on the right and bottom only, which is another network. `options`
    are dtype and layout.
    """
    return Conv(
        features,
        (size, size),
        strides=(stride, stride),
        padding=((size // 2, size // 2),) * 2,
        use_bias=use_bias,
        kernel_init=kernel_init,
        name=name,
        **options,
    )


def norm(*, train: bool, name: str, **options: Any) -> Norm:
    """Returns a batch norm with PyTorch's epsilon and momentum.

    Momentum is 0.9 here and 0.1 in PyTorch, where it is the share of the new statistics. Statistics
    are float32 for any dtype. The running variance follows the variance of the batch; PyTorch's
    follows n / (n - 1) times that, for n positions of a channel. `options` are dtype, layout and
    axis_name.
    """
    return Norm(use_running_average=not train, momentum=0.9, epsilon=1e-5, name=name, **options)


def scales_of(block: nn.Module, convs: Convs) -> Sequence[jax.Array | None]:
    """The learned numbers that a block multiplies shared kernels with; None without shared ones."""
    if not convs:
        return (None,) * 3
    start = nn.initializers.uniform(1.0)
    return [block.param(f"scale{i + 1}", start, (), jnp.float32) for i in range(len(convs))]


def conv_norm(
    conv: Conv,
    norm: Norm,
    x: jax.Array,
    shortcut: jax.Array | None = None,
    *,
    relu: bool = False,
    scale: jax.Array | None = None,
) -> jax.Array:
    """Returns norm(conv(x, scale), shortcut, relu=relu); one pass in sparse inference."""
    positions = positions_of_layer(conv)
    if positions is None or not norm.use_running_average:
        return norm(conv(x, scale), shortcut, relu=relu)
    path = kernel_path(conv)
    window = window_of(conv, path, (x.shape[1], x.shape[2]))
    of_norm = functools.partial(variable_of, norm)
    factor = of_norm("params", "scale") * jax.lax.rsqrt(
        of_norm("batch_stats", "var") + norm.epsilon
    )
    mean, bias = of_norm("batch_stats", "mean"), of_norm("params", "bias")
    epilogue = Epilogue(mean, factor, bias, shortcut)
    values = values_of(conv, path, positions, scale)
    options = {"relu": relu, "layout": conv.layout}
    with of_layer(path):
        return sparse_conv_norm(x, values, positions, window, epilogue, **options)


class Activation(NamedTuple):
    """The activation function of a network: ReLU, or DyReLU that is phased out into ReLU.

    Attributes:
      dyrelu: options of all DyReLUs; None for ReLU.
      beta: float32[], the share of DyReLU; None for ReLU.
      layout: of images.
    """

    dyrelu: DyReLUOptions | None = None
    beta: jax.Array | None = None
    layout: Layout = "NHWC"

    @classmethod
    def of(cls, network: nn.Module, layout: Layout = "NHWC") -> Self:
        """Returns the activation of a network; makes its variable beta if `dyrelu` is set."""
        options = getattr(network, "dyrelu", None)
        if options is None:
            return cls(layout=layout)
        beta = network.variable("dyrelu", "beta", jnp.ones, (), jnp.float32)
        return cls(options, jnp.asarray(beta.value), layout)

    def __call__(self, x: jax.Array, *, name: str) -> jax.Array:
        """Applies it to x. `name` is that of DyReLU's parameters and starts with "dyrelu"."""
        if self.dyrelu is None or self.beta is None:
            return nn.relu(x)
        return DyReLU(*self.dyrelu, layout=self.layout, name=name)(x, self.beta)

    def of_norm(self, norm: Norm, x: jax.Array, *, name: str) -> jax.Array:
        """Applies it to norm(x). ReLU is part of the norm's pass."""
        y = norm(x, relu=self.dyrelu is None)
        return y if self.dyrelu is None else self(y, name=name)

    def after_norm(
        self,
        conv: Conv,
        norm: Norm,
        x: jax.Array,
        shortcut: jax.Array | None = None,
        *,
        name: str,
        scale: jax.Array | None = None,
    ) -> jax.Array:
        """Applies it to norm(conv(x, scale), shortcut). ReLU is part of the norm's pass."""
        y = conv_norm(conv, norm, x, shortcut, relu=self.dyrelu is None, scale=scale)
        return y if self.dyrelu is None else self(y, name=name)


def to_layout(images: jax.Array, layout: Layout) -> jax.Array:
    """Returns [batch, height, width, channels] images in the layout."""
    return images if layout == "NHWC" else images.transpose(3, 1, 2, 0)


def num_channels(images: jax.Array, layout: Layout) -> int:
    """Returns the number of channels of images in a layout."""
    return images.shape[layout.index("C")]


def head(
    x: jax.Array,
    num_classes: int,
    *,
    use_bias: bool = True,
    kernel_init: Initializer = FC_INIT,
    layout: Layout = "NHWC",
) -> jax.Array:
    """Maps images to float32[batch, num_classes]: the mean of each channel, and layer "fc"."""
    x = jnp.mean(x, axis=(1, 2), dtype=jnp.promote_types(x.dtype, jnp.float32))
    x = x if layout == "NHWC" else x.T
    return nn.Dense(num_classes, use_bias=use_bias, kernel_init=kernel_init, name="fc")(x)
