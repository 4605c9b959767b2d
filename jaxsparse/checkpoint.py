"""Checkpoints with Orbax: a whole state to the bit, or one clear reason why not.

    restored = restore_checkpoint("checkpoints", state)  # so that the same command goes on
    start, state = (0, state) if restored is None else (restored.step, restored.state)
    for n in range(start + 1, total_steps + 1):
        state = train_step(state, batch_of(n), event=method.is_due(n))
        if n % 500 == 0:
            save_checkpoint("checkpoints", n, state)

A state is any pytree of arrays and numbers: a `TrainState`, or a dict of params, masks, optimizer
state and key. Its leaves are kept by path ("masks/Dense_0/kernel") with dtype, shape and checksum,
so that masks can be read without the method, model or optimizer that made them, and damage does not
go unnoticed: Orbax itself does not see that a byte inside an array has changed.

Saving is synchronous, from one process with any number of devices. When `save_checkpoint` returns,
the checkpoint is whole, and the next step may donate the state; an error is the caller's own and
not a thread's. This module is not part of `import jaxsparse`, which Orbax would slow down.
"""

import contextlib
import json
import logging
import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from jaxsparse.flat_state import Record, check_fits, checksum, fill, flatten, nested, under
from jaxsparse.paths import check_like, leaf_paths, leaves_by_path
from jaxsparse.types import PyTree

StrPath: TypeAlias = str | os.PathLike[str]

_LOST = "Event loop is closed"


class Restored(NamedTuple):
    """What `restore_checkpoint` found.

    Attributes:
      step: of the checkpoint.
      state: the saved values, in the containers and on the devices of the state at hand.
      extras: what was saved beside it.
      note: one line for the user about newer checkpoints that could not be read, or None.
    """

    step: int
    state: PyTree
    extras: dict[str, Any]
    note: str | None


def save_checkpoint(
    path: StrPath,
    step: int,
    state: PyTree,
    *,
    keep: int = 2,
    extras: Mapping[str, Any] | None = None,
) -> None:
    """Saves a state as `path/step`, whole or not at all, then deletes the oldest beyond `keep`.

    Args:
      path: the folder of the run's checkpoints, created if missing.
      step: completed steps, above those of every checkpoint in the folder.
      state: any pytree of arrays, typed keys and numbers.
      keep: checkpoints to keep, this one included, at least 1. With 2 there is one to fall back on.
      extras: what JSON takes, for what is no array, such as a name or the best accuracy so far.

    Raises:
      ValueError: a step that is not the newest, extras that JSON does not take, or a leaf of state
        that is no array.
      OSError: it could not be written, to a full disk say; earlier checkpoints are as they were.
    """
    folder = Path(path).absolute()
    if keep < 1:
        raise ValueError(f"keep {keep} must be at least 1")
    if (newest := max(_steps(folder), default=-1)) >= step:
        raise ValueError(f"step {step} must be above {newest}, the newest checkpoint in {folder}")
    arrays, records = flatten(state)
    contents = {"records": records, "extras": dict(extras or {})}
    try:
        json.dumps(contents)
    except TypeError as error:
        raise ValueError(f"extras {extras} must be what JSON takes: {error}") from None
    items = ocp.args.Composite(
        arrays=ocp.args.PyTreeSave(arrays), contents=ocp.args.JsonSave(contents)
    )
    try:
        with _manager(folder, max_to_keep=keep) as manager:
            manager.save(step, args=items, force=True)
    except Exception as error:  # OSError from Python, ValueError from TensorStore
        raise OSError(
            f"checkpoint {folder / str(step)} could not be saved: {_reason(error)}; "
            f"earlier ones are as they were"
        ) from error
    finally:
        # What this save, or one that was killed, left half-done would only fill the disk.
        for half_done in folder.glob("*.orbax-checkpoint-tmp"):
            shutil.rmtree(half_done, ignore_errors=True)


def restore_checkpoint(path: StrPath, state: PyTree) -> Restored | None:
    """Restores the newest checkpoint that can be read, for a run to go on from.

    A damaged one is passed over for the one before it and renamed to `damaged-STEP`, so that the
    run can save that step again; `note` says so. Where none can be read, nothing is renamed.

    Args:
      path: the folder of the run's checkpoints.
      state: the state at hand, such as the fresh one of this run: its containers, shapes, dtypes
        and devices are taken, its values are not.

    Returns:
      The checkpoint, or None where the folder has none. Arrays come back to the bit and sharded
      like those of the state at hand, whatever devices saved them.

    Raises:
      ValueError: the checkpoint belongs to another state (names the first leaf that differs), or
        all of them are damaged. The folder is left as it is.
    """
    folder = Path(path).absolute()
    damage: dict[int, str] = {}
    for step in sorted(_steps(folder), reverse=True):
        name = f"checkpoint {folder / str(step)}"
        try:
            records, extras = _read_contents(folder, step)
        except Exception as error:  # whatever JSON, TensorStore and Orbax say of damaged files
            damage[step] = _reason(error)
            continue
        try:
            check_fits(records, state, name=name)
        except ValueError as error:
            raise ValueError(f"{error}; another model or optimizer saved it") from None
        try:
            values = _read_arrays(folder, step, records)
        except Exception as error:
            damage[step] = _reason(error)
            continue
        return Restored(step, fill(state, values), extras, _set_aside(folder, damage))
    if damage:
        step, reason = next(iter(damage.items()))
        raise ValueError(f"no checkpoint in {folder} can be read, {step} not because: {reason}")
    return None


