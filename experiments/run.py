"""What one run of an experiment needs: the parts that the loop and its report share."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import optax
from flax import linen as nn

from experiments.data.dataset import Dataset
from jaxsparse import Method


class Run(NamedTuple):
    """What one run needs.

    Attributes:
      model: maps float[batch, height, width, channels] to float[batch, classes] logits.
      dataset: training, validation and test images.
      normalise: uint8 images to floats, inside the compiled step.
      method: chooses the masks.
      tx: the optimizer, not yet masked.
      batch_size: images a step.
      seed: of the initial weights, the masks and the order of the data.
      eval_every: steps between validations.
      checkpoint_every: steps between checkpoints; 0 is only one, at the end.
      accumulate: micro-batches that a step's batch is cut into, to save memory.
      log_every: steps between records of the training loss.
    """

    model: nn.Module
    dataset: Dataset
    normalise: Callable[[jax.Array], jax.Array]
    method: Method
    tx: optax.GradientTransformation
    batch_size: int
    seed: int
    eval_every: int
    checkpoint_every: int = 500
    accumulate: int = 1
    log_every: int = 50

    @property
    def steps(self) -> int:
        """Optimizer steps of the run."""
        return self.method.timetable.total_steps
