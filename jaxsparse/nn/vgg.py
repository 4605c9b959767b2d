"""VGG-16 and VGG-19 with batch norm, in the form that pruning papers train on CIFAR.

The convolutions are those of Simonyan and Zisserman ("Very deep convolutional networks for
large-scale image recognition", 2014), each without bias and with a norm. The last max-pooling and
the three wide layers at the end are replaced by an average over the pixels (2 x 2 for images of
32 x 32) and one layer from 512 channels to the classes, as in GraNet and GraSP. The published
VGG-19 with norms has 143.7 million parameters.

Parameters for 10 classes, and those in kernels:

    VGG(16)    14,724,042    14,715,584
    VGG(19)    20,035,018    20,024,000

Layers are "conv1", "norm1", ..., "conv16", "norm16" and "fc".
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from jaxsparse.nn.dyrelu import DyReLUOptions
from jaxsparse.nn.layers import (
    CONV_INIT,
    FC_INIT,
    Activation,
    Initializer,
    conv,
    head,
    norm,
    to_layout,
)
from jaxsparse.sparse import Layout

# Convolutions per stage, by depth. There is a 2 x 2 max-pooling between stages.
_STAGES = {16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
_WIDTHS = (64, 128, 256, 512, 512)


class VGG(nn.Module):
    """VGG-16-BN or VGG-19-BN with one linear layer at the end.

    Attributes:
      depth: 16 or 19, the number of layers of the published network, whose last three are linear.
      num_classes: width of the output.
      kernel_init: of the convolutions.
      fc_init: of the classifier.
      dtype: of activations; parameters, statistics of norms and logits are float32.
      layout: of images between layers: "NHWC", or "CHWN" for sparse execution on CPU.
      dyrelu: DyReLU in place of every ReLU, phased out in training; None for ReLU.

    Raises:
      ValueError: another depth.
    """

    depth: int
    num_classes: int = 10
    kernel_init: Initializer = CONV_INIT
    fc_init: Initializer = FC_INIT
    dtype: DTypeLike = jnp.float32
    layout: Layout = "NHWC"
    dyrelu: DyReLUOptions | None = None

    def __post_init__(self):
        if self.depth not in _STAGES:
            raise ValueError(f"depth {self.depth!r} must be 16 or 19")
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Maps float[batch, height, width, 3] images to float32[batch, num_classes] logits.

        Raises:
          ValueError: images are smaller than 16 x 16, so that pooling leaves no pixel.
        """
        if min(x.shape[1:3]) < 16:
            raise ValueError(f"images of {x.shape[1]} x {x.shape[2]} must be at least 16 x 16")
        options = {"dtype": self.dtype, "layout": self.layout}
        x, layer = to_layout(x, self.layout), 0
        activation = Activation.of(self, self.layout)
        for stage, (num_layers, width) in enumerate(zip(_STAGES[self.depth], _WIDTHS, strict=True)):
            if stage > 0:
                x = nn.max_pool(x, window_shape=(2, 2), strides=(2, 2))
            for _ in range(num_layers):
                layer += 1
                name = f"conv{layer}"
                layer_conv = conv(width, 3, name=name, kernel_init=self.kernel_init, **options)
                layer_norm = norm(train=train, name=f"norm{layer}", **options)
                x = activation.after_norm(layer_conv, layer_norm, x, name=f"dyrelu{layer}")
        return head(x, self.num_classes, kernel_init=self.fc_init, layout=self.layout)
