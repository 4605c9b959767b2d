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
import errno
import json
import logging
import operator
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from jaxsparse.flat_state import (
    Record,
    check_fits,
    check_leaves,
    checksum,
    fill,
    flatten,
    nested,
    renamed,
    under,
)
from jaxsparse.paths import check_like, leaf_paths, leaves_by_path
from jaxsparse.types import PyTree

StrPath: TypeAlias = str | os.PathLike[str]

_LOST = "Event loop is closed"
_OF_ORBAX = {"_CHECKPOINT_METADATA", "commit_success.txt"}  # beside the items of any checkpoint


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
      step: completed steps, at least 0 and above those of every checkpoint in the folder.
      state: any pytree of arrays, typed keys and numbers, not all of them without entries.
      keep: checkpoints to keep, this one included, at least 1. With 2 there is one to fall back on.
      extras: what JSON takes, for what is no array, such as a name or the best accuracy so far.

    Raises:
      ValueError: a step that is not the newest, extras that JSON does not take, a leaf of state
        that is no array, or a folder with checkpoints that another program wrote.
      OSError: it could not be written, to a full disk say; earlier checkpoints are as they were.
    """
    folder = Path(path).absolute()
    step, keep = _whole(step, "step", at_least=0), _whole(keep, "keep", at_least=1)
    if (newest := max(_steps(folder), default=-1)) >= step:
        raise ValueError(f"step {step} must be above {newest}, the newest checkpoint in {folder}")
    arrays, records = flatten(state)
    contents = {"records": records, "extras": dict(extras or {})}
    try:
        json.dumps(contents)
    except (TypeError, ValueError) as error:  # a type that it has no word for, or a circle
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
        _remove_half_done(folder)


def restore_checkpoint(path: StrPath, state: PyTree | Callable[[int], PyTree]) -> Restored | None:
    """Restores the newest checkpoint that can be read, for a run to go on from.

    A damaged one is passed over for the one before it and renamed to `damaged-STEP`, so that the
    run can save that step again; `note` says so. Where none can be read, nothing is renamed. That
    the system does not let it be read, for want of memory, permission or open files say, is no
    damage: it is raised, and the same call may do better later.

    Args:
      path: the folder of the run's checkpoints.
      state: the state at hand, such as the fresh one of this run, arrays and not only shapes: its
        containers, shapes, dtypes and devices are taken, its values are not. Or a function from
        the checkpoint's step to it, for states whose leaves change on the way.

    Returns:
      The checkpoint, or None where the folder has none. Arrays come back to the bit and sharded
      like those of the state at hand, whatever devices saved them.

    Raises:
      ValueError: the checkpoint belongs to another state (names the first leaf that differs), all
        of them are damaged, or another program wrote one. The folder is left as it is.
      OSError: the system does not let one be read. The folder is left as it is.
    """
    folder = Path(path).absolute()
    if not callable(state):
        check_leaves(state)
    damage: dict[int, str] = {}
    for step in sorted(_steps(folder), reverse=True):
        name = f"checkpoint {folder / str(step)}"
        try:
            records, extras = _read_contents(folder, step)
        except Exception as error:  # whatever JSON, TensorStore and Orbax say of damaged files
            _raise_if_of_system(error, name)
            damage[step] = _reason(error)
            continue
        like = state(step) if callable(state) else state
        try:
            check_fits(records, like, name=name)
        except ValueError as error:
            raise ValueError(f"{error}; another model or optimizer saved it") from None
        try:
            values = _read_arrays(folder, step, records)
        except Exception as error:
            _raise_if_of_system(error, name)
            damage[step] = _reason(error)
            continue
        return Restored(step, fill(like, values), extras, _set_aside(folder, damage))
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
      ValueError: there is no such checkpoint, it is damaged or of another program, it holds no
        masks, or `like` differs from them (names the first leaf).
      OSError: the system does not let it be read.
    """
    folder = Path(path).absolute()
    steps = _steps(folder)
    if not steps:
        raise ValueError(f"{folder} has no checkpoint")
    step = max(steps) if step is None else _whole(step, "step", at_least=0)
    if step not in steps:
        raise ValueError(f"{folder} has no checkpoint {step}, there are {sorted(steps)}")
    name = f"checkpoint {folder / str(step)}"
    try:
        records, _ = _read_contents(folder, step)
        found = under(records, "masks")
        values = _read_arrays(folder, step, {full: records[full] for full in found.values()})
    except Exception as error:
        _raise_if_of_system(error, name)
        raise ValueError(f"{name} cannot give masks: {_reason(error)}") from error
    masks = {inner: jnp.asarray(values[full]) for inner, full in found.items()}
    if like is None:
        return nested(renamed(masks))
    masks = renamed(masks, leaves_by_path(like))
    check_like(masks, leaves_by_path(like), name=f"masks of {name}", like="like")
    return jax.tree.unflatten(jax.tree.structure(like), [masks[p] for p in leaf_paths(like)])


