"""The convolutions of ResNet-50, and the lists of active weights that a sparse kernel takes."""

import collections
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Layer(NamedTuple):
    """A convolution of square images by a square kernel, padded as "SAME".

    Attributes:
      size: height and width of the images.
      inputs: channels.
      outputs: channels.
      taps: height and width of the kernel, at most 16.
      stride: from output to output.
    """

    size: int
    inputs: int
    outputs: int
    taps: int
    stride: int

    @property
    def out_size(self) -> int:
        """Height and width of the outputs."""
        return -(-self.size // self.stride)

    @property
    def padding(self) -> tuple[int, int]:
        """Zeros before and after. If their number is odd, there is one more after, as in XLA."""
        total = max((self.out_size - 1) * self.stride + self.taps - self.size, 0)
        return total // 2, total - total // 2

    @property
    def columns(self) -> int:
        """Number of weights of an output channel."""
        return self.taps**2 * self.inputs

    def __str__(self) -> str:
        """Such as "3x3/2 128>128 at 56"."""
        stride = f"/{self.stride}" if self.stride > 1 else ""
        return f"{self.taps}x{self.taps}{stride} {self.inputs}>{self.outputs} at {self.size}"


class Lists(NamedTuple):
    """The active weights by output channel and, for the gradient, by input channel.

    A code is channel * 256 + y * 16 + x: the other channel, and the tap.

    Attributes:
      starts: int32[outputs + 1], the first weight of each output channel.
      codes: int32[capacity], in the order of the values.
      back_starts: int32[inputs + 1].
      back_codes: int32[capacity].
      order: int32[capacity], the value's index for each entry of the transposed list.
    """

    starts: jax.Array
    codes: jax.Array
    back_starts: jax.Array
    back_codes: jax.Array
    order: jax.Array


def make_lists(flat: np.ndarray, layer: Layer, capacity: int) -> Lists:
    """Makes the lists on the host, once for each mask.

    Args:
      flat: int[active], rising positions in a kernel of [output, y, x, input], as in
        `jaxsparse.sparse.Positions`.
      layer: of the kernel.
      capacity: length of the lists, at least the number of active weights.
    """
    output, column = np.divmod(flat, layer.columns)
    tap, channel = np.divmod(column, layer.inputs)
    place = tap // layer.taps * 16 + tap % layer.taps
    order = np.argsort(channel, kind="stable")
    fill = lambda x: np.pad(x, (0, capacity - len(x))).astype(np.int32)
    starts = lambda x, num: np.searchsorted(x, np.arange(num + 1)).astype(np.int32)
    arrays = (
        starts(output, layer.outputs),
        fill(channel * 256 + place),
        starts(channel[order], layer.inputs),
        fill((output * 256 + place)[order]),
        fill(order),
    )
    return Lists(*map(jnp.asarray, arrays))


def resnet50() -> dict[Layer, int]:
    """The layers, with 3 x 3 taps first, and the number of times that each occurs."""
    counts: dict[Layer, int] = collections.Counter()
    inputs = 64
    for stage, blocks in enumerate((3, 4, 6, 3)):
        width, size = 64 * 2**stage, 56 // 2**stage
        for block in range(blocks):
            stride = 2 if stage and not block else 1
            counts[Layer(size * stride, inputs, width, 1, 1)] += 1
            counts[Layer(size * stride, width, width, 3, stride)] += 1
            counts[Layer(size, width, 4 * width, 1, 1)] += 1
            if not block:
                counts[Layer(size * stride, inputs, 4 * width, 1, stride)] += 1
            inputs = 4 * width
    return dict(sorted(counts.items(), key=lambda item: -item[0].taps))


def shrunk(layer: Layer, by: int) -> Layer:
    """A layer with fewer channels and pixels, to try it on a CPU."""
    fewer = lambda channels: max(channels // by, 4)
    size = max(layer.size // by, 4)
    return layer._replace(size=size, inputs=fewer(layer.inputs), outputs=fewer(layer.outputs))


def num_active(layer: Layer, sparsity: float) -> int:
    """Number of active weights of a layer, at least 1."""
    return max(round(layer.columns * layer.outputs * (1 - sparsity)), 1)
