"""A compactor: the square matrix behind a norm that ResRep inserts, trains and merges again."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike


def _identity(key: jax.Array, shape: tuple[int, int], dtype: Any) -> jax.Array:
    del key
    return jnp.eye(*shape, dtype=dtype)


class Compactor(nn.Module):
    """A 1 x 1 convolution, or a dense layer, without bias, of as many outputs as inputs.

    It starts as the identity, and then returns its inputs to the bit. Its parameter "matrix" is
    float32[channels, channels] and no prunable leaf. Give it a name that starts with "compactor",
    by which `jaxsparse.structured.resrep_optimizer` knows it:

        x = nn.BatchNorm(use_running_average=not train)(nn.Conv(64, (3, 3), use_bias=False)(x))
        x = nn.relu(Compactor(name="compactor1")(x))

    Between it and the next layer, every operation has to map 0 to 0, channel by channel;
    `jaxsparse.structured.check_compactor` tells.

    Attributes:
      axis: of the channels.
      dtype: of the product; None for that of the inputs.
    """

    axis: int = -1
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps float[..., channels] to the same shape."""
        dtype, width = self.dtype or x.dtype, x.shape[self.axis]
        matrix = self.param("matrix", _identity, (width, width), jnp.float32)
        y = jax.lax.dot_general(
            jnp.moveaxis(x, self.axis, -1).astype(dtype),
            matrix.astype(dtype),
            (((x.ndim - 1,), (0,)), ((), ())),
            precision=jax.lax.Precision.HIGHEST,  # the default of accelerators rounds x
        )
        return jnp.moveaxis(y, -1, self.axis)
