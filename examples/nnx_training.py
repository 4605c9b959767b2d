"""Sparse training of a Flax NNX model: an `nnx.Optimizer` with masks, everything else as usual.

    python examples/nnx_training.py

Trains a small multilayer perceptron on the Fashion-MNIST sample with GraNet-ST at 95 %. Besides two
imports, the lines that differ from dense training are marked: the method, the optimizer that takes
it in place of `nnx.Optimizer`, and `event`. `examples/equinox_training.py` has the functional
style, with params and masks as trees of your own.
"""

import gzip
import os
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import jaxsparse
from jaxsparse.metrics import Summary
from jaxsparse.nn.optimizer_nnx import NNXOptimizer

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


class MLP(nnx.Module):
    """784-300-100-10 with ReLU."""

    def __init__(self, rngs: nnx.Rngs):
        self.first = nnx.Linear(784, 300, rngs=rngs)
        self.second = nnx.Linear(300, 100, rngs=rngs)
        self.head = nnx.Linear(100, 10, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps float[batch, 28, 28, 1] to float[batch, 10] logits."""
        x = x.reshape(x.shape[0], -1)
        x = nnx.relu(self.first(x))
        return self.head(nnx.relu(self.second(x)))


def main(steps: int = STEPS) -> tuple[float, Summary]:
    """Trains, prints and returns the test accuracy and the table of layers."""
    images, labels = fashion_mnist("train")
    test_images, test_labels = fashion_mnist("t10k")
    model = MLP(nnx.Rngs(0))
    method = jaxsparse.granet_st(sparsity=0.95, total_steps=steps, update_interval=25)  # sparse
    optimizer = NNXOptimizer(model, method, optax.adam(1e-3), key=jax.random.key(1))  # sparse

    def loss(model, images, labels):
        logits = model(images / 255.0)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    @nnx.jit(static_argnames="event")  # sparse: event
    def step(model, optimizer, images, labels, event):  # sparse: event
        grads = nnx.grad(loss)(model, images, labels)
        optimizer.update(model, grads, event=event)  # sparse: event

    order = np.random.default_rng(0)
    for n in range(1, steps + 1):
        batch = order.integers(len(labels), size=BATCH)
        step(model, optimizer, images[batch], labels[batch], method.is_due(n))  # sparse: event

    logits = model(jnp.asarray(test_images) / 255.0)
    accuracy = float((jnp.argmax(logits, -1) == jnp.asarray(test_labels)).mean())
    table = optimizer.summary(model)
    print(f"test accuracy {accuracy:.4f}\n{table}")
    return accuracy, table


if __name__ == "__main__":
    main()
