"""The training loop that all experiments share: one run, from data and method to its folder.

Data lives on the device as uint8; a step takes indices and does the rest inside the compiled
function. The loop itself is plain Python over two compiled steps, one with a mask update and one
without, because on CPU a convolution inside a `lax.scan` or `lax.cond` is several times slower.
"""

import functools
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from experiments import progress
from experiments.progress import Best, Progress
from experiments.report import (
    check_structure,
    density_of,
    draw,
    emptied,
    evaluate,
    event_scalars,
    layer_counts,
    summarise,
)
from experiments.run import FIRST_EPOCH, MASKS, WEIGHTS, Run, RunState
from experiments.run_folder import RunFolder, check_folder, naming
from experiments.steps import compile_steps
from jaxsparse.timetable import check_steps


def train(run: Run, out: Path, config: dict[str, Any], *, title: str) -> dict[str, Any]:
    """Trains, evaluates, and leaves a folder with metrics, summary, plot and the trained state.

    Called again for a run that was cut off, it goes on from the newest checkpoint, and what comes
    out is that of the uninterrupted run to the bit (on the same devices; but for the timing). The
    order makes it so: at a step's checkpoint its mask update is done and its record written, and
    records after the checkpoint are removed before the steps are taken again.

    The model is selected by validation only: "last" is what the run ends with, "best" has the
    highest validation accuracy among the evaluations at the final sparsity (before it, a denser
    network would win); without validation images it is the last. Test images are looked at once,
    after training.

    Args:
      run: what to train.
      out: the run's folder.
      config: written to `config.json`; its fields model, schedule and seed go to the summary.
      title: of the plot.

    Returns:
      The summary, as in `summary.json`.

    Raises:
      ValueError: the folder holds a finished run or one of another configuration, its checkpoints
        or metrics do not fit, there are fewer images than a batch, or the training diverged.
      OSError: the folder cannot be written. The run can go on when it can.
    """
    check(run)
    check_folder(out, config)
    images, labels = jnp.asarray(run.dataset.train.images), jnp.asarray(run.dataset.train.labels)
    first, state, best, seconds = progress.resume(out / "checkpoints", create_state(run))
    indices = batches(jax.random.key(run.seed), len(labels), run.batch_size, start=first)

    with (
        naming(out),
        RunFolder.create(out, config, after=first or None) as folder,
        progress_bar(run.steps, title, first) as bar,
    ):
        steps = compile_steps(run, state, images, labels)
        started = time.perf_counter() - seconds  # moves on by all that is not training
        if first == 0:
            folder.log(0, density=density_of(state), layer_num_active=layer_counts(state))
        for step in range(first + 1, run.steps + 1):
            event = run.method.is_due(step)
            state, loss = steps[event](state, images, labels, next(indices))
            bar.update()
            record = event_record(state, bar) if event else {}
            evaluates = step % run.eval_every == 0 or step == run.steps
            if step % run.log_every == 0 or evaluates or checkpoint_is_due(run, step):
                record |= loss_record(run, step, float(loss))
            if evaluates:
                jax.block_until_ready(state.params)
                pause = time.perf_counter()
                found, best = validate(run, state, step, best)
                bar.set_postfix({name: f"{value:.4f}" for name, value in found.items()})
                record |= found
                started += time.perf_counter() - pause
            if record:
                folder.log(step, **record)
            if checkpoint_is_due(run, step):
                jax.block_until_ready(state.params)
                pause = time.perf_counter()
                keep = 1 if step == run.steps else 2
                reached = Progress(step, state, best, pause - started)
                progress.save(folder.path / "checkpoints", reached, keep=keep)
                started += time.perf_counter() - pause
        seconds = time.perf_counter() - started

        summary = summarise(run, state, best, config, folder.read_metrics()) | {
            "steps_per_second": run.steps / seconds
        }
        draw(folder, state, title)
        folder.finish(summary)
    return summary


