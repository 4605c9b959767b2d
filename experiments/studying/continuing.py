"""Trains checkpoints of a run on, evaluates them and gives their gradient, for `jaxsparse.studies`.

Each continuation has a fresh optimizer, as in the paper's code: only weights, masks and batch
statistics are taken over. Data, augmentation and dropout follow from the step, so that all
continuations of a checkpoint see the same.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from experiments.records.report import evaluate
from experiments.training.batches import Batch
from experiments.training.recipes import Recipe, learning_rate
from experiments.training.run import Run, RunState
from experiments.training.steps import loss_and_grads
from jaxsparse import masked
from jaxsparse.studies import Checkpoint, How


class Functions(NamedTuple):
    """What `pruning_plasticity` asks for.

    Attributes:
      train_fn: (checkpoint, how) to the checkpoint after the continuation.
      eval_fn: checkpoint to its accuracy on the test images.
      grad_fn: checkpoint to the gradient of the loss of its next batch.
    """

    train_fn: Callable[[Checkpoint, How], Checkpoint]
    eval_fn: Callable[[Checkpoint], float]
    grad_fn: Callable[[Checkpoint], Any]


def checkpoint_of(state: RunState) -> Checkpoint:
    """Returns weights, masks, the model's other variables and the step of a train state."""
    rest = {"collections": state.collections, "step": int(state.step)}
    return Checkpoint(state.params, state.masks, rest=rest)


def functions_of(run: Run, recipe: Recipe, steps: int, num_after: int) -> Functions:
    """Returns the functions of a run.

    Args:
      run: model, data and seed.
      recipe: SGD with momentum and its schedule; without `max_norm`.
      steps: length of the training that the checkpoints are of.
      num_after: steps of a continuation that does not go to the end.
    """
    schedule = learning_rate(recipe, steps)
    sgd = optax.inject_hyperparams(optax.sgd, static_args=("momentum", "nesterov"))
    tx = masked(
        optax.chain(
            optax.add_decayed_weights(recipe.weight_decay),
            sgd(learning_rate=0.0, momentum=recipe.momentum, nesterov=recipe.nesterov),
        )
    )

    @jax.jit
    def take_step(carry: Any, masks: Any, step: jax.Array, batch: Batch, rate: jax.Array) -> Any:
        params, opt_state, collections = carry
        _, grads, collections = loss_and_grads(run, params, collections, step, batch)
        opt_state = optax.tree.set(opt_state, learning_rate=rate)
        updates, opt_state = tx.update(grads, opt_state, params, masks=masks)
        return optax.apply_updates(params, updates), opt_state, collections

    def train_fn(checkpoint: Checkpoint, how: How) -> Checkpoint:
        params, masks, _, rest = checkpoint
        start = rest["step"]
        stop = steps if how == "end" else start + num_after
        batches, frozen = run.batches(start), jnp.float32(schedule(start))
        carry = (params, tx.init(params), rest["collections"])
        for step in range(start, stop):
            rate = frozen if how == "frozen" else jnp.float32(schedule(step))
            carry = take_step(carry, masks, jnp.int32(step), next(batches), rate)
        params, _, collections = carry
        return checkpoint._replace(
            params=params, rest={"collections": collections, "step": max(start, stop)}
        )

    def eval_fn(checkpoint: Checkpoint) -> float:
        variables = {"params": checkpoint.params, **checkpoint.rest["collections"]}
        found = evaluate(run, variables, run.dataset.test)
        assert found is not None  # there are test images
        return found

    @jax.jit
    def gradient(params: Any, collections: Any, step: jax.Array, batch: Batch) -> Any:
        return loss_and_grads(run, params, collections, step, batch)[1]

    def grad_fn(checkpoint: Checkpoint) -> Any:
        step = checkpoint.rest["step"]
        batch = next(run.batches(step))
        return gradient(checkpoint.params, checkpoint.rest["collections"], jnp.int32(step), batch)

    return Functions(train_fn, eval_fn, grad_fn)
