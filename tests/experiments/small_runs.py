"""A small network with all that a network can have, and a run of it on random images."""

import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

import jaxsparse
from experiments.data.dataset import Dataset, Split
from experiments.run import Run


class Net(nn.Module):
    norm: bool = False
    dropout_rate: float = 0.0

    @nn.compact
    def __call__(self, x, *, train=False):
        x = nn.Dense(6)(x.reshape(len(x), -1))
        if self.norm:
            x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)
        x = nn.Dropout(self.dropout_rate, deterministic=not train)(nn.relu(x))
        return nn.Dense(3)(x)


def normalise(images):
    return images.astype(jnp.float32) / 255.0 - 0.5


def split(seed, num):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (num, 8, 8, 1), dtype=np.uint8)
    return Split(images, rng.integers(0, 3, num, dtype=np.int32))


def make_run(num_val=8, **fields):
    """20 steps of batch 12 on 48 images, a mask update every 4th, a checkpoint every 10th."""
    defaults = {
        "model": Net(),
        "dataset": Dataset("random", split(0, 48), split(1, num_val), split(2, 8), 3),
        "normalise": normalise,
        "method": jaxsparse.rigl_itop(sparsity=0.5, total_steps=20, update_interval=4),
        "tx": optax.sgd(0.1, momentum=0.9, nesterov=True),
        "batch_size": 12,
        "seed": 0,
        "eval_every": 5,
        "checkpoint_every": 10,
        "log_every": 1,
    }
    return Run(**(defaults | fields))
