"""Restoring a whole state, from which a run continues."""

import functools
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from jax.sharding import Sharding

from jaxsparse.checkpoint.earlier import added_since
from jaxsparse.checkpoint.errors import of_system, reason
from jaxsparse.checkpoint.files import read_arrays, read_contents, records_in
from jaxsparse.checkpoint.names import fields, fields_by_fit
from jaxsparse.checkpoint.save import wait_for_checkpoint
from jaxsparse.checkpoint.steps import StrPath, set_aside, steps
from jaxsparse.flat_state import (
    Record,
    check_fits,
    check_leaves,
    damaged,
    fill,
    renamed,
    sharding_to_read,
)
from jaxsparse.paths import listed
from jaxsparse.processes import decided, problem_anywhere
from jaxsparse.types import PyTree

T = TypeVar("T")


class Restored(NamedTuple):
    """The result of `restore_checkpoint` or `restore_parts`.

    Attributes:
      step: step of the checkpoint.
      state: the saved values. From `restore_checkpoint` they are in the containers and on the
        devices of the state at hand; from `restore_parts` they are a dict of the parts by name.
      extras: the extras that were saved beside the state.
      note: one line for the user about newer checkpoints that could not be read, or None.
    """

    step: int
    state: PyTree
    extras: dict[str, Any]
    note: str | None


def restore_checkpoint(path: StrPath, state: PyTree | Callable[[int], PyTree]) -> Restored | None:
    """Restores the newest checkpoint that can be read, so that a run continues from it.

    With several processes all of them call it; process 0 decides which checkpoint it is, and each
    reads the parts of arrays that its devices hold.

    If a checkpoint is damaged, the one before it is restored, and the damaged one is renamed to
    `damaged-STEP`, so that the run can save that step again; `note` says so. If no checkpoint can
    be read, none is renamed. A read that fails for lack of memory, permission or file handles is
    not damage: the error is raised, and a later call may succeed.

    The state at hand must have the leaves of the saved state, including the optimizer's. To take
    over only params or masks, for evaluation or another optimizer, see `restore_parts`.

    Args:
      path: the folder of the run's checkpoints.
      state: the state at hand, such as a new state of this run, with arrays and not only shapes.
        Its containers, shapes, dtypes and devices are used, its values are not. Or a function from
        the checkpoint's step to such a state, if its leaves change during the run.

    Returns:
      The checkpoint, or None if the folder has none. Arrays are equal to the saved ones to the bit.
      They are sharded like those of the state at hand, whatever devices saved them.

    Raises:
      ValueError: the checkpoint belongs to another state (names the first leaf that differs, and
        the parts that fit), all checkpoints are damaged, or another program wrote one. The folder
        is left as it is.
      OSError: the system does not let one be read. The folder is left as it is.
    """
    folder = Path(path).absolute()
    if not callable(state):
        check_leaves(state)
    wait_for_checkpoint(folder)
    damage: dict[int, str] = {}
    for step in decided(lambda: sorted(steps(folder), reverse=True)):
        name = f"checkpoint {folder / str(step)}"
        contents, problem = decided(functools.partial(contents_of, folder, step, name))
        if problem is not None:
            damage[step] = problem
            continue
        records, like = records_in(contents), state(step) if callable(state) else state
        ours = check_leaves(like)
        added = added_since(renamed(records, ours), ours)
        known = records | {p: Record(str(x.dtype), x.shape, 0) for p, x in added.items()}
        try:
            check_fits(known, like, name=name)
        except ValueError as error:
            raise ValueError(f"{error}; {_advice(known, like, saved=records)}") from None
        shardings = {  # `renamed` keeps the order
            saved: sharding_to_read(ours[path], record)
            for path, (saved, record) in zip(renamed(records, ours), records.items(), strict=True)
        }
        try:
            values = read(folder, step, records, shardings, name=name)
        except ValueError as error:
            damage[step] = str(error)
            continue
        note = decided(functools.partial(set_aside, folder, damage))
        return Restored(step, fill(like, {**values, **added}), contents["extras"], note)
    if damage:
        step, why = next(iter(damage.items()))
        raise ValueError(f"no checkpoint in {folder} can be read; {step} cannot because: {why}")
    return None


def read(
    folder: Path,
    step: int,
    records: Mapping[str, Record],
    shardings: Mapping[str, Sharding | None],
    *,
    name: str,
) -> dict[str, jax.Array | np.ndarray]:
    """Returns arrays by path, after a check of their checksums; all processes call it.

    Args:
      folder: the folder of the checkpoints.
      step: the step of the checkpoint.
      records: records by path, of the arrays to read.
      shardings: as in `read_arrays`.
      name: name of the checkpoint, for messages.

    Raises:
      ValueError: it is damaged; says why in at most 120 characters.
      OSError, MemoryError: the system does not let it be read.
    """

    def attempt(act: Callable[[], T]) -> T:
        """All processes raise if one of them fails, before the next collective operation."""
        result, problem = None, None
        try:
            result = act()
        except Exception as error:  # TensorStore and Orbax raise many types for damage
            problem = of_system(error, name) or ValueError(reason(error))
            problem.__cause__ = error
        if (problem := problem_anywhere(problem)) is not None:
            raise problem
        return result  # pyright: ignore[reportReturnType] - there was no problem

    values = attempt(lambda: read_arrays(folder, step, records, shardings))
    attempt(lambda: _check(values, records))
    return values


def _check(values: Mapping[str, jax.Array | np.ndarray], records: Mapping[str, Record]) -> None:
    for path in damaged(values, records):
        raise ValueError(f"{path} has another checksum than when it was saved")


def contents_of(folder: Path, step: int, name: str) -> tuple[Mapping[str, Any], str | None]:
    """Returns the contents of a checkpoint, and the reason if they cannot be read, else None.

    Raises:
      OSError, MemoryError: the system does not let them be read.
    """
    try:
        contents = read_contents(folder, step)
        records_in({"records": contents["records"], "extras": contents["extras"]})
    except Exception as error:  # JSON and Orbax raise many types for damage
        if problem := of_system(error, name):
            raise problem from error
        return {}, reason(error)
    return contents, None


def _advice(known: Mapping[str, Record], state: PyTree, *, saved: Iterable[str]) -> str:
    """The version that saved a checkpoint that does not fit, and the parts still of use."""
    fit, differ = fields_by_fit(known, state)
    fit = [name for name in fit if name in fields(saved)]
    if not fit:
        return "another model or optimizer saved it"
    who = "another optimizer" if differ == ["opt_state"] else "another model or optimizer"
    return f"{who} saved it, but {listed(fit)} fit: take them over by name with restore_parts"
