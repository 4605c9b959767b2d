"""The memory traffic of a channel-major residual network, and the bandwidth of the machine.

With few active weights there is almost no arithmetic, and the time goes into reading and writing
activations. These are float32, and far larger than the caches if the batch is large. The count
ignores that a cache may keep activations for the next operation, so a small network can beat it.
"""

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from benchmarks import quiet
from jaxsparse.sparse import LayerShape

BYTES = 4
ARRAY = 2**26  # floats of each array: 256 MiB, more than any cache


def step_bytes(layers: Mapping[str, LayerShape], *, train: bool) -> int:
    """Counts what the operations of `jaxsparse.nn.ResNet` read and write, each array once per use.

    For a convolution from x to z and the norm after it from z to y, with dx, dz, dy their
    gradients, these are

        convolution  reads x, writes z              backward: reads x, dz, writes dx
        norm, ReLU   reads z, writes y              backward: reads z, y, dy, writes dz

    These are 11 passes over activations: 3 of the size of x and 8 of z, or 7 of z without a ReLU,
    which needs y. The forward pass alone has 1 of x and 3 of z. The shortcut of a block adds

        norm         reads the shortcut             backward: writes its gradient
        sum          of the gradients of the block's input from its two ways: reads 2, writes 1

    Weights, statistics, the head and the change of the images' layout are not counted.

    Args:
      layers: of the network, from `layer_shapes`.
      train: whether there is a backward pass.
    """
    total = 0
    last = {path.split("/")[0]: path for path in layers if "/conv" in path}  # of each block
    for path, layer in layers.items():
        if path.startswith("fc/"):
            continue
        size_in = math.prod(layer.images)
        y, x = layer.window.out_size(layer.images[1:3])
        size_out = layer.images[0] * y * x * layer.kernel[3]
        relus = 0 if "shortcut" in path else 1
        total += 3 * size_in + (7 + relus) * size_out if train else size_in + 3 * size_out
        if path in last.values():
            total += (2 if train else 1) * size_out
        if path.endswith("/conv1/kernel") and train:
            total += 3 * size_in
    return BYTES * total


def bandwidth(*, rounds: int, retries: int) -> quiet.Spread:
    """Measures the bytes per millisecond of a sum of two arrays that exceed the caches.

    It reads two arrays and writes one. A training step has a similar ratio: 7 reads to 4 writes.
    """
    add = jax.jit(lambda x, y, out: x + y, donate_argnums=2, keep_unused=True)
    x, y, out = jnp.zeros(ARRAY), jnp.ones(ARRAY), [jnp.ones(ARRAY)]

    def run() -> None:
        out[0] = jax.block_until_ready(add(x, y, out[0]))

    found = quiet.milliseconds(quiet.in_turn({"add": run}, rounds=rounds, retries=retries)["add"])
    low, median, high = (3 * BYTES * ARRAY / ms for ms in (found.high, found.median, found.low))
    return quiet.Spread(median, low, high, found.num_quiet)
