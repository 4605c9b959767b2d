"""Networks that several tests train."""

import jax
from flax import linen as nn

from jaxsparse.nn.layers import conv, conv_norm, head, norm, to_layout
from jaxsparse.sparse import Layout


class Smooth(nn.Module):
    """What our networks are made of, without a ReLU, whose sign can hang on one digit."""

    num_classes: int
    layout: Layout = "NHWC"

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        of_all = {"layout": self.layout}
        x = to_layout(x, self.layout)
        for i, stride in enumerate((1, 2)):
            convolve = conv(12 + 4 * i, 3, stride=stride, name=f"Conv_{i}", **of_all)
            x = nn.softplus(conv_norm(convolve, norm(train=train, name=f"norm{i}", **of_all), x))
        convolve = conv(16, 3, name="Conv_2", **of_all)
        x = conv_norm(convolve, norm(train=train, name="norm2", **of_all), x, x)
        return head(nn.softplus(x), self.num_classes, **of_all)
