"""The two LeNets of many pruning papers, for 28 x 28 grey images."""

import jax
from flax import linen as nn

from jaxsparse.nn.dyrelu import DyReLUOptions
from jaxsparse.nn.layers import Activation, BiasInit, Initializer, zero_bias

_FLAX_INIT: Initializer = nn.linear.default_kernel_init


class LeNet300100(nn.Module):
    """Multilayer perceptron 784-300-100-classes with ReLU: 266,610 parameters for 10 classes.

    Attributes:
      num_classes: width of the output.
      dyrelu: DyReLU in place of every ReLU, phased out in training; None for ReLU.
      widths: of the two hidden layers.
      norm: batch norms before the ReLUs, which the original lacks and some pruning papers have.
      kernel_init: initialiser of all kernels.
      bias_init: initialiser of a bias, from the fan-in of its layer.

    Reference: LeCun et al., "Gradient-based learning applied to document recognition", 1998.
    """

    num_classes: int = 10
    dyrelu: DyReLUOptions | None = None
    widths: tuple[int, int] = (300, 100)
    norm: bool = False
    kernel_init: Initializer = _FLAX_INIT
    bias_init: BiasInit = zero_bias

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Maps float[batch, ...] images to float[batch, num_classes] logits, in training or not."""
        activation = Activation.of(self)
        x = x.reshape(x.shape[0], -1)
        for number, width in enumerate(self.widths, start=1):
            x = _dense(self, width, x)
            if self.norm:
                x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)
            x = activation(x, name=f"dyrelu{number}")
        return _dense(self, self.num_classes, x)


class LeNet5(nn.Module):
    """LeNet-5 with widths 6-16-120-84, ReLU and max-pooling: 61,706 parameters for 28 x 28 x 1.

    The first convolution pads to keep 28 x 28, the second does not: 28 -> 14 -> 10 -> 5.

    Attributes:
      num_classes: width of the output.
      dyrelu: DyReLU in place of every ReLU, phased out in training; None for ReLU.
      widths: of the two convolutions and the two hidden layers.
      kernel_init: initialiser of all kernels.
      bias_init: initialiser of a bias, from the fan-in of its layer.

    Reference: LeCun et al. 1998 (tanh and average pooling there).
    """

    num_classes: int = 10
    dyrelu: DyReLUOptions | None = None
    widths: tuple[int, int, int, int] = (6, 16, 120, 84)
    kernel_init: Initializer = _FLAX_INIT
    bias_init: BiasInit = zero_bias

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Maps float[batch, 28, 28, channels] images to logits, in training or not."""
        del train  # it changes nothing in this network
        activation = Activation.of(self)
        x = activation(_conv(self, self.widths[0], "SAME", x), name="dyrelu1")
        x = nn.max_pool(x, window_shape=(2, 2), strides=(2, 2))
        x = activation(_conv(self, self.widths[1], "VALID", x), name="dyrelu2")
        x = nn.max_pool(x, window_shape=(2, 2), strides=(2, 2))
        x = x.reshape(x.shape[0], -1)
        x = activation(_dense(self, self.widths[2], x), name="dyrelu3")
        x = activation(_dense(self, self.widths[3], x), name="dyrelu4")
        return _dense(self, self.num_classes, x)


def _dense(net: LeNet300100 | LeNet5, features: int, x: jax.Array) -> jax.Array:
    bias_init = net.bias_init(x.shape[-1])
    return nn.Dense(features, kernel_init=net.kernel_init, bias_init=bias_init)(x)


def _conv(net: LeNet5, features: int, padding: str, x: jax.Array) -> jax.Array:
    bias_init = net.bias_init(25 * x.shape[-1])
    layer = nn.Conv(
        features, (5, 5), padding=padding, kernel_init=net.kernel_init, bias_init=bias_init
    )
    return layer(x)
