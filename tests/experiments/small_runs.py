"""A small network with all that a network can have, and a run of it on random images."""

import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

import jaxsparse
from experiments import loop
from experiments.data.dataset import Dataset, Split
from experiments.training.execution import make_execution
from experiments.training.run import Run


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


def split(seed, num, image=(8, 8, 1)):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (num, *image), dtype=np.uint8)
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


def trained(run, steps=None):
    """The losses of so many steps, or of all, and the execution with what it has come to."""
    state, batches = loop.create_state(run), run.batches(0)
    first, batches = loop.peeked(batches)
    execution = make_execution(run, state, first)
    live, losses = execution.start(state, None), []
    for step in range(1, (run.steps if steps is None else steps) + 1):
        live, loss = execution.step(live, run.method.is_due(step), next(batches))
        losses.append(float(loss))
    return losses, execution, live
