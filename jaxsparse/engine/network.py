"""A network of planes: what a forward pass at inference becomes before it is written out."""

import numpy as np

from jaxsparse.engine.operations import (
    IDENTITY,
    Activation,
    Array,
    Constant,
    Copy,
    Largest,
    Linear,
    Operation,
    Planes,
    Product,
    Reflow,
    Select,
    Size,
)


class Network:
    """Planes, and the operations that make them, in an order in which they can be done.

    Attributes:
      sizes: the sizes of planes, each once.
      size_of: list of int, by plane: its size's place in `sizes`.
      operations: in order.
      inputs, outputs: the caller's arrays.
    """

    def __init__(self) -> None:
        self.sizes: list[Size] = []
        self.size_of = np.zeros(0, np.int32)
        self.operations: list[Operation] = []
        self.inputs: list[Array] = []
        self.outputs: list[Array] = []

    def size(self, planes: Planes) -> Size:
        """The size of planes that are all of one size."""
        return self.sizes[self.size_of[planes.flat[0]]]

    def new(self, size: Size, num: int) -> Planes:
        """Returns new planes, int32[num]."""
        if size not in self.sizes:
            self.sizes.append(size)
        first = len(self.size_of)
        place = np.full(num, self.sizes.index(size), np.int32)
        self.size_of = np.concatenate([self.size_of, place])
        return np.arange(first, first + num, dtype=np.int32)

    def linear(
        self,
        size: Size,
        start: np.ndarray,
        sources: Planes,
        weights: np.ndarray,
        *,
        bias: np.ndarray | float = 0.0,
        dy: np.ndarray | int = 0,
        dx: np.ndarray | int = 0,
        activation: Activation = IDENTITY,
    ) -> Planes:
        """Adds a linear operation and returns its planes, int32[len(start) - 1]."""
        num, taps = len(start) - 1, len(sources)
        made = Linear(
            outs=self.new(size, num),
            bias=np.broadcast_to(np.asarray(bias, np.float64), num),
            start=np.asarray(start, np.int64),
            sources=np.asarray(sources, np.int32),
            dy=np.broadcast_to(np.asarray(dy, np.int32), taps),
            dx=np.broadcast_to(np.asarray(dx, np.int32), taps),
            weights=np.broadcast_to(np.asarray(weights, np.float64), taps),
            activation=activation,
        )
        self.operations.append(made)
        return made.outs

    def each(
        self,
        planes: Planes,
        weights: np.ndarray | float = 1.0,
        bias: np.ndarray | float = 0.0,
        activation: Activation = IDENTITY,
    ) -> Planes:
        """Returns activation(weight * plane + bias) of every plane, in the shape of `planes`."""
        flat = planes.ravel()
        spread = lambda x: np.broadcast_to(x, planes.shape).ravel()
        made = self.linear(
            self.size(planes),
            np.arange(len(flat) + 1),
            flat,
            spread(weights),
            bias=spread(bias),
            activation=activation,
        )
        return made.reshape(planes.shape)

    def sum_of(self, planes: list[Planes], weights: list[float]) -> Planes:
        """Returns the weighted sum of several arrays of planes of one shape."""
        together = np.stack([p.ravel() for p in planes], 1)
        num, terms = together.shape
        made = self.linear(
            self.size(planes[0]),
            np.arange(num + 1) * terms,
            together.ravel(),
            np.tile(np.asarray(weights, np.float64), num),
        )
        return made.reshape(planes[0].shape)

    def copy(
        self,
        size: Size,
        sources: Planes,
        stride: tuple[int, int],
        first_y: np.ndarray | int,
        first_x: np.ndarray | int,
    ) -> Planes:
        """Adds a copy of planes to planes of another size, and returns these, int32[n]."""
        spread = lambda x: np.broadcast_to(np.asarray(x, np.int32), sources.shape).copy()
        outs = self.new(size, len(sources))
        self.operations.append(Copy(outs, sources, stride, spread(first_y), spread(first_x)))
        return outs

    def reflow(self, size: Size, planes: Planes) -> Planes:
        """Returns planes of another size with the same pixels, in the shape of `planes`."""
        outs = self.new(size, planes.size)
        self.operations.append(Reflow(outs, planes.ravel()))
        return outs.reshape(planes.shape)

    def product(self, left: Planes, right: Planes) -> Planes:
        """Returns left * right, in the shape of `left`; `right` may have planes of one pixel."""
        outs = self.new(self.size(left), left.size)
        self.operations.append(Product(outs, left.ravel(), right.ravel()))
        return outs.reshape(left.shape)

    def largest(self, planes: Planes) -> Planes:
        """Returns the largest along the last axis of `planes`."""
        groups = planes.reshape(-1, planes.shape[-1])
        outs = self.new(self.size(planes), len(groups))
        start = np.arange(len(groups) + 1) * groups.shape[1]
        self.operations.append(Largest(outs, start, groups.ravel()))
        return outs.reshape(planes.shape[:-1])

    def select(
        self, condition: Planes, above: Planes, otherwise: Planes, *, or_zero: bool = False
    ) -> Planes:
        """Returns `above` where `condition` is above 0 (or 0), else `otherwise`; one shape."""
        outs = self.new(self.size(condition), condition.size)
        parts = (condition.ravel(), above.ravel(), otherwise.ravel())
        self.operations.append(Select(outs, *parts, or_zero))
        return outs.reshape(condition.shape)

    def constant(self, size: Size, pixels: np.ndarray) -> Planes:
        """Returns planes that are the same for every image, from float[n, height, width]."""
        outs = self.new(size, len(pixels))
        self.operations.append(Constant(outs, np.asarray(pixels, np.float32)))
        return outs
