"""The training loop that all experiments share: one run, from data and method to its folder.

Data lives on the device as uint8; a step takes indices and does the rest inside the compiled
function. The loop itself is plain Python over two compiled steps, one with a mask update and one
without, because on CPU a convolution inside a `lax.scan` or `lax.cond` is several times slower.
"""

import contextlib
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

from experiments.options.schedules import plan_of
from experiments.records import alarms, progress
from experiments.records.cost import num_unshared
from experiments.records.gradient_flow import gradient_flow
from experiments.records.progress import Best, Progress
from experiments.records.report import (
    check_structure,
    density_of,
    draw,
    emptied,
    evaluate,
    event_scalars,
    layer_counts,
    sparsity_note,
    summarise,
)
from experiments.records.run_folder import RunFolder, check_folder, naming
from experiments.training import phase
from experiments.training.execution import check_execution, make_execution
from experiments.training.run import FIRST_EPOCH, MASKS, WEIGHTS, Run, RunState
from jaxsparse.nn import without_dyrelu
from jaxsparse.plan import Plan
from jaxsparse.timetable import check_steps


def train(run: Run, out: Path, config: dict[str, Any], *, title: str) -> dict[str, Any]:
    """Trains, evaluates, and leaves a folder with metrics, summary, plot and the trained state.

    Called again for a run that was cut off, it goes on from the newest checkpoint, and what comes
    out is that of the uninterrupted run to the bit (on the same devices; but for the timing). The
    order makes it so: at a step's checkpoint its mask update is done and its record written, and
    records after the checkpoint are removed before the steps are taken again.

    The model is selected by validation only: "last" is what the run ends with, "best" has the
    highest validation accuracy among the evaluations at the final sparsity and with ReLU alone
    (before it, a denser network would win); without validation images it is the last. Test images
    are looked at once, after training.

    Args:
      run: what to train.
      out: the run's folder.
      config: written to `config.json`; its fields model, schedule and seed go to the summary.
      title: of the plot.

    Returns:
      The summary, as in `summary.json`.

    Raises:
      ValueError: the folder holds a finished run or one of another configuration, its checkpoints
        or metrics do not fit, there are fewer images than a batch, masks that never change cut
        the network, or the training diverged.
      OSError: the folder cannot be written. The run can go on when it can.
    """
    plan = check(run)
    check_folder(out, config)
    image = run.normalise(jnp.asarray(run.dataset.train.images[:1]))
    if note := sparsity_note(plan, config, num_unshared(run.model, image)):
        print(note, file=sys.stderr, flush=True)
    images, labels = jnp.asarray(run.dataset.train.images), jnp.asarray(run.dataset.train.labels)
    begun = run
    # No name for the fresh state, which would keep it alive to the end of a run that goes on.
    first, state, best, seconds, capacity = progress.resume(
        out / "checkpoints", functools.partial(phase.state_after, run, create_state(run))
    )
    run = phase.run_after(run, first)
    if first == 0:
        alarms.check_start(run, state)
    indices = batches(jax.random.key(run.seed), len(labels), run.batch_size, start=first)

    with (
        naming(out),
        RunFolder.create(out, config, after=first or None) as folder,
        progress_bar(run.steps, title, first) as bar,
    ):
        execution = make_execution(run, state, (images, labels), capacity)
        clock = Stopwatch(seconds)
        if first == 0:
            log_start(run, folder, state, bar)
        live = execution.start(state, capacity)
        if note := execution.note(live):
            bar.write(note, file=sys.stderr)
        for step in range(first + 1, run.steps + 1):
            live, loss = execution.step(live, run.method.is_due(step), next(indices))
            if phase.ends(run, step):
                with clock.paused(live):
                    state = phase.state_after(run, execution.full(live), step)
                    best = best._replace(variables=without_dyrelu(best.variables))
                    run, capacity = phase.run_after(run, step), execution.capacity(live)
                    execution = make_execution(run, state, (images, labels), capacity)
                    live = execution.start(state, capacity)
            bar.update()
            if not is_looked_at(run, step):
                continue
            with clock.paused(live):
                state = execution.full(live)
                best = record(run, folder, step, state, loss, best, bar)
                if checkpoint_is_due(run, step):
                    keep = 1 if step == run.steps else 2
                    capacity = execution.capacity(live)
                    reached = Progress(step, state, best, clock.seconds, capacity)
                    progress.save(folder.path / "checkpoints", reached, keep=keep)
        return finish(begun, folder, state, best, config, title, clock.seconds)


