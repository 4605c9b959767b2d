"""Networks drawn by chance from what the engine runs."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

SHAPE = (7, 6, 4)
"""Of an image that a drawn network takes."""


def drawn(
    seed: int, num: int = 9, *, crops: bool = False
) -> Callable[[jax.Array], dict[str, jax.Array]]:
    """Returns a network of random operations; the same for the same seed.

    Args:
      seed: 0 or more.
      num: operations.
      crops: whether images are cropped before convolutions whose padding is negative. XLA reads
        outside of the image in some of them, so those of a reference need it.
    """

    def network(x: jax.Array) -> dict[str, jax.Array]:
        drawing = _Drawing(seed, x, crops)
        for _ in range(num):
            drawing.go_on()
        return drawing.outputs()

    return network


class _Drawing:
    """A network while it is drawn; its choices depend on shapes, but not on numbers.

    Attributes:
      live: images [n, y, x, c] that operations may take.
    """

    def __init__(self, seed: int, x: jax.Array, crops: bool) -> None:
        self.crops = crops
        self.rng = np.random.default_rng(seed)
        self.live = [x]

    def go_on(self) -> None:
        kinds = (
            [self.convolved] * 5
            + [self.affine, self.activated, self.normed] * 2
            + [self.joined, self.pooled, self.moved, self.met, self.gated, self.by_pixel]
        )
        x = self.live[self.rng.integers(max(0, len(self.live) - 3), len(self.live))]
        made = kinds[self.rng.integers(len(kinds))](x)
        self.live.append(made)

    def outputs(self) -> dict[str, jax.Array]:
        last = self.live[-1]
        flat = last.reshape(len(last), -1)
        outputs = {"dense": self.dense(flat, 5)}
        if self.coin():
            outputs["means"] = jax.nn.softmax(last.mean((1, 2)))
        if self.coin(3):
            outputs["images"] = self.live[self.rng.integers(1, len(self.live))]
        return outputs

    def coin(self, sides: int = 2) -> bool:
        return bool(self.rng.integers(sides) == 0)

    def numbers(self, *shape: int) -> np.ndarray:
        return self.rng.normal(size=shape).astype(np.float32)

    def sparse(self, *shape: int) -> np.ndarray:
        """Weights, most of them 0, often with channels that are dead on either side."""
        density = self.rng.choice([0.05, 0.3, 1.0])
        weights = self.numbers(*shape) * (self.rng.random(shape) < density)
        for axis in (-1, -2):
            if self.coin(3) and shape[axis] > 1:
                np.moveaxis(weights, axis, 0)[self.rng.integers(shape[axis])] = 0
        fan_in = max(1.0, (weights != 0).sum() / shape[-1])
        return weights / np.sqrt(fan_in, dtype=np.float32)

    def dense(self, x: jax.Array, width: int) -> jax.Array:
        return x @ self.sparse(x.shape[-1], width) + self.numbers(*[1] * (x.ndim - 1), width)

    def convolved(self, x: jax.Array) -> jax.Array:
        height, width, channels = x.shape[1:]
        kernel = [int(self.rng.integers(1, 4)) for _ in "yx"]
        dilation = [int(self.rng.integers(1, 3)) if self.coin(3) else 1 for _ in "yx"]
        strides = [int(self.rng.integers(1, 3)) if self.coin(3) else 1 for _ in "yx"]
        groups = int(self.rng.choice([g for g in range(1, channels + 1) if channels % g == 0]))
        out = groups * int(self.rng.integers(1, 4)) if groups < 4 else groups
        padding: Any = "SAME"
        if self.coin(3):
            padding = []
            for k, d, n in zip(kernel, dilation, (height, width), strict=True):
                low, high = (int(p) for p in self.rng.integers(-1, 3, 2))
                missing = max(0, (k - 1) * d + 1 - (n + low + high))
                padding.append((low, high + missing))
        if self.crops and padding != "SAME":
            x = jax.lax.pad(x, 0.0, [(0, 0, 0), *((*p, 0) for p in padding), (0, 0, 0)])
            padding = "VALID"
        found = jax.lax.conv_general_dilated(
            x,
            jnp.asarray(self.sparse(*kernel, channels // groups, out)),
            strides,
            padding,
            rhs_dilation=dilation,
            feature_group_count=groups,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return found + self.numbers(1, 1, 1, out) if self.coin() else found

    def affine(self, x: jax.Array) -> jax.Array:
        channels = x.shape[-1]
        x = (x - self.numbers(1, 1, 1, channels)) * self.numbers(1, 1, 1, channels)
        return jax.nn.relu(x) if self.coin() else x

    def activated(self, x: jax.Array) -> jax.Array:
        functions = [
            jax.nn.relu,
            jax.nn.relu6,
            jax.nn.leaky_relu,
            jax.nn.elu,
            jax.nn.silu,
            jax.nn.gelu,
            lambda a: jax.nn.gelu(a, approximate=False),
            jnp.tanh,
            jax.nn.sigmoid,
            jnp.abs,
            lambda a: jnp.square(jnp.tanh(a)),
            lambda a: jnp.minimum(a, 0.5),
            lambda a: jnp.exp(-jnp.abs(a)),
            lambda a: 1 / (1 + a * a),
        ]
        return functions[self.rng.integers(len(functions))](x)

    def normed(self, x: jax.Array) -> jax.Array:
        channels = x.shape[-1]
        if self.coin(3):
            return jax.nn.softmax(x)
        if self.coin() and channels > 1:
            mean = x.mean(-1, keepdims=True)
            variance = jnp.square(x - mean).mean(-1, keepdims=True)
            return (x - mean) * jax.lax.rsqrt(variance + 0.1) * self.numbers(1, 1, 1, channels)
        mean = x.mean((1, 2), keepdims=True)
        variance = jnp.square(x - mean).mean((1, 2), keepdims=True)
        return (x - mean) / jnp.sqrt(variance + 0.1)

    def alike(self, x: jax.Array) -> jax.Array:
        """An array of the same shape."""
        same = [y for y in self.live if y.shape == x.shape]
        return same[self.rng.integers(len(same))]

    def met(self, x: jax.Array) -> jax.Array:
        y = self.alike(x)
        meetings = [
            lambda: x + y,
            lambda: x - 0.5 * y,
            lambda: x * jnp.tanh(y),
            lambda: jnp.maximum(x, 0.5 * y),
            lambda: jnp.minimum(x, 1 - y),
            lambda: jnp.where(x > y, x, y),
            lambda: x / (1 + jnp.abs(y)),
        ]
        return meetings[self.rng.integers(len(meetings))]()

    def gated(self, x: jax.Array) -> jax.Array:
        """Squeeze and excitation."""
        squeezed = x.max((1, 2)) if self.coin() else x.mean((1, 2))
        gates = jax.nn.sigmoid(self.dense(squeezed, x.shape[-1]))
        return x * gates[:, None, None, :]

    def by_pixel(self, x: jax.Array) -> jax.Array:
        constant = self.numbers(1, *x.shape[1:])
        return x * constant if self.coin() else x + constant

    def joined(self, x: jax.Array) -> jax.Array:
        if x.shape[-1] > 3 and self.coin():
            begin, _, end = np.sort(self.rng.choice(x.shape[-1] + 1, 3, replace=False))
            return x[..., begin:end] if self.coin() else x[..., begin :: end - begin]
        y = self.alike(x)
        parts = [x, jnp.flip(y, -1) if self.coin(3) else y]
        if self.coin(3):
            parts.append(jnp.zeros((*x.shape[:-1], 1)) + self.numbers(*x.shape[1:-1], 1)[None])
        return jnp.concatenate(parts, -1)

    def pooled(self, x: jax.Array) -> jax.Array:
        height, width = x.shape[1:3]
        window = tuple(int(self.rng.integers(1, min(n, 3) + 1)) for n in (height, width))
        strides = tuple(int(self.rng.integers(1, 3)) for _ in "yx")
        padding = "SAME" if self.coin() else "VALID"
        size, step = (1, *window, 1), (1, *strides, 1)
        if self.coin():
            return jax.lax.reduce_window(x, -np.inf, jax.lax.max, size, step, padding)
        total = jax.lax.reduce_window(x, 0.0, jax.lax.add, size, step, padding)
        return total / np.prod(window, dtype=np.float32)

    def moved(self, x: jax.Array) -> jax.Array:
        n, height, width, channels = x.shape
        if self.coin(3):
            return x.transpose(0, 2, 1, 3).reshape(n, height, width, channels)
        if self.coin():
            row = x.reshape(n, height * width, channels)
            return self.dense(row, channels).reshape(x.shape)
        low, high = (int(p) for p in self.rng.integers(-1, 2, 2))
        if height + low + high < 1 or width + low + high < 1:
            low = high = 0
        return jax.lax.pad(x, 0.0, [(0, 0, 0), (low, high, 0), (high, low, 0), (0, 0, 0)])
