"""Writes the results of the kernels on some layers into a file, which test_load.py compares.

JAX_NUM_CPU_DEVICES=<threads> python tests/kernels/run_kernels.py <file>
"""

import functools
import os
import sys
from pathlib import Path

if __name__ == "__main__":  # XLA has as many threads as there are cores, or devices
    os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])

import jax
import jax.numpy as jnp
import numpy as np

import jaxsparse
from jaxsparse.sparse import Window, backend, larger_line, sparse_conv, to_sparse
from jaxsparse.sparse.norm import batch_norm

SAME = ((1, 1), (1, 1))
# (images, height, width, input channels, output channels), window; a fifth of weights is active.
# Channel-major batches of 16 images or more are copied into slabs if each pixel is read often,
# which `copies_pay` decides separately for forward and backward. Otherwise, many rows are done
# together.
LAYERS = {
    "copies forward": ((64, 8, 8, 24, 40), Window((3, 3), padding=SAME)),
    "copies backward": ((19, 9, 6, 40, 16), Window((3, 3), padding=SAME)),
    "many rows": ((17, 70, 7, 6, 8), Window((3, 3), padding=SAME)),
    "few images": ((3, 9, 9, 24, 40), Window((3, 3), (2, 2), SAME)),
}


def convolution(shape, window, layout):
    """Outputs, and gradients of images and values."""
    batch, height, width, inputs, outputs = shape
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.normal(size=(batch, height, width, inputs)), jnp.float32)
    images = images if layout == "NHWC" else images.transpose(3, 1, 2, 0)
    kernel = jnp.asarray(rng.normal(size=(*window.taps, inputs, outputs)), jnp.float32)
    values, positions = to_sparse(kernel, jnp.asarray(rng.random(kernel.shape) < 0.2))
    conv = functools.partial(sparse_conv, positions=positions, window=window, layout=layout)

    @jax.jit
    def run(images, values):
        out, pull = jax.vjp(conv, images, values)
        return out, *pull(jnp.cos(out))

    return run(images, values)


def norm():
    """Outputs and gradients, with a shortcut."""
    rng = np.random.default_rng(0)
    x, shortcut = (jnp.asarray(rng.normal(size=(24, 9, 9, 33)), jnp.float32) for _ in "12")
    scale, bias = (jnp.asarray(rng.normal(size=24), jnp.float32) for _ in "12")

    @jax.jit
    def run(*args):
        outputs, pull = jax.vjp(functools.partial(batch_norm, relu=False), *args)
        return *outputs, *pull(outputs)

    return run(x, scale, bias, shortcut)


def lines():
    """Outputs and gradients."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(24, 9, 9, 33)), jnp.float32)
    coefficients = jnp.asarray(rng.normal(size=(24, 4, 33)), jnp.float32)

    @jax.jit
    def run(*args):
        y, pull = jax.vjp(larger_line, *args)
        return y, *pull(y)

    return run(x, coefficients)


def selection():
    """Masks of the largest of scores with many ties, in each leaf and over both."""
    rng = np.random.default_rng(0)
    scores = {name: np.round(rng.normal(size=300_000), 3).astype(np.float32) for name in "ab"}
    eligible = {name: rng.random(x.shape) < 0.6 for name, x in scores.items()}
    select = jax.jit(jaxsparse.top_k)
    chosen = [select(scores, k, eligible) for k in (70_000, {"a": 20_000, "b": 100_000})]
    return [np.float32(mask) for selected in chosen for mask in selected.masks.values()]


def main():
    found = {"norm": norm(), "lines": lines(), "selection": selection()}
    for name, (shape, window) in LAYERS.items():
        for layout in ("NHWC", "CHWN"):
            found[f"{name}, {layout}"] = convolution(shape, window, layout)
    named = {f"{name}, {i}": x for name, xs in found.items() for i, x in enumerate(xs)}
    tasks = Path("/proc/self/task").glob("*/comm")
    threads = sum(task.read_text().startswith("tf_XLAEigen") for task in tasks)
    np.savez(sys.argv[1], **named, level=backend().why, threads=threads)


if __name__ == "__main__":
    main()
