"""How far a run has come: all that the next process needs to go on, in memory and on disk."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.training.run import RunState
from jaxsparse.checkpoint import Restored, restore_checkpoint, save_checkpoint


class Best(NamedTuple):
    """The evaluation with the highest validation accuracy at the final sparsity.

    Without validation images it is the last.

    Attributes:
      val_accuracy: in [0, 1]; -1 before there is one, and without validation images.
      step: of the evaluation.
      variables: of the model then; the initial ones before there is one.
    """

    val_accuracy: float
    step: int
    variables: Any


class Progress(NamedTuple):
    """What a checkpoint holds. The position in the data follows from the step.

    Attributes:
      step: completed optimizer steps.
      state: the state after them.
      best: the best model so far.
      seconds: of training so far, over all processes, without evaluating, saving, and compiling
        before the first step. Steps that a crash has lost are not in it.
      capacity: of the leaves that are executed by their active weights; None before the first step.
    """

    step: int
    state: RunState
    best: Best
    seconds: float
    capacity: dict[str, int] | None = None


def start(state: RunState) -> Progress:
    """The progress of a fresh state."""
    return Progress(0, state, Best(-1.0, 0, copy(state.variables)), 0.0)


def save(folder: Path, progress: Progress, *, keep: int = 2) -> None:
    """Saves the progress as a checkpoint; raises what `save_checkpoint` does."""
    step, state, best, seconds, capacity = progress
    extras = {
        "val_accuracy": best.val_accuracy,
        "best_step": best.step,
        "seconds": seconds,
        "capacity": capacity,
    }
    arrays = {"state": state, "best": best.variables}
    save_checkpoint(folder, step, arrays, keep=keep, extras=extras)


def resume(folder: Path, state_at: Callable[[int], RunState]) -> Progress:
    """Returns the progress of the newest checkpoint that can be read, and says so in a line.

    Args:
      folder: the run's checkpoints; it may be missing.
      state_at: from a number of completed steps to a state like the run's is then; at 0 a fresh
        one, which it starts with where there is no checkpoint.

    Raises:
      ValueError: as `restore_checkpoint`.
    """

    def arrays(step: int) -> dict[str, Any]:
        state = state_at(step)
        return {"state": state, "best": state.variables}

    restored = restore(folder, arrays)
    if restored is None:
        return start(state_at(0))
    extras = restored.extras
    best = Best(extras["val_accuracy"], extras["best_step"], restored.state["best"])
    state = restored.state["state"]
    capacity = extras.get("capacity", extras.get("rooms"))  # the name in folders of early versions
    return Progress(restored.step, state, best, extras["seconds"], capacity)


def restore(folder: Path, arrays: Any) -> Restored | None:
    """Returns what `restore_checkpoint` does, and says in a line where the run goes on."""
    restored = restore_checkpoint(folder, arrays)
    if restored is not None:
        if restored.note:
            print(restored.note)
        print(f"continuing at step {restored.step}", flush=True)
    return restored


def copy(variables: Any) -> Any:
    """A copy of the arrays: the next step donates the originals."""
    return jax.tree.map(jnp.copy, variables)
