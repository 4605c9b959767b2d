"""The compiled training steps: a batch at once, or in micro-batches to save memory."""

import functools
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import optax

from experiments.run import Run
from jaxsparse import TrainState

Step: TypeAlias = Callable[
    [TrainState, jax.Array, jax.Array, jax.Array], tuple[TrainState, jax.Array]
]


def compile_steps(
    run: Run, state: TrainState, images: jax.Array, labels: jax.Array
) -> dict[bool, Step]:
    """Compiles the training step, without and with a mask update, before the clock starts.

    Returns:
      By whether there is a mask update: (state, images, labels, int32[batch_size] indices) to the
      next state and the mean loss of the batch. The state is donated.
    """

    def loss_and_grads(
        params: Any, images: jax.Array, labels: jax.Array, indices: jax.Array
    ) -> tuple[jax.Array, Any]:
        batch, targets = run.normalise(images[indices]), labels[indices]

        def mean_loss(params: Any) -> jax.Array:
            logits = jnp.asarray(run.model.apply({"params": params}, batch))
            return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()

        return jax.value_and_grad(mean_loss)(params)

    @functools.partial(jax.jit, static_argnames="event", donate_argnames="state")
    def train_step(
        state: TrainState, images: jax.Array, labels: jax.Array, indices: jax.Array, event: bool
    ) -> tuple[TrainState, jax.Array]:
        loss, grads = loss_and_grads(state.params, images, labels, indices)
        return state.apply_gradients(grads=grads, event=event), loss

    kinds = (False, True) if run.method.timetable.events else (False,)
    if run.accumulate > 1:
        return {event: accumulating_step(loss_and_grads, run.accumulate, event) for event in kinds}
    indices = jnp.zeros(run.batch_size, jnp.int32)
    return {
        event: train_step.lower(state, images, labels, indices, event=event).compile()
        for event in kinds
    }


def accumulating_step(
    loss_and_grads: Callable[..., tuple[jax.Array, Any]], num_parts: int, event: bool
) -> Step:
    """Returns a step that averages loss and gradients over micro-batches, then updates once.

    This is how to train with less memory than a batch needs: to the masks it is one step, with the
    gradient of the whole batch. Under `optax.MultiSteps` every micro-batch is a step to whatever
    counts them, a mask update has to fall on the last one and sees its gradient alone, and RigL's
    skipped step leaves out only that one. The loop over micro-batches is Python's: on CPU a
    convolution in a `lax.scan` is several times slower, and where the loop is unrolled inside one
    program, XLA keeps the activations of all parts alive at the same time.

    Args:
      loss_and_grads: (params, images, labels, indices) to the mean loss and its gradient.
      num_parts: micro-batches; they are equally large.
      event: whether a mask update follows.
    """

    @functools.partial(jax.jit, donate_argnames="total")
    def add(total: Any, params: Any, *data: jax.Array) -> Any:
        return jax.tree.map(
            lambda so_far, x: so_far + x / num_parts, total, loss_and_grads(params, *data)
        )

    @functools.partial(jax.jit, donate_argnames="state")
    def apply(state: TrainState, grads: Any) -> TrainState:
        return state.apply_gradients(grads=grads, event=event)

    def step(
        state: TrainState, images: jax.Array, labels: jax.Array, indices: jax.Array
    ) -> tuple[TrainState, jax.Array]:
        loss, grads = jnp.zeros(()), jax.tree.map(jnp.zeros_like, state.params)
        for part in jnp.split(indices, num_parts):
            loss, grads = add((loss, grads), state.params, images, labels, part)
        return apply(state, grads), loss

    return step
