"""Sparse training of a Flax NNX model: masks beside its parameters, everything else as usual.

    python examples/nnx_training.py

Trains a small multilayer perceptron on the Fashion-MNIST sample with GraNet-ST at 95 %. Lines that
sparse training adds are marked.

With `optimizer = nnx.Optimizer(model, jaxsparse.masked(tx), wrt=nnx.Param)` a step is
`optimizer.update(model, grads, masks=masks)`, and an event is written back as that does it:

    params, opt_state = nnx.as_pure((nnx.state(model, nnx.Param), optimizer.opt_state))
    event = method.update(params, nnx.as_pure(grads), masks, n, key=key)
    params, opt_state = jaxsparse.apply_event(optimizer.tx, event, params, opt_state)
    nnx.update(model, params)
    nnx.update(optimizer.opt_state, nnx.state(opt_state))
    masks = event.masks
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

STEPS, BATCH = 1000, 128

# In the repository; copied out of it, the script looks into the folder that FASHION_MNIST names.
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
    graphdef, params = nnx.split(MLP(nnx.Rngs(0)), nnx.Param)

    method = jaxsparse.granet_st(sparsity=0.95, total_steps=steps, update_interval=25)  # sparse
    key = jax.random.key(1)
    masks = method.init(key, params)  # sparse
    params = jaxsparse.apply_masks(params, masks)  # sparse
    tx = jaxsparse.masked(optax.adam(1e-3))  # sparse: masked(...)
    opt_state = tx.init(params)

    def loss(params, images, labels):
        logits = nnx.merge(graphdef, params)(images / 255.0)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    @jax.jit
    def step(params, opt_state, masks, images, labels):
        grads = jax.grad(loss)(params, images, labels)
        updates, opt_state = tx.update(grads, opt_state, params, masks=masks)
        return optax.apply_updates(params, updates), opt_state, grads

    order = np.random.default_rng(0)
    for n in range(1, steps + 1):
        batch = order.integers(len(labels), size=BATCH)
        params, opt_state, grads = step(params, opt_state, masks, images[batch], labels[batch])
        if method.is_due(n):  # sparse
            event = method.update(params, grads, masks, n, key=key)
            params, opt_state = jaxsparse.apply_event(tx, event, params, opt_state)
            masks = event.masks

    logits = nnx.merge(graphdef, params)(jnp.asarray(test_images) / 255.0)
    accuracy = float((jnp.argmax(logits, -1) == jnp.asarray(test_labels)).mean())
    table = jaxsparse.summary(params, masks)
    print(f"test accuracy {accuracy:.4f}\n{table}")
    return accuracy, table


if __name__ == "__main__":
    main()
