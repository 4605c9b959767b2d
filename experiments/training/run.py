"""One run of an experiment: the parts that the loop and its report share."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import optax
from flax import linen as nn

from experiments.data.dataset import Dataset
from experiments.training.batches import Batch, on_device
from experiments.training.criteria import Scoring
from jaxsparse import Method, TrainState


class RunState(TrainState):
    """A train state that also carries the model's other variables.

    Attributes:
      collections: the model's variables beside its params: {"batch_stats": ...}, or {} if it has
        no others.
    """

    collections: Any

    @property
    def variables(self) -> dict[str, Any]:
        """The variables as `apply_fn` takes them."""
        return {"params": self.params, **self.collections}


class Phase(NamedTuple):
    """When the DyReLUs of a network fade into ReLUs, in steps.

    Attributes:
      start: the last step at which DyReLU counts in full.
      stop: the step after which DyReLU is removed, together with its parameters.
      late: use ReLU instead of DyReLU until `start`.
    """

    start: int
    stop: int
    late: bool = False


class Surgery(NamedTuple):
    """A change of the network in the middle of a run, such as merging two layers into one.

    Attributes:
      step: the step after which it happens, in [1, steps of the run].
      operate: (model, state) to the model and state that training goes on with; `after` in
        `surgery.py` says what it has to keep.
    """

    step: int
    operate: Callable[[nn.Module, RunState], tuple[nn.Module, RunState]]


class Between(NamedTuple):
    """A change of a run's state between two steps, made on the host.

    Steps are compiled once, so the change keeps the structure, shapes and dtypes of the state. It
    may set masks that live in the optimizer's state, say; a `Surgery` changes the network.
    Checkpoints are written after the change, so a run that goes on does not repeat it.

    Attributes:
      is_due: number of completed steps to whether the state changes after them.
      change: state to the state that training goes on with.
    """

    is_due: Callable[[int], bool]
    change: Callable[[RunState], RunState]


class Run(NamedTuple):
    """The parts of one run.

    Attributes:
      model: maps float[batch, height, width, channels] to float32[batch, classes] logits; called
        as `jaxsparse.nn` says.
      dataset: training, validation and test images.
      normalise: turns uint8 images into floats, inside the compiled step.
      method: chooses the masks.
      tx: the optimizer, not yet masked.
      batch_size: images a step.
      seed: of the initial weights, the masks, the order of the data and its augmentation, in
        [0, 2^32).
      eval_every: steps between validations.
      augment: (key, step, uint8 images) to uint8 images, inside the compiled step; None trains on
        the images as they are.
      checkpoint_every: steps between checkpoints; 0 saves only one, at the end.
      accumulate: micro-batches that a step's batch is cut into, to save memory.
      log_every: steps between records of the training loss.
      execution: "masked" runs dense kernels with masks, "sparse" computes by active weights where
        that is faster.
      phase: of the model's DyReLUs; None if it has none.
      allow_cut: whether masks that never change may cut the network.
      gradient_flow: whether the norm of the gradient is recorded at every validation.
      masks: the initial masks, a tree like params; None lets the method draw them.
      scoring: how initial masks are chosen by scores if `masks` is None; None lets the method draw
        them. A run that goes on has those of its checkpoint.
      sparse_init: scales the initial weights to the initial masks, by "unit" or by "layer", see
        `jaxsparse.sparse_init`; None leaves them as the network draws them.
      surgeries: changes of the network on the way; the end of DyReLU follows from `phase`.
      between: changes of the state between steps, made on the host in this order.
      source: completed steps to the batches of the steps that follow; None takes the training
        images from the device, see `batches.on_device`.
      label_smoothing: share of a label that is spread over all classes.
      distribute: wraps the function of loss and gradient, such as in a `jax.shard_map`; None leaves
        it to JAX where a batch that is cut over devices is computed.
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
    allow_cut: bool = False
    gradient_flow: bool = False
    masks: Any = None
    scoring: Scoring | None = None
    sparse_init: str | None = None
    surgeries: tuple[Surgery, ...] = ()
    between: tuple[Between, ...] = ()
    source: Callable[[int], Iterator[Batch]] | None = None
    label_smoothing: float = 0.0
    distribute: Callable[[Callable[..., Any]], Callable[..., Any]] | None = None

    @property
    def steps(self) -> int:
        """Optimizer steps of the run."""
        return self.method.timetable.total_steps

    def batches(self, first: int) -> Iterator[Batch]:
        """Returns the batches of the steps after `first` completed ones."""
        if self.source is not None:
            return self.source(first)
        key = jax.random.key(self.seed)
        return on_device(self.dataset.train, key, self.batch_size, first)

    def key(self, purpose: int) -> jax.Array:
        """Returns the run's key for a purpose, one of the numbers below."""
        return jax.random.fold_in(jax.random.key(self.seed), purpose)


# Purposes of keys. (The order of the images in epoch e has 2 + e, see `batches.py`.)
WEIGHTS, MASKS = 0, 1
AUGMENTATION, DROPOUT, SCORES = 2**31 - 1, 2**31 - 2, 2**31 - 3