def _remove_half_done(folder: Path) -> None:
    """Removes what a save that failed, or one that was killed, has left: it would fill the disk.

    Threads of the save that failed write on for a moment, and may put some of it back.
    """
    for _ in range(20):
        half_done = list(folder.glob("*.orbax-checkpoint-tmp"))
        if not half_done:
            return
        for path in half_done:
            shutil.rmtree(path, ignore_errors=True)
        time.sleep(0.05)


@contextlib.contextmanager
def _manager(folder: Path, **options: Any) -> Iterator[ocp.CheckpointManager]:
    """A manager for one operation, silent: what goes wrong is said once, by the caller.

    An operation that fails leaves threads behind that log pages, reads that print that their event
    loop is closed, and writes whose own error nobody fetched: they stay silenced, once for all
    failures. After one that succeeds there are none.
    """
    hook = sys.unraisablehook
    silenced = isinstance(hook, _WithoutLostReads)
    if not silenced:
        for logger, loud in _LOUD.items():
            logging.getLogger(logger).addFilter(loud)
        sys.unraisablehook = _WithoutLostReads(hook)
    options = {"enable_async_checkpointing": False} | options
    with ocp.CheckpointManager(folder, options=ocp.CheckpointManagerOptions(**options)) as manager:
        yield manager
    if not silenced:
        sys.unraisablehook = hook
        for logger, loud in _LOUD.items():
            logging.getLogger(logger).removeFilter(loud)


class _WithoutLostReads(NamedTuple):
    """A `sys.unraisablehook` that hands on all but the reads of an operation that failed."""

    hook: Callable[[Any], None]

    def __call__(self, unraisable: Any) -> None:
        if _LOST not in str(unraisable.exc_value):
            self.hook(unraisable)


def _not_of_orbax(record: logging.LogRecord) -> bool:
    return f"{os.sep}orbax{os.sep}" not in record.pathname


def _not_of_tensorstore(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    return "never retrieved" not in record.getMessage() or "ocdbt" not in str(error).lower()


_LOUD = {"absl": _not_of_orbax, "asyncio": _not_of_tensorstore}


def _whole(value: Any, name: str, *, at_least: int) -> int:
    """Returns the integer, of Python, NumPy or JAX; raises a ValueError for anything else."""
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None or number < at_least:
        raise ValueError(f"{name} {value!r} must be a whole number, at least {at_least}")
    return number


def _steps(folder: Path) -> list[int]:
    """Steps of the whole checkpoints: Orbax gives one its number for a name when all is written.

    Raises:
      ValueError: another program wrote one of them. It is not ours to rename, and Orbax would
        delete it as the oldest.
    """
    try:
        entries = list(folder.iterdir())
    except FileNotFoundError:
        return []
    found = [p for p in entries if re.fullmatch(r"0|[1-9][0-9]*", p.name) and p.is_dir()]
    for path in found:
        items = {p.name for p in path.iterdir()} - _OF_ORBAX
        # Without contents it can still be what is left of ours, where a kill cut its deletion off.
        if "contents" not in items and items - {"arrays"}:
            raise ValueError(f"checkpoint {path} was not written by jaxsparse; take another folder")
    return [int(path.name) for path in found]


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


def _raise_if_of_system(error: Exception, name: str) -> None:
    """Raises what the system, and not the checkpoint, is to blame for: all but a missing file."""
    if isinstance(error, MemoryError):
        raise error
    if _os_error_code(error) not in (None, errno.ENOENT):
        raise OSError(f"{name} could not be read: {_reason(error)}; it is as it was") from error


def _reason(error: BaseException) -> str:
    """The reason in a few words: of the pages that TensorStore prints, the system's own."""
    if code := _os_error_code(error):
        return os.strerror(code)
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 120 else f"{text[:117]}..."


def _os_error_code(error: BaseException) -> int | None:
    """The system's number of an error, of Python's or in the text of TensorStore's."""
    if isinstance(error, OSError):
        return error.errno
    code = re.search(r"os_error_code='(\d+)'", str(error))
    return int(code[1]) if code else None
