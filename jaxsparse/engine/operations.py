"""Planes, and the operations that make planes from planes: what a forward pass becomes.

A plane is one channel of one image: a grid of numbers with zeros around it; a number of a vector is
a plane of one pixel. Most operations are `Linear`: a plane is

    function(bias + sum over taps of weight * source[y + dy, x + dx])

So a convolution, a dense layer, a norm at inference, the sum of two branches, a ReLU and an average
pool are all linear operations, and one that follows another can be written into it (simplify.py).
Nothing here knows of batches: all images go the same way.
"""

import dataclasses
from typing import NamedTuple, TypeAlias

import numpy as np

Planes: TypeAlias = np.ndarray
"""int32, any shape: numbers of planes in a network."""


class Size(NamedTuple):
    """The pixels of a plane."""

    height: int
    width: int


ONE_PIXEL = Size(1, 1)


class Activation(NamedTuple):
    """A function of every pixel at the end of a linear operation.

    Attributes:
      function: a name of `FUNCTIONS`.
      low, high: what "clamp" clamps to; it is the identity for infinities. The factor of
        "leaky_relu" below 0 is `low`. Of "elu", high * x above 0 and low * (exp(x) - 1) below.
    """

    function: str = "clamp"
    low: float = -np.inf
    high: float = np.inf


FUNCTIONS = (
    "clamp",
    "exp",
    "expm1",
    "log",
    "tanh",
    "logistic",
    "erf",
    "erfc",
    "sqrt",
    "rsqrt",
    "reciprocal",
    "abs",
    "silu",
    "gelu",
    "gelu_tanh",
    "softplus",
    "mish",
    "hard_silu",
    "leaky_relu",
    "elu",
)
"""The functions of the engine, in the order of its file format."""
IDENTITY = Activation()


@dataclasses.dataclass
class Linear:
    """Planes that are sums over taps.

    Attributes:
      outs: int32[n], the planes.
      bias: float64[n].
      start: int64[n + 1]; the taps of plane i are start[i] to start[i + 1] - 1.
      sources: int32[taps], the planes that are read, all with the same distance between rows.
      dy, dx: int32[taps], shifts in pixels.
      weights: float64[taps].
      activation: of all planes.
    """

    outs: Planes
    bias: np.ndarray
    start: np.ndarray
    sources: Planes
    dy: np.ndarray
    dx: np.ndarray
    weights: np.ndarray
    activation: Activation = IDENTITY

    def counts(self) -> np.ndarray:
        """Taps of each plane."""
        return np.diff(self.start)

    def out_of_tap(self) -> np.ndarray:
        """For each tap, which of `outs` it belongs to."""
        return np.repeat(np.arange(len(self.outs)), self.counts())


@dataclasses.dataclass
class Copy:
    """out[y, x] = source[y * stride[0] + first_y, x * stride[1] + first_x]; 0 outside."""

    outs: Planes
    sources: Planes
    stride: tuple[int, int]
    first_y: np.ndarray
    first_x: np.ndarray


@dataclasses.dataclass
class Reflow:
    """The pixels of planes in the same order, in rows of another length."""

    outs: Planes
    sources: Planes


@dataclasses.dataclass
class Pool:
    """The largest pixel in a window that begins at y * stride + first; outside does not count."""

    outs: Planes
    sources: Planes
    window: tuple[int, int]
    stride: tuple[int, int]
    first: tuple[int, int]


@dataclasses.dataclass
class Sum:
    """The sum over all pixels; the outs have one pixel."""

    outs: Planes
    sources: Planes


@dataclasses.dataclass
class Product:
    """left * right; `right` may have one pixel."""

    outs: Planes
    left: Planes
    right: Planes


@dataclasses.dataclass
class Largest:
    """The largest of several planes, pixel by pixel; those of out i begin at start[i]."""

    outs: Planes
    start: np.ndarray
    sources: Planes


@dataclasses.dataclass
class Select:
    """Pixels of `above` where `condition` is above 0 (or 0, if that counts), else `otherwise`."""

    outs: Planes
    condition: Planes
    above: Planes
    otherwise: Planes
    or_zero: bool = False


@dataclasses.dataclass
class Constant:
    """Planes that are the same for every image: float32[n, height, width]."""

    outs: Planes
    pixels: np.ndarray


@dataclasses.dataclass
class Array:
    """Planes in an array of the caller: pixel (y, x) is at first + y * row + x * column.

    Attributes:
      planes: int32[n].
      first: int64[n], from the beginning of an image, in numbers.
      row, column: distances in the array.
      shape: of an image.
    """

    planes: Planes
    first: np.ndarray
    row: int
    column: int
    shape: tuple[int, ...]


Operation: TypeAlias = Linear | Copy | Reflow | Pool | Sum | Product | Largest | Select | Constant


def read(operation: Operation) -> Planes:
    """Returns the planes that an operation reads, each as often as it does."""
    if isinstance(operation, Constant):
        return np.zeros(0, np.int32)
    if isinstance(operation, Product):
        return np.concatenate([operation.left, operation.right])
    if isinstance(operation, Select):
        return np.concatenate([operation.condition, operation.above, operation.otherwise])
    return operation.sources
