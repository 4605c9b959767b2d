"""The compiled training steps: a batch at once, or in micro-batches to save memory."""

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.training.run import AUGMENTATION, DROPOUT, Run, RunState
from jaxsparse.nn import beta_of, sparse_execution, with_beta
from jaxsparse.sparse import Positions, expand, expand_leaves

Data: TypeAlias = tuple[jax.Array, jax.Array, jax.Array | np.ndarray]
"""All images, all labels, and int32[n] indices of those to take."""

Step: TypeAlias = Callable[..., tuple[RunState, jax.Array]]

Parts: TypeAlias = tuple[jax.Array, Any, Any]
"""Of a batch: its mean loss, the gradient, and the model's collections after it."""


def compile_steps(
    run: Run,
    state: RunState,
    data: tuple[jax.Array, jax.Array],
    events: Iterable[bool],
    *positions: Mapping[str, Positions],
) -> dict[bool, Step]:
    """Compiles training steps, before the clock starts.

    The seed is an argument of theirs, and no constant: to JAX's compilation cache, where there is
    one, runs that differ in nothing else are the same program.

    Args:
      run: what to train.
      state: the steps take one of its structure.
      data: all images and all labels.
      events: whether a mask update follows, of each step to compile.
      *positions: of the active weights of a compressed state; the steps take them too. A step with
        a mask update returns the state in full.

    Returns:
      By whether there is a mask update: (state, images, labels, int32[batch_size] indices) to the
      next state and the mean loss of the batch. The state is donated, but for a compressed one
      that comes out in full.
    """
    if run.accumulate > 1:
        return accumulating_steps(run, state, data, events, *positions)

    seed = jnp.uint32(run.seed)

    def compiled(event: bool) -> Step:
        def step(seed: jax.Array, *args: Any) -> tuple[RunState, jax.Array]:
            return train_step(run._replace(seed=seed), event, *args)

        indices = jnp.zeros(run.batch_size, jnp.int32)
        # Nothing of a compressed state can be reused where it becomes one in full.
        jitted = jax.jit(step, donate_argnums=() if event and positions else 1)
        program = jitted.lower(seed, state, *data, indices, *positions).compile()
        return functools.partial(program, seed)

    return {event: compiled(event) for event in events}


def train_step(
    run: Run,
    event: bool,
    state: RunState,
    images: jax.Array,
    labels: jax.Array,
    indices: jax.Array,
    positions: Mapping[str, Positions] | None = None,
) -> tuple[RunState, jax.Array]:
    """One step, not yet compiled; returns the next state and the mean loss of the batch."""
    positions = positions or {}
    with sparse_execution(positions):
        loss, grads, collections = loss_and_grads(
            run, state.params, state.collections, state.step, (images, labels, indices)
        )
    return apply(state, grads, collections, positions, event), loss


def apply(
    state: RunState,
    grads: Any,
    collections: Any,
    positions: Mapping[str, Positions],
    event: bool,
) -> RunState:
    """Ends a step; a mask update looks at a compressed state in full, and leaves it so."""
    if event and positions:
        grads = expand_leaves(grads, positions)
        state = expand(state, positions)
    return state.apply_gradients(grads=grads, event=event, collections=collections)


def kinds(run: Run) -> Iterable[bool]:
    """Whether a mask update follows, for each step that the run has to compile."""
    return (False, True) if run.method.timetable.events else (False,)


