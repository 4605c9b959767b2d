"""The compiled training steps: a batch at once, or in micro-batches to save memory."""

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.training.batches import Batch
from experiments.training.run import AUGMENTATION, DROPOUT, Run, RunState
from jaxsparse.nn import beta_of, sparse_execution, with_beta
from jaxsparse.sparse import Positions, expand, expand_leaves

Step: TypeAlias = Callable[..., tuple[RunState, jax.Array]]

Parts: TypeAlias = tuple[jax.Array, Any, Any]
"""The mean loss of a batch, its gradient, and the model's collections after it."""


def compile_steps(
    run: Run,
    state: RunState,
    batch: Batch,
    events: Iterable[bool],
    *positions: Mapping[str, Positions],
    shardings: Any = None,
) -> dict[bool, Step]:
    """Compiles training steps, before the clock starts.

    The seed is an argument of the compiled function, not a constant: runs that differ in their seed
    alone are then one program to JAX's compilation cache.

    Args:
      run: what to train.
      state: the steps take states of its structure.
      batch: the steps take batches of its kind, shapes and shardings.
      events: for each step to compile, whether a mask update follows.
      *positions: of the active weights, if the state is compressed; the steps take them too. A step
        with a mask update then returns the state in full.
      shardings: of the state, a tree like it; None leaves them to XLA.

    Returns:
      By whether there is a mask update: (state, batch, *positions) to the next state and the mean
      loss of the batch. The state is donated, except a compressed one that comes out in full.
    """
    if run.accumulate > 1:
        return accumulating_steps(run, state, batch, events, *positions, shardings=shardings)

    seed = jnp.uint32(run.seed)

    def compiled(event: bool) -> Step:
        def step(seed: jax.Array, *args: Any) -> tuple[RunState, jax.Array]:
            return train_step(run._replace(seed=seed), event, *args)

        # A compressed state has no buffer that one in full could reuse.
        donated = () if event and positions else 1
        jitted = jax.jit(step, donate_argnums=donated, out_shardings=(shardings, None))
        program = jitted.lower(seed, state, batch, *positions).compile()
        return functools.partial(program, seed)

    return {event: compiled(event) for event in events}


def train_step(
    run: Run,
    event: bool,
    state: RunState,
    batch: Batch,
    positions: Mapping[str, Positions] | None = None,
) -> tuple[RunState, jax.Array]:
    """One step, not yet compiled; returns the next state and the mean loss of the batch."""
    positions = positions or {}
    with sparse_execution(positions):
        loss, grads, collections = gradient_of(run)(
            run, state.params, state.collections, state.step, batch
        )
    return apply(state, grads, collections, positions, event), loss


def apply(
    state: RunState,
    grads: Any,
    collections: Any,
    positions: Mapping[str, Positions],
    event: bool,
) -> RunState:
    """Ends a step. A mask update needs a compressed state in full, and returns it so."""
    if event and positions:
        grads = expand_leaves(grads, positions)
        state = expand(state, positions)
    return state.apply_gradients(grads=grads, event=event, collections=collections)


def kinds(run: Run) -> Iterable[bool]:
    """Returns, for each step that the run has to compile, whether a mask update follows."""
    return (False, True) if run.method.timetable.events else (False,)


def gradient_of(run: Run) -> Callable[..., Parts]:
    """Returns `loss_and_grads`, as the run distributes it."""
    return loss_and_grads if run.distribute is None else run.distribute(loss_and_grads)


