"""When a step of a run is looked at, and which metrics are then written to its folder."""

import math
import sys
from typing import Any

import jax
from tqdm import tqdm

from experiments.records import alarms, progress
from experiments.records.gradient_flow import gradient_flow
from experiments.records.progress import Best
from experiments.records.report import (
    check_structure,
    density_of,
    emptied,
    evaluate,
    event_scalars,
    layer_counts,
)
from experiments.records.run_folder import RunFolder
from experiments.training import between, surgery
from experiments.training.run import Run, RunState
from jaxsparse.masks import all_finite


def log_start(run: Run, folder: RunFolder, state: RunState, bar: tqdm) -> None:
    """Records the densities that the run starts with, and its live weights."""
    values = {"density": density_of(state), "layer_num_active": layer_counts(state)}
    folder.log(int(state.step), **values, **alarms.record(run, folder, state, bar))


def record(
    run: Run,
    folder: RunFolder,
    step: int,
    state: RunState,
    loss: jax.Array,
    best: Best,
    bar: tqdm,
) -> Best:
    """Logs the values of a step that is looked at; returns the best model so far.

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


def validate(run: Run, state: RunState, step: int, best: Best) -> tuple[dict[str, float], Best]:
    """Evaluates after a step; returns the record of it, and the best model so far."""
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


def event_record(run: Run, folder: RunFolder, state: RunState, bar: tqdm) -> dict[str, Any]:
    """Returns the record of the last event, and warns of each layer that it emptied."""
    check_structure(state)
    for warning in emptied(state):
        bar.write(warning, file=sys.stderr)
    return event_scalars(state) | alarms.record(run, folder, state, bar)


def loss_record(run: Run, step: int, loss: float) -> dict[str, float]:
    """Returns the loss where it is recorded.

    Raises:
      ValueError: it is not finite. A checkpoint of this step could only diverge again.
    """
    if not math.isfinite(loss):
        raise ValueError(
            f"the training loss at step {step} is {loss}; lower --learning_rate and pass another "
            f"--out"
        )
    return {"train_loss": loss} if step % run.log_every == 0 else {}


def check_weights(step: int, params: Any) -> None:
    """Refuses weights that the last update has broken, before a checkpoint of them replaces others.

    The loss of a step is that of the weights before its update, and so may still be finite.

    Raises:
      ValueError: an entry is NaN or infinite.
    """
    if not bool(_all_finite(params)):
        raise ValueError(
            f"weights are not finite after step {step}, which is not saved; lower --learning_rate "
            f"and pass another --out"
        )


_all_finite = jax.jit(all_finite)


def is_looked_at(run: Run, step: int) -> bool:
    """Whether anything is recorded, saved or changed after this step, beside the weights."""
    logs = step % run.log_every == 0 or checkpoint_is_due(run, step)
    changes = run.method.is_due(step) or surgery.is_due(run, step) or between.is_due(run, step)
    return logs or is_validated(run, step) or changes


def is_validated(run: Run, step: int) -> bool:
    """Whether an evaluation follows this step; one always follows the last."""
    return step % run.eval_every == 0 or step == run.steps


def checkpoint_is_due(run: Run, step: int) -> bool:
    """Whether a checkpoint follows this step; one always follows the last."""
    return step == run.steps or bool(run.checkpoint_every) and step % run.checkpoint_every == 0


def settled_step(run: Run) -> int:
    """Returns the last step at which sparsity or network change; 0 if they never do."""
    changes = [event.step for event in run.method.timetable.events if event.density is not None]
    return max([0, *changes, *(each.step for each in surgery.surgeries(run))])