def loss_and_grads(
    run: Run,
    params: Any,
    collections: Any,
    step: jax.Array | int,
    data: Data,
    part: jax.Array | int = 0,
) -> Parts:
    """The mean loss of a batch, its gradient, and the collections that the forward pass leaves.

    Args:
      run: model, normalisation, augmentation and seed.
      params: of the model.
      collections: of the model, beside the params.
      step: completed steps; with the seed it fixes augmentation and dropout.
      data: what to take, and where from.
      part: number of the micro-batch.
    """
    images, labels, indices = data
    batch, targets = images[indices], labels[indices]
    if run.phase is not None:
        start, stop, late = run.phase
        beta = beta_of(jnp.asarray(step) + 1, start_step=start, stop_step=stop, late=late)
        collections = with_beta(collections, beta)
    if run.augment is not None:
        batch = run.augment(
            jax.random.fold_in(run.key(AUGMENTATION), part), jnp.asarray(step), batch
        )
    batch = run.normalise(batch)
    dropout = jax.random.fold_in(run.key(DROPOUT), step)
    rngs = {"dropout": jax.random.fold_in(dropout, part)}  # for networks that have some

    def mean_loss(params: Any) -> tuple[jax.Array, Any]:
        logits, updated = run.model.apply(
            {"params": params, **collections},
            batch,
            train=True,
            mutable=list(collections),
            rngs=rngs,
        )
        losses = optax.softmax_cross_entropy_with_integer_labels(jnp.asarray(logits), targets)
        return losses.mean(), updated

    (loss, updated), grads = jax.value_and_grad(mean_loss, has_aux=True)(params)
    return loss, grads, updated


def accumulating_steps(
    run: Run,
    state: RunState,
    data: tuple[jax.Array, jax.Array],
    events: Iterable[bool],
    *positions: Mapping[str, Positions],
) -> dict[bool, Step]:
    """Compiles steps that average loss and gradients over micro-batches, then update once.

    This is how to train with less memory than a batch needs: to the masks it is one step, with the
    gradient of the whole batch. Under `optax.MultiSteps` every micro-batch is a step to whatever
    counts them, a mask update has to fall on the last one and sees its gradient alone, and RigL's
    skipped step leaves out only that one. The loop over micro-batches is Python's: on CPU a
    convolution in a `lax.scan` is several times slower, and where the loop is unrolled inside one
    program, XLA keeps the activations of all parts alive at the same time.

    Norms take the statistics of a micro-batch, one after the other.

    Returns:
      As `compile_steps`.
    """
    num_parts, seed = run.accumulate, jnp.uint32(run.seed)

    def nothing(state: RunState) -> Parts:
        zeros = jax.tree.map(jnp.zeros_like, state.params)
        return jnp.zeros(()), zeros, jax.tree.map(jnp.copy, state.collections)

    def add(
        seed: jax.Array,
        total: Parts,
        params: Any,
        step: jax.Array,
        data: Data,
        part: jax.Array,
        *positions: Mapping[str, Positions],
    ) -> Parts:
        images, labels, indices = data
        chosen = (images, labels, jnp.reshape(indices, (num_parts, -1))[part])
        with sparse_execution(positions[0] if positions else {}):
            here = run._replace(seed=seed)
            *more, collections = loss_and_grads(here, params, total[2], step, chosen, part)
        mean = jax.tree.map(lambda so_far, x: so_far + x / num_parts, list(total[:2]), more)
        return *mean, collections

    all_data = (*data, jnp.zeros(run.batch_size, jnp.int32))
    total = jax.eval_shape(nothing, state)
    compiled_nothing = jax.jit(nothing).lower(state).compile()
    compiled_add = (
        jax.jit(add, donate_argnames="total")
        .lower(seed, total, state.params, state.step, all_data, np.int32(0), *positions)
        .compile()
    )

    def step_of(event: bool) -> Step:
        donated = () if event and positions else ("state",)
        jitted_apply = jax.jit(apply, static_argnames="event", donate_argnames=donated)
        where = positions[0] if positions else {}
        compiled_apply = jitted_apply.lower(state, *total[1:], where, event=event).compile()

        def step(
            state: RunState,
            images: jax.Array,
            labels: jax.Array,
            indices: jax.Array | np.ndarray,
            *positions: Mapping[str, Positions],
        ) -> tuple[RunState, jax.Array]:
            total = compiled_nothing(state)
            for part in range(num_parts):
                data = (images, labels, indices)
                part = np.int32(part)
                total = compiled_add(seed, total, state.params, state.step, data, part, *positions)
            loss, grads, collections = total
            where = positions[0] if positions else {}
            return compiled_apply(state, grads, collections, where), loss

        return step

    return {event: step_of(event) for event in events}
