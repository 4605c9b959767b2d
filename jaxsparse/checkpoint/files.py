"""A checkpoint's files, written and read by Orbax: arrays by path, and their records as JSON."""

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
      folder: of the checkpoints.
      step: the name of this one.
      arrays: by path.
      contents: what JSON takes.
      keep: checkpoints to keep, this one included.
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


def remove_half_done(folder: Path) -> None:
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
