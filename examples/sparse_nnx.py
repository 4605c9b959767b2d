"""Sparse execution of a Flax NNX model, whose layers are swapped for ones with active weights only.

    python examples/sparse_nnx.py

Trains a small convolutional network on the Fashion-MNIST sample with RigL at 90 %. Steps compute
with the active weights alone, and the optimizer has slots for no others. Only events see all
weights.
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
from jaxsparse.nn.sparse_nnx import dense_modules, move_optimizer, sparse_modules
from jaxsparse.sparse import backend
from jaxsparse.sparse.states import find_positions
from jaxsparse.types import PyTree

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


class CNN(nnx.Module):
    """Two convolutions of stride 2 and a linear head, with ReLU."""

    def __init__(self, rngs: nnx.Rngs):
        self.first = nnx.Conv(1, 16, (3, 3), strides=2, rngs=rngs)
        self.second = nnx.Conv(16, 32, (3, 3), strides=2, rngs=rngs)
        self.head = nnx.Linear(7 * 7 * 32, 10, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps float[batch, 28, 28, 1] to float[batch, 10] logits."""
        x = nnx.relu(self.second(nnx.relu(self.first(x))))
        return self.head(x.reshape(x.shape[0], -1))


def loss(model, images, labels):
    logits = model(images / 255.0)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


@nnx.jit
def step(model, optimizer, images, labels):
    optimizer.update(model, nnx.grad(loss)(model, images, labels))


dense_gradients = nnx.jit(nnx.grad(loss))


def event(method, model, optimizer, masks, n, batch):
    """Returns the model and the optimizer after a mask update, and the new masks."""
    full = dense_modules(model)
    full_optimizer = move_optimizer(optimizer, model, full)
    grads = nnx.as_pure(dense_gradients(full, *batch))
    params, opt_state = nnx.as_pure((nnx.state(full, nnx.Param), full_optimizer.opt_state))
    update = method.update(params, grads, masks, n)
    params, opt_state = jaxsparse.apply_event(optimizer.tx, update, params, opt_state)
    nnx.update(full, params)
    nnx.update(full_optimizer.opt_state, nnx.state(opt_state))
    model = sparse_modules(full, find_positions(update.masks))
    return model, move_optimizer(full_optimizer, full, model), update.masks


def num_floats(optimizer: nnx.Optimizer) -> int:
    """Returns the number of floats that the optimizer keeps."""
    leaves = jax.tree.leaves(nnx.as_pure(optimizer.opt_state))
    return sum(x.size for x in leaves if jnp.issubdtype(x.dtype, jnp.floating))


def main(steps: int = STEPS) -> tuple[float, nnx.Module, PyTree]:
    """Trains, prints and returns the test accuracy, the sparse model and the masks."""
    images, labels = fashion_mnist("train")
    test_images, test_labels = fashion_mnist("t10k")
    model = CNN(nnx.Rngs(0))
    method = jaxsparse.rigl(sparsity=0.9, total_steps=steps, update_interval=max(steps // 20, 1))
    masks = method.init(jax.random.key(1), nnx.as_pure(nnx.state(model, nnx.Param)))
    model = sparse_modules(model, find_positions(masks))
    optimizer = nnx.Optimizer(model, optax.adam(3e-3), wrt=nnx.Param)

    order = np.random.default_rng(0)
    for n in range(1, steps + 1):
        chosen = order.integers(len(labels), size=BATCH)
        batch = jnp.asarray(images[chosen]), jnp.asarray(labels[chosen])
        if method.is_due(n):
            model, optimizer, masks = event(method, model, optimizer, masks, n, batch)
        step(model, optimizer, *batch)

    logits = model(jnp.asarray(test_images) / 255.0)
    accuracy = float((jnp.argmax(logits, -1) == jnp.asarray(test_labels)).mean())
    full = nnx.as_pure(nnx.state(dense_modules(model), nnx.Param))
    print(f"test accuracy {accuracy:.4f}, executed by {backend().name} ({backend().why})")
    print(f"{num_floats(optimizer):,} floats in the slots of the optimizer")
    print(jaxsparse.summary(full, masks))
    return accuracy, model, masks


if __name__ == "__main__":
    main()