class Stopwatch:
    """Counts the seconds of training.

    Attributes:
      seconds: so far, without the pauses.
    """

    def __init__(self, seconds: float):
        self.seconds = seconds
        self._since = time.perf_counter()

    @contextlib.contextmanager
    def paused(self, arrays: Any) -> Iterator[None]:
        """Stops once the arrays are there, until the end of the context."""
        jax.block_until_ready(arrays)
        self.seconds += time.perf_counter() - self._since
        yield
        self._since = time.perf_counter()


def check(run: Run) -> Plan:
    """Refuses what cannot work before anything is written; returns the plan of the rest.

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
    check_execution(run)
    phase.check_phase(run)
    return plan_of(run.method, jax.eval_shape(functools.partial(initial_variables, run))["params"])


def log_start(run: Run, folder: RunFolder, state: RunState, bar: tqdm) -> None:
    """Records what the run starts with."""
    values = {"density": density_of(state), "layer_num_active": layer_counts(state)}
    folder.log(0, **values, **alarms.record(run, folder, state, bar))


def is_looked_at(run: Run, step: int) -> bool:
    """Whether anything is recorded or saved after this step."""
    logs = step % run.log_every == 0 or checkpoint_is_due(run, step)
    return logs or is_validated(run, step) or run.method.is_due(step)


def record(
    run: Run,
    folder: RunFolder,
    step: int,
    state: RunState,
    loss: jax.Array,
    best: Best,
    bar: tqdm,
) -> Best:
    """Logs what there is to say of a step that is looked at; returns the best model so far.

    Raises:
      ValueError: the loss is not finite, or the masks lack their pattern.
    """
    values = event_record(run, folder, state, bar) if run.method.is_due(step) else {}
    values |= loss_record(run, step, float(loss))
    if is_validated(run, step):
        found, best = validate(run, state, step, best)
        bar.set_postfix({name: f"{value:.4f}" for name, value in found.items()})
        values |= found | (gradient_flow(run, state) if run.gradient_flow else {})
    if values:
        folder.log(step, **values)
    return best


def finish(
    run: Run,
    folder: RunFolder,
    state: RunState,
    best: Best,
    config: dict[str, Any],
    title: str,
    seconds: float,
) -> dict[str, Any]:
    """Looks at the test images, and writes plot and summary, of the run as it began."""
    summary = summarise(run, state, best, config, folder.read_metrics()) | {
        "steps_per_second": run.steps / seconds
    }
    draw(folder, state, title)
    folder.finish(summary)
    return summary


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
    """The step after which neither sparsity nor network change any more; 0 if they never do."""
    changes = [event.step for event in run.method.timetable.events if event.density is not None]
    return max([0, *changes, *([] if run.phase is None else [run.phase.stop])])


def is_validated(run: Run, step: int) -> bool:
    """Whether an evaluation follows this step; one always follows the last."""
    return step % run.eval_every == 0 or step == run.steps


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


def event_record(run: Run, folder: RunFolder, state: RunState, bar: tqdm) -> dict[str, Any]:
    """Returns what is recorded of the last event; a layer that it emptied is a line of warning."""
    check_structure(state)
    for warning in emptied(state):
        bar.write(warning, file=sys.stderr)
    return event_scalars(state) | alarms.record(run, folder, state, bar)


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
