"""Saving a state: completely or not at all, from all processes, in the background if asked."""

import atexit
import json
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from jaxsparse.checkpoint.errors import reason
from jaxsparse.checkpoint.files import remove_half_done, write
from jaxsparse.checkpoint.steps import StrPath, steps
from jaxsparse.checks import check_whole
from jaxsparse.flat_state import flatten
from jaxsparse.processes import decided, problem_anywhere
from jaxsparse.types import PyTree

T = TypeVar("T")

_unfinished: dict[Path, Callable[[], None]] = {}
"""The save that goes on in the background, by folder: a function that waits for its end."""


def save_checkpoint(
    path: StrPath,
    step: int,
    state: PyTree,
    *,
    keep: int = 2,
    extras: Mapping[str, Any] | None = None,
    wait: bool = True,
) -> None:
    """Saves a state as `path/step`, completely or not at all, and deletes the oldest beyond `keep`.

    With several processes all of them call it, with one folder that they share. Each writes the
    parts of arrays that its devices hold; nothing is gathered.

    Args:
      path: the folder of the run's checkpoints, created if missing.
      step: number of completed steps, at least 0 and above that of every checkpoint in the folder.
      state: any pytree of arrays, typed keys and numbers; at least one leaf has entries.
      keep: number of checkpoints to keep, this one included, at least 1. If it is 2, there is one
        to fall back on when the newest is damaged.
      extras: values of types that JSON has, for what is no array, such as a name or the best
        accuracy so far.
      wait: whether to return only when the checkpoint is complete. If False, the call returns when
        all arrays are on the host: the next step may donate the state while files are written. An
        error is then raised by the next call for this folder, or by `wait_for_checkpoint`, which a
        program should call before it ends: at the very end Python can only print the error.

    Raises:
      ValueError: the step is not above all others, JSON cannot hold the extras, a leaf of state is
        no array or number, or another program wrote checkpoints into the folder.
      OSError: the state could not be written, because the disk is full for example. Earlier
        checkpoints are as they were. All processes raise the error of the first one that has any;
        those that wait for a process that died give up after ten minutes.
    """
    folder = Path(path).absolute()
    wait_for_checkpoint(folder)
    step, keep = check_whole("step", step, 0), check_whole("keep", keep, 1)
    newest = decided(lambda: max(steps(folder), default=-1))
    if newest >= step:
        raise ValueError(f"step {step} must be above {newest}, the newest checkpoint in {folder}")
    arrays, records = flatten(state)
    contents = {"records": records, "extras": dict(extras or {})}
    try:
        json.dumps(contents)
    except (TypeError, ValueError) as error:  # a type that JSON lacks, or a cycle
        raise ValueError(f"extras {extras} must have types that JSON has: {error}") from None

    def start() -> Callable[[], None]:
        folder.mkdir(parents=True, exist_ok=True)
        return write(folder, step, arrays, contents, keep=keep, in_background=not wait)

    finish = _attempt(folder, step, start)
    _unfinished[folder] = lambda: _attempt(folder, step, finish)
    if wait:
        wait_for_checkpoint(folder)


def wait_for_checkpoint(path: StrPath) -> None:
    """Waits until a save that goes on in the background is complete; returns at once if none does.

    With several processes all of them call it.

    Args:
      path: the folder of the run's checkpoints.

    Raises:
      OSError: the state could not be written; as `save_checkpoint`.
    """
    finish = _unfinished.pop(Path(path).absolute(), None)
    if finish is not None:
        finish()
        remove_half_done(Path(path).absolute())


def _attempt(folder: Path, step: int, act: Callable[[], T]) -> T:
    """Returns what a function returns; all processes raise if it fails on one."""
    result, problem = None, None
    try:
        result = act()
    except Exception as error:  # OSError from Python, ValueError from TensorStore
        problem = OSError(
            f"checkpoint {folder / str(step)} could not be saved: {reason(error)}; "
            f"earlier ones are as they were"
        )
        problem.__cause__ = error
    if (problem := problem_anywhere(problem)) is not None:
        remove_half_done(folder)
        raise problem
    return result  # pyright: ignore[reportReturnType] - there was no problem


def _wait_for_all() -> None:
    """Finishes all saves of a program that ends; Python prints an error that is raised here."""
    for folder in list(_unfinished):
        wait_for_checkpoint(folder)


# `atexit` is too late: by then Python has stopped the executors that write.
getattr(threading, "_register_atexit", atexit.register)(_wait_for_all)
