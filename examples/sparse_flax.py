"""A Flax training script with batch norm, weight decay, a schedule and averaged parameters.

    python examples/dense_flax.py
    python examples/sparse_flax.py    # the same script, and the lines that make it sparse

Trains a small convolutional network on the Fashion-MNIST sample.
"""

import gzip
import os
import sys
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.training import train_state

import jaxsparse

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


class CNN(nn.Module):
    """Three convolutions with batch norm, two of stride 2, and a linear head."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps float[batch, 28, 28, 1] to float[batch, 10] logits."""
        for features, stride in ((16, 2), (32, 1), (64, 2)):
            x = nn.Conv(features, (3, 3), strides=stride, use_bias=False)(x)
            x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))
        return nn.Dense(10)(x.reshape(x.shape[0], -1))


@jaxsparse.with_masks
class TrainState(train_state.TrainState):
    """Also carries the statistics of batch norm and an average of the parameters."""

    batch_stats: Any
    ema_params: Any


def create_state(key: jax.Array, steps: int) -> TrainState:
    """Returns a state with SGD, warm-up and cosine; norms and biases do not decay."""
    model = CNN()
    variables = model.init(key, jnp.zeros((1, 28, 28, 1)), train=False)
    schedule = optax.warmup_cosine_decay_schedule(0.0, 0.1, steps // 10, steps)
    kernels_only = jax.tree.map(lambda p: p.ndim > 1, variables["params"])
    return TrainState.create(
        apply_fn=model.apply,
        params=variables["params"],
        tx=optax.chain(
            optax.add_decayed_weights(5e-4, mask=kernels_only),
            optax.sgd(schedule, momentum=0.9, nesterov=True),
        ),
        batch_stats=variables["batch_stats"],
        ema_params=variables["params"],
        method=jaxsparse.granet(sparsity=0.9, total_steps=steps, update_interval=steps // 40),
        key=key,
    )


@jax.jit
def train_step(state, images, labels):
    def loss_fn(params):
        variables = {"params": params, "batch_stats": state.batch_stats}
        logits, updates = state.apply_fn(
            variables, images / 255.0, train=True, mutable=["batch_stats"]
        )
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean(), updates["batch_stats"]

    (loss, batch_stats), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
    state = state.apply_gradients(grads=grads, batch_stats=batch_stats)
    ema_params = optax.incremental_update(state.params, state.ema_params, 0.02)
    return state.replace(ema_params=ema_params), loss


@jax.jit
def predict(state, images):
    variables = {"params": state.ema_params, "batch_stats": state.batch_stats}
    return state.apply_fn(variables, images / 255.0, train=False).argmax(-1)


def main(steps: int = STEPS, seed: int = 0) -> tuple[TrainState, float]:
    """Trains, prints and returns the accuracy of the averaged parameters on the test images."""
    images, labels = fashion_mnist("train")
    test_images, test_labels = fashion_mnist("t10k")
    state = create_state(jax.random.key(seed), steps)
    rng = np.random.default_rng(seed)
    for step in range(1, steps + 1):
        batch = rng.integers(len(labels), size=BATCH)
        state = state.replace(event=state.method.is_due(step))
        state, loss = train_step(state, images[batch], labels[batch])
        if step % 100 == 0:
            print(f"step {step}: loss {loss:.4f}")

    # Weights that were dropped on the way live on in an average.
    state = state.replace(ema_params=jaxsparse.apply_masks(state.ema_params, state.masks))
    accuracy = float((predict(state, test_images) == test_labels).mean())
    print(f"test accuracy {accuracy:.4f}")
    print(state.summary())
    return state, accuracy


if __name__ == "__main__":
    main()
