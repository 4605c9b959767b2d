"""What one run of an experiment needs: the parts that the loop and its report share."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax
from flax import linen as nn

from experiments.data.dataset import Dataset
from jaxsparse import Method, TrainState


class RunState(TrainState):
    """A train state with what else the model has.

    Attributes:
      collections: the model's variables beside its params, {"batch_stats": ...} or {}.
    """

    collections: Any

    @property
    def variables(self) -> dict[str, Any]:
        """What `apply_fn` takes."""
        return {"params": self.params, **self.collections}


class Phase(NamedTuple):
    """When the DyReLUs of a network fade into ReLUs, in steps.

    Attributes:
      start: the last step that has all of DyReLU.
      stop: the step after which it is gone, and its parameters with it.
      late: ReLU until `start`, in place of DyReLU.
    """

    start: int
    stop: int
    late: bool = False


class Run(NamedTuple):
    """What one run needs.

    Attributes:
      model: maps float[batch, height, width, channels] to float32[batch, classes] logits; called
        as `jaxsparse.nn` says.
      dataset: training, validation and test images.
      normalise: uint8 images to floats, inside the compiled step.
      method: chooses the masks.
      tx: the optimizer, not yet masked.
      batch_size: images a step.
      seed: of the initial weights, the masks, the order of the data and its augmentation, in
        [0, 2^32).
      eval_every: steps between validations.
      augment: (key, step, uint8 images) to uint8 images, inside the compiled step; None is none.
      checkpoint_every: steps between checkpoints; 0 is only one, at the end.
      accumulate: micro-batches that a step's batch is cut into, to save memory.
      log_every: steps between records of the training loss.
      execution: "masked" is dense kernels with masks, "sparse" by active weights where faster.
      phase: of the model's DyReLUs, None where it has none.
      gradient_flow: whether the norm of the gradient is recorded at every validation.
    """

    model: nn.Module
    dataset: Dataset
    normalise: Callable[[jax.Array], jax.Array]
    method: Method
    tx: optax.GradientTransformation
    batch_size: int
    seed: int
    eval_every: int
    augment: Callable[[jax.Array, jax.Array, jax.Array], jax.Array] | None = None
    checkpoint_every: int = 500
    accumulate: int = 1
    log_every: int = 50
    execution: str = "masked"
    phase: Phase | None = None
    gradient_flow: bool = False

    @property
    def steps(self) -> int:
        """Optimizer steps of the run."""
        return self.method.timetable.total_steps

    def key(self, purpose: int) -> jax.Array:
        """One of the run's keys, by what it is for: one of the numbers below."""
        return jax.random.fold_in(jax.random.key(self.seed), purpose)


# Purposes of keys; epoch e has FIRST_EPOCH + e.
WEIGHTS, MASKS, FIRST_EPOCH = 0, 1, 2
AUGMENTATION, DROPOUT = 2**31 - 1, 2**31 - 2
