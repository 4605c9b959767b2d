"""How far a run has come: all that the next process needs to go on, in memory and on disk."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.training import surgery
from experiments.training.run import Run, RunState
from jaxsparse.checkpoint import Restored, restore_checkpoint, save_checkpoint


class Best(NamedTuple):
    """The evaluation with the highest validation accuracy at the final sparsity.

    Without validation images it is the last one.

    Attributes:
      val_accuracy: in [0, 1]; -1 before the first evaluation, and without validation images.
      step: of the evaluation.
      variables: of the model at that step; before the first evaluation, those of an earlier model.
    """

    val_accuracy: float
    step: int
    variables: Any


class Progress(NamedTuple):
    """How far a run has come. The position in the data follows from the step.

    Attributes:
      step: completed optimizer steps.
      run: as it is after them, with the model that surgeries have made. A checkpoint does not hold
        it: who goes on has the run as it began.
      state: after them.
      best: the best model so far.
      seconds: of training so far, over all processes, without evaluating, saving, and compiling
        before the first step. Steps that a crash has lost are not in it.
      capacity: of the leaves that are executed by their active weights; None before the first step.
    """

    step: int
    run: Run
    state: RunState
    best: Best
    seconds: float
    capacity: dict[str, int] | None = None


def start(run: Run, state: RunState) -> Progress:
    """Returns the progress of a run that starts with this state, at the state's step."""
    return Progress(int(state.step), run, state, Best(-1.0, 0, copy(state.variables)), 0.0)


def save(folder: Path, progress: Progress, *, keep: int = 2) -> None:
    """Saves the progress as a checkpoint; raises what `save_checkpoint` does."""
    best = progress.best
    extras = {
        "val_accuracy": best.val_accuracy,
        "best_step": best.step,
        "seconds": progress.seconds,
        "capacity": progress.capacity,
    }
    arrays = {"state": progress.state, "best": best.variables}
    save_checkpoint(folder, progress.step, arrays, keep=keep, extras=extras)


def resume(folder: Path, run: Run, state: RunState) -> Progress:
    """Returns the progress of the newest checkpoint that can be read, and says so in a line.

    Args:
      folder: the run's checkpoints; it may be missing.
      run: as it began.
      state: the one that the run began with. Without a checkpoint, the run starts with it.

    Raises:
      ValueError: as `restore_checkpoint`.
    """
    runs = {}

    def arrays(step: int) -> dict[str, Any]:
        runs[step], like = surgery.after(run, state, step)
        return {"state": like, "best": like.variables}

    restored = restore(folder, arrays)
    if restored is None:
        return start(run, state)
    step, extras = restored.step, restored.extras
    best = Best(extras["val_accuracy"], extras["best_step"], restored.state["best"])
    capacity = extras.get("capacity", extras.get("rooms"))  # the name in folders of early versions
    return Progress(step, runs[step], restored.state["state"], best, extras["seconds"], capacity)


def restore(folder: Path, arrays: Any) -> Restored | None:
    """Returns what `restore_checkpoint` does, and says in a line where the run goes on."""
    restored = restore_checkpoint(folder, arrays)
    if restored is not None and jax.process_index() == 0:
        if restored.note:
            print(restored.note)
        print(f"continuing at step {restored.step}", flush=True)
    return restored


def copy(tree: Any) -> Any:
    """Returns a copy of the arrays, since the next step donates the originals."""
    return jax.tree.map(jnp.copy, tree)
