"""The files of a checkpoint, through Orbax: arrays by path, and their records as JSON."""

import contextlib
import errno
import itertools
import logging
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import Sharding

from jaxsparse.flat_state import Record

_LOST = "Event loop is closed"
_TIMEOUT = 600
"""Seconds after which a process gives up waiting for the others to write their parts."""
_SAVES = itertools.count()
_ALONE = ocp.options.MultiprocessingOptions()


def write(
    folder: Path,
    step: int,
    arrays: Mapping[str, jax.Array | np.ndarray],
    contents: Mapping[str, Any],
    *,
    keep: int,
    in_background: bool = False,
) -> Callable[[], None]:
    """Starts to write a checkpoint, after which the oldest beyond `keep` are deleted.

    With several processes all call it, and each writes its parts of the arrays.

    Args:
      folder: the folder of the checkpoints, which exists.
      step: the step, which is the name of the checkpoint.
      arrays: arrays by path. Their memory may be reused as soon as this function returns.
      contents: records and extras, all of types that JSON has.
      keep: number of checkpoints to keep, this one included.
      in_background: whether to return as soon as all arrays are on the host.

    Returns:
      A function that waits until the checkpoint is complete, and raises what went wrong.
    """
    items = ocp.args.Composite(
        arrays=ocp.args.PyTreeSave(arrays), contents=ocp.args.JsonSave(contents)
    )
    is_alone = jax.process_count() == 1
    with contextlib.ExitStack() as opened:
        manager = opened.enter_context(
            _manager(
                folder,
                max_to_keep=keep,
                create=False,
                enable_async_checkpointing=in_background or not is_alone,
                async_options=ocp.AsyncOptions(timeout_secs=_TIMEOUT),
                multiprocessing_options=_together() if not is_alone else _ALONE,
            )
        )
        manager.save(step, args=items, force=True)
        return opened.pop_all().close


def read_contents(folder: Path, step: int) -> Mapping[str, Any]:
    """Reads the records and the extras of a checkpoint, as JSON has them; in one process alone."""
    with _quiet():
        return ocp.JsonCheckpointHandler().restore(_path(folder, step, "contents"))


def records_in(contents: Mapping[str, Any]) -> dict[str, Record]:
    """Returns the records of `read_contents`."""
    return {
        path: Record(dtype, tuple(shape), *rest)
        for path, (dtype, shape, *rest) in contents["records"].items()
    }


def read_arrays(
    folder: Path, step: int, paths: Iterable[str], shardings: Mapping[str, Sharding | None]
) -> dict[str, jax.Array | np.ndarray]:
    """Reads arrays, each process the parts that its devices hold.

    Args:
      folder: the folder of the checkpoints.
      step: the step of the checkpoint.
      paths: the arrays to read.
      shardings: where they go, by path; those without a sharding come to the host, whole.
    """
    how = {
        path: ocp.RestoreArgs(restore_type=np.ndarray)
        if shardings.get(path) is None
        else ocp.ArrayRestoreArgs(restore_type=jax.Array, sharding=shardings[path])
        for path in paths
    }
    wanted = ocp.args.PyTreeRestore(dict.fromkeys(how, 0), restore_args=how, partial_restore=True)
    with _quiet():
        # A `CheckpointManager` has barriers, at which processes would wait for one that found
        # damage in its part.
        return ocp.PyTreeCheckpointHandler().restore(_path(folder, step, "arrays"), args=wanted)


def remove_half_done(folder: Path) -> None:
    """Removes the files of saves that failed or were killed, which would fill the disk.

    Threads of a failed save go on for a moment and may write files again, so it tries repeatedly.
    Only process 0 removes anything.
    """
    if jax.process_index() != 0:
        return
    for _ in range(20):
        half_done = list(folder.glob("*.orbax-checkpoint-tmp"))
        if not half_done:
            return
        for path in half_done:
            shutil.rmtree(path, ignore_errors=True)
        time.sleep(0.05)


def _path(folder: Path, step: int, item: str) -> Any:  # Orbax's type is one of its own
    path = folder / str(step) / item
    if not path.is_dir():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    return path


@contextlib.contextmanager
def _manager(folder: Path, **options: Any) -> Iterator[ocp.CheckpointManager]:
    """A manager for one operation."""
    with (
        _quiet(),
        ocp.CheckpointManager(folder, options=ocp.CheckpointManagerOptions(**options)) as manager,
    ):
        yield manager


def _together() -> ocp.options.MultiprocessingOptions:
    """All processes, with barriers that have names of their own and end after a time."""
    return ocp.options.MultiprocessingOptions(
        active_processes=set(range(jax.process_count())),
        barrier_sync_key_prefix=f"jaxsparse-{next(_SAVES)}",
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """An operation of Orbax, which prints nothing: the caller reports an error once.

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
    yield
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