def loss_and_grads(
    run: Run,
    params: Any,
    collections: Any,
    step: jax.Array | int,
    batch: Batch,
    part: jax.Array | int = 0,
) -> Parts:
    """Returns the mean loss of a batch, its gradient, and the collections after the forward pass.

    Args:
      run: model, normalisation, augmentation and seed.
      params: of the model.
      collections: the model's other variables.
      step: completed steps; together with the seed it determines augmentation and dropout.
      batch: what to train on.
      part: number of the micro-batch.
    """
    images, targets = batch.take()
    if run.phase is not None:
        start, stop, late = run.phase
        beta = beta_of(jnp.asarray(step) + 1, start_step=start, stop_step=stop, late=late)
        collections = with_beta(collections, beta)
    if run.augment is not None:
        images = run.augment(
            jax.random.fold_in(run.key(AUGMENTATION), part), jnp.asarray(step), images
        )
    images = run.normalise(images)
    dropout = jax.random.fold_in(run.key(DROPOUT), step)
    rngs = {"dropout": jax.random.fold_in(dropout, part)}  # a network without dropout ignores it

    def mean_loss(params: Any) -> tuple[jax.Array, Any]:
        logits, updated = run.model.apply(
            {"params": params, **collections},
            images,
            train=True,
            mutable=list(collections),
            rngs=rngs,
        )
        return cross_entropy(jnp.asarray(logits), targets, run.label_smoothing).mean(), updated

    (loss, updated), grads = jax.value_and_grad(mean_loss, has_aux=True)(params)
    return loss, grads, updated


def cross_entropy(logits: jax.Array, labels: jax.Array, smoothing: float) -> jax.Array:
    """Returns the loss of each example, of labels of which a share is spread over all classes."""
    if not smoothing:
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1]), smoothing)
    return optax.softmax_cross_entropy(logits, targets)


def accumulating_steps(
    run: Run,
    state: RunState,
    batch: Batch,
    events: Iterable[bool],
    *positions: Mapping[str, Positions],
    shardings: Any = None,
) -> dict[bool, Step]:
    """Compiles steps that average loss and gradients over micro-batches, then update once.

    This saves the memory of a large batch: to the masks it is one step, with the gradient of the
    whole batch. `optax.MultiSteps` would make every micro-batch a step for whatever counts steps: a
    mask update would have to fall on the last one and would see its gradient alone, and RigL's
    skipped step would leave out only that one.

    The loop over micro-batches is Python's. On CPU a convolution inside a `lax.scan` is several
    times slower; and if the loop is unrolled inside one program, XLA keeps the activations of all
    parts alive at the same time.

    Batch norms update their running statistics with one micro-batch after the other.

    Arguments and result are those of `compile_steps`.
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
        batch: Batch,
        part: jax.Array,
        *positions: Mapping[str, Positions],
    ) -> Parts:
        chosen = batch.part(part, num_parts)
        with sparse_execution(positions[0] if positions else {}):
            here = run._replace(seed=seed)
            *more, collections = gradient_of(run)(here, params, total[2], step, chosen, part)
        mean = jax.tree.map(lambda so_far, x: so_far + x / num_parts, list(total[:2]), more)
        return *mean, collections

    sums = None if shardings is None else (None, shardings.params, shardings.collections)
    compiled_nothing = jax.jit(nothing, out_shardings=sums).lower(state).compile()
    total = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        jax.eval_shape(nothing, state),
        compiled_nothing.output_shardings,
    )
    compiled_add = (
        jax.jit(add, donate_argnames="total", out_shardings=sums)
        .lower(seed, total, state.params, state.step, batch, np.int32(0), *positions)
        .compile()
    )

    def step_of(event: bool) -> Step:
        donated = () if event and positions else ("state",)
        jitted_apply = jax.jit(
            apply, static_argnames="event", donate_argnames=donated, out_shardings=shardings
        )
        where = positions[0] if positions else {}
        compiled_apply = jitted_apply.lower(state, *total[1:], where, event=event).compile()

        def step(
            state: RunState, batch: Batch, *positions: Mapping[str, Positions]
        ) -> tuple[RunState, jax.Array]:
            total = compiled_nothing(state)
            for part in map(np.int32, range(num_parts)):
                total = compiled_add(seed, total, state.params, state.step, batch, part, *positions)
            loss, grads, collections = total
            where = positions[0] if positions else {}
            return compiled_apply(state, grads, collections, where), loss

        return step

    return {event: step_of(event) for event in events}
