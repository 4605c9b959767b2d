"""How far a run on a mesh has come, in memory and in checkpoints that all processes save."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax

from experiments.records import progress
from experiments.training import surgery
from experiments.training.run import Run, RunState
from jaxsparse.checkpoint import save_checkpoint, wait_for_checkpoint


class Reached(NamedTuple):
    """How far a run has come.

    Attributes:
      step: completed steps.
      run: with the model that surgeries have made.
      state: after them, on the mesh.
      seconds: of training so far, without evaluating, saving and compiling.
      best: the highest accuracy so far, in [0, 1], and its step.
    """

    step: int
    run: Run
    state: RunState
    seconds: float = 0.0
    best: tuple[float, int] = (0.0, 0)


def save(path: Path, reached: Reached, *, wait: bool) -> None:
    """Saves a checkpoint from all processes; without `wait`, while training goes on."""
    extras = {"seconds": reached.seconds, "best": list(reached.best)}
    save_checkpoint(path, reached.step, {"state": reached.state}, extras=extras, wait=wait)


@contextlib.contextmanager
def saved(path: Path) -> Iterator[None]:
    """Waits for the last checkpoint at the end; after an error only if no other process has to."""
    try:
        yield
    except Exception:
        if jax.process_count() == 1:
            wait_for_checkpoint(path)
        raise
    wait_for_checkpoint(path)


def resume(path: Path, run: Run, state: RunState) -> Reached:
    """Returns how far the newest checkpoint that can be read has come, or the start."""
    runs = {}

    def like(step: int) -> dict[str, Any]:
        runs[step], changed = surgery.after(run, state, step)
        return {"state": changed}

    restored = progress.restore(path, like)
    if restored is None:
        return Reached(0, run, state)
    extras, step = restored.extras, restored.step
    accuracy, at = extras["best"]
    return Reached(step, runs[step], restored.state["state"], extras["seconds"], (accuracy, at))