def check(run: Run) -> None:
    """Refuses what cannot work before anything is written.

    Raises:
      ValueError: names the flag, its value and its range.
    """
    num_images = len(run.dataset.train.labels)
    if not 1 <= run.batch_size <= num_images:
        raise ValueError(f"batch_size {run.batch_size} must be in [1, {num_images}]")
    check_steps(eval_every=run.eval_every, log_every=run.log_every)
    if not 0 <= run.seed < 2**32:
        raise ValueError(f"seed {run.seed} must be in [0, {2**32})")
    if run.checkpoint_every < 0:
        raise ValueError(f"checkpoint_every {run.checkpoint_every} must be at least 0")
    if run.accumulate < 1 or run.batch_size % run.accumulate:
        raise ValueError(
            f"accumulate {run.accumulate} must be at least 1 and divide batch_size {run.batch_size}"
        )
    run.method.plan(jax.eval_shape(functools.partial(initial_variables, run))["params"])


def validate(run: Run, state: RunState, step: int, best: Best) -> tuple[dict[str, float], Best]:
    """Returns what is recorded of an evaluation after this step, and the best model so far."""
    accuracy = evaluate(run, state.variables, run.dataset.val)
    record = {"density": density_of(state)}
    if accuracy is None:
        better = step == run.steps
    else:
        record = {"val_accuracy": accuracy} | record
        better = step >= settled_step(run) and accuracy > best.val_accuracy
    if better:
        best = Best(-1.0 if accuracy is None else accuracy, step, progress.copy(state.variables))
    return record, best


def settled_step(run: Run) -> int:
    """The step of the last event that changes the sparsity; 0 if none does."""
    events = run.method.timetable.events
    return max((event.step for event in events if event.density is not None), default=0)


def checkpoint_is_due(run: Run, step: int) -> bool:
    """Whether a checkpoint follows this step; one always follows the last."""
    return step == run.steps or bool(run.checkpoint_every) and step % run.checkpoint_every == 0


def loss_record(run: Run, step: int, loss: float) -> dict[str, float]:
    """Returns the loss where it is recorded.

    Raises:
      ValueError: it is not finite. No checkpoint shall follow, which could only diverge again.
    """
    if not math.isfinite(loss):
        raise ValueError(
            f"the training loss at step {step} is {loss}; lower --learning_rate and pass another "
            f"--out"
        )
    return {"train_loss": loss} if step % run.log_every == 0 else {}


def progress_bar(steps: int, title: str, first: int) -> tqdm:
    """A bar for a terminal; in a log file a line every ten seconds."""
    return tqdm(
        total=steps,
        initial=first,
        unit="step",
        desc=title,
        dynamic_ncols=True,
        mininterval=0.1 if sys.stderr.isatty() else 10.0,
    )


def event_record(state: RunState, bar: tqdm) -> dict[str, Any]:
    """Returns what is recorded of the last event; a layer that it emptied is a line of warning."""
    check_structure(state)
    for warning in emptied(state):
        bar.write(warning, file=sys.stderr)
    return event_scalars(state)


def create_state(run: Run) -> RunState:
    """Initial weights and masks."""
    variables = jax.jit(functools.partial(initial_variables, run))()
    return RunState.create(
        apply_fn=run.model.apply,
        params=variables.pop("params"),
        collections=variables,
        tx=run.tx,
        method=run.method,
        key=run.key(MASKS),
        track_exploration=True,
    )


def initial_variables(run: Run) -> dict[str, Any]:
    """Initial weights, and other variables: the same seed gives every method the same ones."""
    image = run.normalise(jnp.asarray(run.dataset.train.images[:1]))
    return dict(run.model.init(run.key(WEIGHTS), image))


def batches(
    key: jax.Array, num_images: int, batch_size: int, start: int = 0
) -> Iterator[np.ndarray]:
    """Yields int32[batch_size] indices forever: a fresh permutation every epoch, the tail left out.

    The order follows from the key and the number of the epoch alone.

    Args:
      key: of all epochs.
      num_images: to draw from, at least batch_size.
      batch_size: indices of one step.
      start: completed steps; what is yielded first belongs to the step after them.
    """
    per_epoch = num_images // batch_size
    epoch, done = divmod(start, per_epoch)
    while True:
        order = jax.random.permutation(jax.random.fold_in(key, FIRST_EPOCH + epoch), num_images)
        order = np.asarray(order)  # an array of the device is slow to walk through
        yield from order[: per_epoch * batch_size].reshape(per_epoch, batch_size)[done:]
        epoch, done = epoch + 1, 0
