"""A whole state restored, for a run to go on from."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jaxsparse.checkpoint.earlier import added_since
from jaxsparse.checkpoint.errors import raise_if_of_system, reason
from jaxsparse.checkpoint.files import read_arrays, read_contents
from jaxsparse.checkpoint.names import fields, fields_by_fit
from jaxsparse.checkpoint.steps import StrPath, set_aside, steps
from jaxsparse.flat_state import (
    Record,
    check_fits,
    check_leaves,
    fill,
    renamed,
)
from jaxsparse.paths import listed
from jaxsparse.types import PyTree


class Restored(NamedTuple):
    """What `restore_checkpoint` or `restore_parts` found.

    Attributes:
      step: of the checkpoint.
      state: the saved values, in the containers and on the devices of the state at hand; of
        `restore_parts` a dict of the parts by name.
      extras: what was saved beside it.
      note: one line for the user about newer checkpoints that could not be read, or None.
    """

    step: int
    state: PyTree
    extras: dict[str, Any]
    note: str | None


def restore_checkpoint(path: StrPath, state: PyTree | Callable[[int], PyTree]) -> Restored | None:
    """Restores the newest checkpoint that can be read, for a run to go on from.

    A damaged one is passed over for the one before it and renamed to `damaged-STEP`, so that the
    run can save that step again; `note` says so. If none can be read, nothing is renamed. A read
    that fails for lack of memory, permission or open files is not damage: the error is raised, and
    the same call may succeed later.

    The state at hand must have the leaves of the saved one, optimizer included. To take over params
    or masks alone, for evaluation or another optimizer, see `restore_parts`.

    Args:
      path: the folder of the run's checkpoints.
      state: the state at hand, such as the fresh one of this run, arrays and not only shapes: its
        containers, shapes, dtypes and devices are taken, its values are not. Or a function from
        the checkpoint's step to it, for states whose leaves change on the way.

    Returns:
      The checkpoint, or None where the folder has none. Arrays come back to the bit and sharded
      like those of the state at hand, whatever devices saved them.

    Raises:
      ValueError: the checkpoint belongs to another state (names the first leaf that differs, and
        the parts that fit), all of them are damaged, or another program wrote one. The folder is
        left as it is.
      OSError: the system does not let one be read. The folder is left as it is.
    """
    folder = Path(path).absolute()
    if not callable(state):
        check_leaves(state)
    damage: dict[int, str] = {}
    for step in sorted(steps(folder), reverse=True):
        name = f"checkpoint {folder / str(step)}"
        try:
            records, extras = read_contents(folder, step)
        except Exception as error:  # whatever JSON, TensorStore and Orbax say of damaged files
            raise_if_of_system(error, name)
            damage[step] = reason(error)
            continue
        like = state(step) if callable(state) else state
        ours = check_leaves(like)
        added = added_since(renamed(records, ours), ours)
        known = records | {p: Record(str(x.dtype), x.shape, 0) for p, x in added.items()}
        try:
            check_fits(known, like, name=name)
        except ValueError as error:
            raise ValueError(f"{error}; {_advice(known, like, saved=records)}") from None
        try:
            values = read_arrays(folder, step, records)
        except Exception as error:
            raise_if_of_system(error, name)
            damage[step] = reason(error)
            continue
        return Restored(step, fill(like, values | added), extras, set_aside(folder, damage))
    if damage:
        step, why = next(iter(damage.items()))
        raise ValueError(f"no checkpoint in {folder} can be read, {step} not because: {why}")
    return None


def _advice(known: Mapping[str, Record], state: PyTree, *, saved: Iterable[str]) -> str:
    """Who saved a checkpoint that does not fit, and what of it can be taken over all the same."""
    fit, differ = fields_by_fit(known, state)
    fit = [name for name in fit if name in fields(saved)]
    if not fit:
        return "another model or optimizer saved it"
    who = "another optimizer" if differ == ["opt_state"] else "another model or optimizer"
    return f"{who} saved it, but {listed(fit)} fit: take them over by name with restore_parts"
