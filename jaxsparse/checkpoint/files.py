"""The files of a checkpoint, through Orbax: arrays by path, and their records as JSON."""

import contextlib
import logging
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from jaxsparse.flat_state import Record, checksum

_LOST = "Event loop is closed"


def write(
    folder: Path,
    step: int,
    arrays: Mapping[str, jax.Array | np.ndarray],
    contents: Mapping[str, Any],
    *,
    keep: int,
) -> None:
    """Writes a checkpoint, then deletes the oldest beyond `keep`.

    Args:
      folder: the folder of the checkpoints.
      step: the step, which is the name of the checkpoint.
      arrays: arrays by path.
      contents: records and extras, all of types that JSON has.
      keep: number of checkpoints to keep, this one included.
    """
    items = ocp.args.Composite(
        arrays=ocp.args.PyTreeSave(arrays), contents=ocp.args.JsonSave(contents)
    )
    with _manager(folder, max_to_keep=keep) as manager:
        manager.save(step, args=items, force=True)


def read_contents(folder: Path, step: int) -> tuple[dict[str, Record], dict[str, Any]]:
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


def read_arrays(folder: Path, step: int, records: Mapping[str, Record]) -> dict[str, np.ndarray]:
    """Reads arrays to the host.

    Args:
      folder: the folder of the checkpoints.
      step: the step of the checkpoint.
      records: records by path, of the arrays to read.

    Raises:
      ValueError: an array has another checksum than its record; names it.
    """
    item = dict.fromkeys(records, 0)
    as_numpy = {path: ocp.RestoreArgs(restore_type=np.ndarray) for path in records}
    arrays = ocp.args.PyTreeRestore(item, restore_args=as_numpy, partial_restore=True)
    with _manager(folder, read_only=True) as manager:
        values = manager.restore(step, args=ocp.args.Composite(arrays=arrays))["arrays"]
    for path, record in records.items():
        if checksum(values[path]) != record.checksum:
            raise ValueError(f"{path} has another checksum than when it was saved")
    return values


def remove_half_done(folder: Path) -> None:
    """Removes the files of saves that failed or were killed, which would fill the disk.

    Threads of a failed save go on for a moment and may write files again, so it tries repeatedly.
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
    """A manager for one operation, which prints nothing: the caller reports an error once.

    A failed operation leaves three things behind: threads that log pages of text, reads that print
    that their event loop is closed, and writes whose error was never retrieved. These stay silenced
    after the operation, and later failures do not silence them again. A successful operation leaves
    nothing behind, so the silence ends with it.
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
    """A `sys.unraisablehook` that ignores the reads left behind by a failed operation."""

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
