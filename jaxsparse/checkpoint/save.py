"""Saving a state: completely or not at all."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxsparse.checkpoint.errors import reason
from jaxsparse.checkpoint.files import remove_half_done, write
from jaxsparse.checkpoint.steps import StrPath, steps
from jaxsparse.checks import check_whole
from jaxsparse.flat_state import flatten
from jaxsparse.types import PyTree


def save_checkpoint(
    path: StrPath,
    step: int,
    state: PyTree,
    *,
    keep: int = 2,
    extras: Mapping[str, Any] | None = None,
) -> None:
    """Saves a state as `path/step`, completely or not at all, and deletes the oldest beyond `keep`.

    Args:
      path: the folder of the run's checkpoints, created if missing.
      step: number of completed steps, at least 0 and above that of every checkpoint in the folder.
      state: any pytree of arrays, typed keys and numbers; at least one leaf has entries.
      keep: number of checkpoints to keep, this one included, at least 1. If it is 2, there is one
        to fall back on when the newest is damaged.
      extras: values of types that JSON has, for what is no array, such as a name or the best
        accuracy so far.

    Raises:
      ValueError: the step is not above all others, JSON cannot hold the extras, a leaf of state is
        no array or number, or another program wrote checkpoints into the folder.
      OSError: the state could not be written, because the disk is full for example. Earlier
        checkpoints are as they were.
    """
    folder = Path(path).absolute()
    step, keep = check_whole("step", step, 0), check_whole("keep", keep, 1)
    if (newest := max(steps(folder), default=-1)) >= step:
        raise ValueError(f"step {step} must be above {newest}, the newest checkpoint in {folder}")
    arrays, records = flatten(state)
    contents = {"records": records, "extras": dict(extras or {})}
    try:
        json.dumps(contents)
    except (TypeError, ValueError) as error:  # a type that JSON lacks, or a cycle
        raise ValueError(f"extras {extras} must have types that JSON has: {error}") from None
    try:
        write(folder, step, arrays, contents, keep=keep)
    except Exception as error:  # OSError from Python, ValueError from TensorStore
        raise OSError(
            f"checkpoint {folder / str(step)} could not be saved: {reason(error)}; "
            f"earlier ones are as they were"
        ) from error
    finally:
        remove_half_done(folder)
