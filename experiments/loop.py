"""The training loop that all experiments share: one run, from data and method to its folder.

Data lives on the device as uint8; a step takes indices and does the rest inside the compiled
function. The loop itself is plain Python over two compiled steps, one with a mask update and one
without, because on CPU a convolution inside a `lax.scan` or `lax.cond` is several times slower.
"""

import functools
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from tqdm import tqdm

from experiments.report import (
    density_of,
    draw,
    emptied,
    evaluate,
    event_scalars,
    finite,
    layer_counts,
    summarise,
)
from experiments.run import Run
from experiments.run_folder import RunFolder
from jaxsparse import TrainState
from jaxsparse.timetable import check_steps


def train(run: Run, out: Path, config: dict[str, Any], *, title: str) -> dict[str, Any]:
    """Trains, evaluates, and leaves a folder with metrics, summary and plot.

    The model is selected by validation only: "last" is what the run ends with, "best" has the
    highest validation accuracy among the evaluations at the final sparsity (before it, a denser
    network would win). Test images are looked at once, after training.

    Args:
      run: what to train.
      out: the run's folder.
      config: written to `config.json`; its fields model, schedule and seed go to the summary.
      title: of the plot.

    Returns:
      The summary, as in `summary.json`.

    Raises:
      ValueError: the folder holds a finished run, or there are fewer images than a batch.
    """
    num_images = len(run.dataset.train.labels)
    if not 1 <= run.batch_size <= num_images:
        raise ValueError(f"batch_size {run.batch_size} must be in [1, {num_images}]")
    check_steps(eval_every=run.eval_every, log_every=run.log_every)
    # What cannot work is refused before anything is written.
    run.method.plan(jax.eval_shape(functools.partial(initial_params, run)))
    settled_step = max(
        (event.step for event in run.method.timetable.events if event.density is not None),
        default=0,
    )
    images, labels = jnp.asarray(run.dataset.train.images), jnp.asarray(run.dataset.train.labels)
    indices = batches(jax.random.key(run.seed), len(labels), run.batch_size)
    best: dict[str, Any] = {"val_accuracy": -1.0}

    with RunFolder.create(out, config) as folder, progress_bar(run.steps, title) as progress:
        state = create_state(run)
        steps = compile_steps(run, state, images, labels)
        started, paused = time.perf_counter(), 0.0
        folder.log(0, density=density_of(state), layer_num_active=layer_counts(state))
        for step in range(1, run.steps + 1):
            event = run.method.is_due(step)
            state, loss = steps[event](state, images, labels, next(indices))
            progress.update()
            record = event_scalars(state) if event else {}
            for warning in emptied(state) if event else []:
                progress.write(warning, file=sys.stderr)
            if step % run.log_every == 0:
                record["train_loss"] = finite(float(loss), step)
            if step % run.eval_every == 0 or step == run.steps:
                jax.block_until_ready(state.params)
                pause = time.perf_counter()
                accuracy = evaluate(run, state.params, run.dataset.val)
                record |= {"val_accuracy": accuracy, "density": density_of(state)}
                progress.set_postfix(val=f"{accuracy:.4f}", density=f"{record['density']:.4f}")
                if step >= settled_step and accuracy > best["val_accuracy"]:
                    # A copy: the next step donates these buffers.
                    params = jax.tree.map(jnp.copy, state.params)
                    best = {"val_accuracy": accuracy, "step": step, "params": params}
                paused += time.perf_counter() - pause
            if record:
                folder.log(step, **record)
        seconds = time.perf_counter() - started - paused

        summary = summarise(run, state, best, config, folder.read_metrics())
        summary["steps_per_second"] = run.steps / seconds
        draw(folder, state, title)
        folder.finish(summary)
    return summary


def progress_bar(steps: int, title: str) -> tqdm:
    """A bar for a terminal; in a log file a line every ten seconds."""
    interval = 0.1 if sys.stderr.isatty() else 10.0
    return tqdm(total=steps, unit="step", desc=title, dynamic_ncols=True, mininterval=interval)


def create_state(run: Run) -> TrainState:
    """Initial weights and masks."""
    return TrainState.create(
        apply_fn=run.model.apply,
        params=jax.jit(functools.partial(initial_params, run))(),
        tx=run.tx,
        method=run.method,
        key=jax.random.fold_in(jax.random.key(run.seed), 1),
        track_exploration=True,
    )


def initial_params(run: Run) -> Any:
    """Initial weights: the same seed gives every method the same ones."""
    image = run.normalise(jnp.asarray(run.dataset.train.images[:1]))
    return run.model.init(jax.random.fold_in(jax.random.key(run.seed), 0), image)["params"]


def compile_steps(
    run: Run, state: TrainState, images: jax.Array, labels: jax.Array
) -> dict[bool, Callable[..., tuple[TrainState, jax.Array]]]:
    """Compiles the training step, without and with a mask update, before the clock starts."""

    @functools.partial(jax.jit, static_argnames="event", donate_argnames="state")
    def train_step(
        state: TrainState, images: jax.Array, labels: jax.Array, indices: jax.Array, event: bool
    ) -> tuple[TrainState, jax.Array]:
        batch, targets = run.normalise(images[indices]), labels[indices]

        def mean_loss(params: Any) -> jax.Array:
            logits = state.apply_fn({"params": params}, batch)
            return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()

        loss, grads = jax.value_and_grad(mean_loss)(state.params)
        return state.apply_gradients(grads=grads, event=event), loss

    indices = jnp.zeros(run.batch_size, jnp.int32)
    kinds = (False, True) if run.method.timetable.events else (False,)
    return {
        event: train_step.lower(state, images, labels, indices, event=event).compile()
        for event in kinds
    }


def batches(key: jax.Array, num_images: int, batch_size: int) -> Iterator[jax.Array]:
    """Yields int32[batch_size] indices forever: a fresh permutation every epoch, the tail left out.

    The order follows from the key and the number of the epoch alone.
    """
    per_epoch = num_images // batch_size
    epoch = 0
    while True:
        order = jax.random.permutation(jax.random.fold_in(key, 2 + epoch), num_images)
        yield from order[: per_epoch * batch_size].reshape(per_epoch, batch_size)
        epoch += 1
