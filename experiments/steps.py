"""The compiled training steps: a batch at once, or in micro-batches to save memory."""

import functools
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.run import Run
from jaxsparse import TrainState

Step: TypeAlias = Callable[
    [TrainState, jax.Array, jax.Array, jax.Array | np.ndarray], tuple[TrainState, jax.Array]
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
    indices = jnp.zeros(run.batch_size, jnp.int32)
    if run.accumulate > 1:
        data = (images, labels, indices)
        return accumulating_steps(loss_and_grads, run.accumulate, kinds, state, data)
    return {
        event: train_step.lower(state, images, labels, indices, event=event).compile()
        for event in kinds
    }


def accumulating_steps(
    loss_and_grads: Callable[..., tuple[jax.Array, Any]],
    num_parts: int,
    kinds: Iterable[bool],
    state: TrainState,
    data: tuple[jax.Array, jax.Array, jax.Array],
) -> dict[bool, Step]:
    """Compiles steps that average loss and gradients over micro-batches, then update once.

    This is how to train with less memory than a batch needs: to the masks it is one step, with the
    gradient of the whole batch. Under `optax.MultiSteps` every micro-batch is a step to whatever
    counts them, a mask update has to fall on the last one and sees its gradient alone, and RigL's
    skipped step leaves out only that one. The loop over micro-batches is Python's: on CPU a
    convolution in a `lax.scan` is several times slower, and where the loop is unrolled inside one
    program, XLA keeps the activations of all parts alive at the same time.

    Args:
      loss_and_grads: (params, images, labels, indices) to the mean loss and its gradient.
      num_parts: micro-batches; they are equally large.
      kinds: the steps to compile, by whether a mask update follows.
      state: to start with; its values do not matter.
      data: images, labels and the indices of one batch; of these the values do not matter either.
    """

    def nothing(params: Any) -> Any:
        return jnp.zeros(()), jax.tree.map(jnp.zeros_like, params)

    def add(total: Any, params: Any, images: Any, labels: Any, indices: Any, part: Any) -> Any:
        chosen = indices.reshape(num_parts, -1)[part]
        return jax.tree.map(
            lambda so_far, x: so_far + x / num_parts,
            total,
            loss_and_grads(params, images, labels, chosen),
        )

    def apply(state: TrainState, grads: Any, event: bool) -> TrainState:
        return state.apply_gradients(grads=grads, event=event)

    total = jax.eval_shape(nothing, state.params)
    compiled_nothing = jax.jit(nothing).lower(state.params).compile()
    compiled_add = (
        jax.jit(add, donate_argnames="total")
        .lower(total, state.params, *data, np.int32(0))
        .compile()
    )
    jitted_apply = jax.jit(apply, static_argnames="event", donate_argnames="state")

    def step_of(event: bool) -> Step:
        compiled_apply = jitted_apply.lower(state, total[1], event=event).compile()

        def step(
            state: TrainState,
            images: jax.Array,
            labels: jax.Array,
            indices: jax.Array | np.ndarray,
        ) -> tuple[TrainState, jax.Array]:
            total = compiled_nothing(state.params)
            for part in range(num_parts):
                total = compiled_add(total, state.params, images, labels, indices, np.int32(part))
            loss, grads = total
            return compiled_apply(state, grads), loss

        return step

    return {event: step_of(event) for event in kinds}
