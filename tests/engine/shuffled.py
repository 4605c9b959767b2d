"""Networks drawn by chance that move images to every axis, with operations for XLA between."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

MOST = 300
"""Numbers of an image, above which nothing is joined any more."""


def shuffled(seed: int) -> tuple[Callable[[jax.Array], tuple[jax.Array, ...]], tuple[int, ...]]:
    """Returns a network of random operations, and the shape of an image that it takes."""
    rng = np.random.default_rng(10**6 + seed)
    shape = tuple(int(n) for n in rng.integers(1, 4, rng.integers(1, 4)))

    def network(x: jax.Array) -> tuple[jax.Array, ...]:
        drawing = _Drawing(np.random.default_rng(seed), x)
        live = [x]
        for _ in range(7):
            live.append(drawing.go_on())
        return live[-1], live[4], live[-1]

    return network, shape


class _Drawing:
    """An array while it is drawn on.

    Attributes:
      x: the array.
      at: the axis of its images.
    """

    def __init__(self, rng: np.random.Generator, x: jax.Array) -> None:
        self.rng, self.x, self.at = rng, x, 0

    def go_on(self) -> jax.Array:
        axes = [i for i in range(self.x.ndim) if i != self.at]
        kinds = [self.transposed, self.reshaped, self.expanded, self.scaled]
        if axes:
            axis = int(self.rng.choice(axes))
            of_an_axis = (
                self.reduced,
                self.times,
                self.joined,
                self.flipped,
                self.cut,
                self.sorted,
            )
            kinds += [lambda kind=kind: kind(axis) for kind in of_an_axis]
        kinds[self.rng.integers(len(kinds))]()
        return self.x

    def coin(self) -> bool:
        return bool(self.rng.integers(2))

    def numbers(self, *shape: int) -> np.ndarray:
        return self.rng.normal(size=shape).astype(np.float32)

    def transposed(self) -> None:
        order = [int(i) for i in self.rng.permutation(self.x.ndim)]
        self.x, self.at = self.x.transpose(order), order.index(self.at)

    def reshaped(self) -> None:
        left, lengths = self.x.size // self.x.shape[self.at], []
        if self.at not in (0, self.x.ndim - 1):
            return
        for _ in range(self.rng.integers(3)):
            lengths.append(int(self.rng.choice([d for d in range(1, left + 1) if left % d == 0])))
            left //= lengths[-1]
        lengths.append(left)
        images = self.x.shape[self.at]
        shape = (images, *lengths) if self.at == 0 else (*lengths, images)
        self.x, self.at = self.x.reshape(shape), 0 if self.at == 0 else len(lengths)

    def expanded(self) -> None:
        axis = int(self.rng.integers(self.x.ndim + 1))
        self.x, self.at = jnp.expand_dims(self.x, axis), self.at + (axis <= self.at)

    def scaled(self) -> None:
        shape = [1 if i == self.at or self.coin() else n for i, n in enumerate(self.x.shape)]
        self.x = jnp.tanh(self.x) * self.numbers(*shape) + 1

    def reduced(self, axis: int) -> None:
        keeps, largest = self.coin(), self.coin()
        self.x = (jnp.max if largest else jnp.sum)(self.x, axis, keepdims=keeps)
        self.at -= 0 if keeps else axis < self.at

    def times(self, axis: int) -> None:
        if self.coin():
            weights = self.numbers(self.x.shape[axis], int(self.rng.integers(1, 4)))
            self.x = jnp.tensordot(self.x, weights, ((axis,), (0,)))
            self.at -= axis < self.at
        else:
            weights = self.numbers(int(self.rng.integers(1, 4)), self.x.shape[axis])
            self.x = jnp.tensordot(weights, self.x, ((1,), (axis,)))
            self.at += 1 - (axis < self.at)

    def joined(self, axis: int) -> None:
        if self.x.size < MOST * self.x.shape[self.at]:
            self.x = jnp.concatenate([self.x, 2 * self.x], axis)

    def flipped(self, axis: int) -> None:
        self.x = jnp.flip(self.x, axis)

    def cut(self, axis: int) -> None:
        begin = int(self.rng.integers(self.x.shape[axis]))
        whole: list[slice] = [slice(None)] * self.x.ndim
        whole[axis] = slice(begin, None, int(self.rng.integers(1, 3)))
        self.x = self.x[tuple(whole)]

    def sorted(self, axis: int) -> None:
        self.x = jnp.sort(self.x, axis)
