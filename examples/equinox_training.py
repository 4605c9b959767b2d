"""Sparse training of an Equinox model, with masks beside its parameters.

    pip install equinox
    python examples/equinox_training.py

Trains a small multilayer perceptron on the Fashion-MNIST sample with GraNet-ST at 95 %, and tests
an exponential moving average of its parameters. The lines that sparse training adds are marked.
"""

import functools
import gzip
import os
import sys
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxsparse
from jaxsparse.metrics import Summary

STEPS, BATCH = 1000, 128

# The sample of the repository; a copy of this script elsewhere reads the folder $FASHION_MNIST.
SAMPLE = Path(__file__).resolve().parent.parent / "experiments" / "data" / "sample"


def fashion_mnist(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Reads uint8[n, 28, 28, 1] images and int32[n] labels; the splits are "train" and "t10k"."""
    folder = Path(os.environ.get("FASHION_MNIST", SAMPLE))
    paths = [folder / f"{split}-{part}-ubyte.gz" for part in ("images-idx3", "labels-idx1")]
    if missing := [path for path in paths if not path.exists()]:
        hint = "set FASHION_MNIST to a folder like experiments/data/sample of the repository"
        sys.exit(f"{missing[0]} is missing; {hint}")
    images, labels = (np.frombuffer(gzip.decompress(p.read_bytes()), np.uint8) for p in paths)
    return images[16:].reshape(-1, 28, 28, 1), labels[8:].astype(np.int32)  # without IDX headers


class MLP(eqx.Module):
    """784-300-100-10 with ReLU."""

    layers: list[eqx.nn.Linear]

    def __init__(self, key: jax.Array):
        sizes, keys = (784, 300, 100, 10), jax.random.split(key, 3)
        self.layers = [
            eqx.nn.Linear(n_in, n_out, key=k)
            for n_in, n_out, k in zip(sizes[:-1], sizes[1:], keys, strict=True)
        ]

    def __call__(self, image: jax.Array) -> jax.Array:
        """Maps float[28, 28, 1] to float[10] logits."""
        x = image.ravel()
        for layer in self.layers[:-1]:
            x = jax.nn.relu(layer(x))
        return self.layers[-1](x)


def main(steps: int = STEPS) -> tuple[float, Summary]:
    """Trains, prints and returns the test accuracy and the table of layers."""
    images, labels = fashion_mnist("train")
    test_images, test_labels = fashion_mnist("t10k")
    # `params` has the arrays, on which the core works, and `static` everything else.
    params, static = eqx.partition(MLP(jax.random.key(0)), eqx.is_inexact_array)

    method = jaxsparse.granet_st(sparsity=0.95, total_steps=steps, update_interval=25)  # sparse
    optimizer = jaxsparse.sparse_optimizer(method, optax.adam(1e-3))  # sparse
    params, state = optimizer.init(params, key=jax.random.key(1))  # sparse: key
    average = params

    def logits(params, images):
        return jax.vmap(eqx.combine(params, static))(images / 255.0)

    def loss(params, images, labels):
        losses = optax.softmax_cross_entropy_with_integer_labels(logits(params, images), labels)
        return losses.mean()

    @functools.partial(jax.jit, static_argnames="event")  # sparse: event
    def step(params, state, average, images, labels, event):
        grads = jax.grad(loss)(params, images, labels)
        params, state = optimizer.update(grads, state, params, event=event)  # sparse: event
        return params, state, optax.incremental_update(params, average, 0.02)

    order = np.random.default_rng(0)
    for n in range(1, steps + 1):
        batch = order.integers(len(labels), size=BATCH)
        event = method.is_due(n)  # sparse
        params, state, average = step(
            params, state, average, images[batch], labels[batch], event=event
        )

    # The average still holds weights that were dropped on the way, so it is masked before its use.
    average = jaxsparse.apply_masks(average, state.masks)  # sparse
    predicted = jnp.argmax(logits(average, jnp.asarray(test_images)), -1)
    accuracy = float((predicted == jnp.asarray(test_labels)).mean())
    table = optimizer.summary(params, state)
    print(f"test accuracy {accuracy:.4f}\n{table}")
    return accuracy, table


if __name__ == "__main__":
    main()