def restore_masks(path: StrPath, step: int | None = None, *, like: PyTree | None = None) -> PyTree:
    """Restores only the masks, with no knowledge of the method, model or optimizer.

    They are the leaves under the outermost field or key `masks` of the saved state.

    Args:
      path: the folder of the run's checkpoints; it is only read.
      step: of the checkpoint; None is the newest.
      like: params, or any tree whose containers the masks shall have. None gives nested dicts, as
        linen has them; entries of a list or tuple then have the keys "0", "1" and so on.

    Returns:
      Masks, on the default device.

    Raises:
      ValueError: there is no such checkpoint, it is damaged, it holds no masks, or `like` differs
        from them (names the first leaf).
    """
    folder = Path(path).absolute()
    steps = _steps(folder)
    step = max(steps, default=None) if step is None else step
    if step is None or step not in steps:
        raise ValueError(f"{folder} has no checkpoint {step or ''}, there are {sorted(steps)}")
    name = f"checkpoint {folder / str(step)}"
    try:
        records, _ = _read_contents(folder, step)
        found = under(records, "masks")
        values = _read_arrays(folder, step, {full: records[full] for full in found.values()})
    except Exception as error:
        raise ValueError(f"{name} cannot give masks: {_reason(error)}") from error
    masks = {inner: jnp.asarray(values[full]) for inner, full in found.items()}
    if like is None:
        return nested(masks)
    check_like(masks, leaves_by_path(like), name=f"masks of {name}", like="like")
    return jax.tree.unflatten(jax.tree.structure(like), [masks[p] for p in leaf_paths(like)])


@contextlib.contextmanager
def _manager(folder: Path, **options: Any) -> Iterator[ocp.CheckpointManager]:
    """A manager for one operation, silent: what goes wrong is said once, by the caller.

    An operation that fails leaves threads behind that log pages, and reads that print that their
    event loop is closed: they stay silenced. After one that succeeds there are none.
    """
    logger, hook = logging.getLogger("absl"), sys.unraisablehook
    logger.addFilter(_not_of_orbax)
    sys.unraisablehook = lambda it: None if _LOST in str(it.exc_value) else hook(it)
    options = {"enable_async_checkpointing": False} | options
    with ocp.CheckpointManager(folder, options=ocp.CheckpointManagerOptions(**options)) as manager:
        yield manager
    sys.unraisablehook = hook
    logger.removeFilter(_not_of_orbax)


def _not_of_orbax(record: logging.LogRecord) -> bool:
    return f"{os.sep}orbax{os.sep}" not in record.pathname


def _steps(folder: Path) -> list[int]:
    """Steps of the whole checkpoints: Orbax gives one its number for a name when all is written."""
    return [int(p.name) for p in folder.glob("*") if re.fullmatch(r"0|[1-9][0-9]*", p.name)]


def _read_contents(folder: Path, step: int) -> tuple[dict[str, Record], dict[str, Any]]:
    """Reads the records and the extras of a checkpoint."""
    with _manager(folder, read_only=True) as manager:
        contents = manager.restore(step, args=ocp.args.Composite(contents=ocp.args.JsonRestore()))[
            "contents"
        ]
    records = {
        path: Record(dtype, tuple(shape), number)
        for path, (dtype, shape, number) in contents["records"].items()
    }
    return records, contents["extras"]


def _read_arrays(folder: Path, step: int, records: Mapping[str, Record]) -> dict[str, np.ndarray]:
    """Reads the arrays of these records to the host and compares their checksums."""
    item = dict.fromkeys(records, 0)
    as_numpy = {path: ocp.RestoreArgs(restore_type=np.ndarray) for path in records}
    arrays = ocp.args.PyTreeRestore(item, restore_args=as_numpy, partial_restore=True)
    with _manager(folder, read_only=True) as manager:
        values = manager.restore(step, args=ocp.args.Composite(arrays=arrays))["arrays"]
    for path, record in records.items():
        if checksum(values[path]) != record.checksum:
            raise ValueError(f"{path} has another checksum than when it was saved")
    return values


def _set_aside(folder: Path, damage: Mapping[int, str]) -> str | None:
    """Renames damaged checkpoints, never over anything, and says so in one line."""
    notes = []
    for step, reason in damage.items():
        aside = folder / f"damaged-{step}"
        while aside.exists():
            aside = aside.with_name(f"{aside.name}-again")
        (folder / str(step)).rename(aside)
        notes.append(f"checkpoint {step} cannot be read ({reason}) and is now {aside}")
    return "; ".join(notes) or None


def _reason(error: BaseException) -> str:
    """The reason in a few words: of the pages that TensorStore prints, the system's own."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = " ".join(str(error).split()) or type(error).__name__
    if code := re.search(r"os_error_code='(\d+)'", text):
        return os.strerror(int(code[1]))
    return text if len(text) <= 120 else f"{text[:117]}..."
