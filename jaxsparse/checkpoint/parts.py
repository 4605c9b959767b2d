"""Parts of a checkpoint by name, such as params to evaluate, or masks for another optimizer.

params = restore_part(folder, "params")                      # nested dicts, as in linen
params = restore_part(folder, "params", like=params)         # NNX, Equinox, any containers
found = restore_parts(folder, ["params", "masks"]).state     # from one checkpoint
state = TrainState.create(apply_fn=model.apply, params=found["params"], masks=found["masks"],
                          tx=another_optimizer, method=method, key=key)
"""

import functools
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding

from jaxsparse.checkpoint.files import records_in
from jaxsparse.checkpoint.names import under
from jaxsparse.checkpoint.restore import Restored, contents_of, read
from jaxsparse.checkpoint.save import wait_for_checkpoint
from jaxsparse.checkpoint.steps import StrPath, steps
from jaxsparse.checks import check_whole
from jaxsparse.flat_state import (
    Record,
    nested,
    placed,
    renamed,
    sharding_of,
    sharding_to_read,
)
from jaxsparse.paths import check_like, leaves_by_path
from jaxsparse.processes import decided
from jaxsparse.types import PyTree


def restore_part(
    path: StrPath, name: str, step: int | None = None, *, like: PyTree | None = None
) -> PyTree:
    """Restores one part of a checkpoint, without the code that made the rest.

        params = restore_part("checkpoints", "params")
        logits = model.apply({"params": params}, images)  # no optimizer, no method, no masks

    Args:
      path: the folder of the run's checkpoints; it is only read.
      name: a field or key of the saved state, such as "params" or "batch_stats", or a path such as
        "params/Dense_0". If several fields have the name, the outermost one is restored; a longer
        path, such as "best/params", selects another one.
      step: step of the checkpoint; None restores the newest.
      like: a tree whose containers the part will have. Its leaves are arrays or
        `jax.ShapeDtypeStruct`: their paths and shapes must be those of the part, and their sharding
        is used, but not their values or dtypes. Leaves that are no arrays, such as functions in an
        Equinox module, stay as they are. None gives nested dicts, as in linen; the entries of a
        list or tuple then have the keys "0", "1" and so on.

    Returns:
      The part to the bit, in the dtypes in which it was saved, as JAX arrays. Arrays are NumPy's if
      JAX has 64-bit types disabled and would cut them.

    Raises:
      ValueError: there is no such checkpoint, it is damaged or from another program, it has no part
        of that name (says which it has), or `like` differs from it (names the first leaf).
      OSError: the system does not let it be read.
    """
    return restore_parts(path, {name: like}, step).state[name]


def restore_parts(
    path: StrPath,
    parts: Iterable[str] | Mapping[str, PyTree | None],
    step: int | None = None,
) -> Restored:
    """Restores several parts of one checkpoint, each as `restore_part` does.

        restored = restore_parts("checkpoints", {"params": params, "batch_stats": batch_stats})
        print(restored.step, evaluate(**restored.state))

    With several processes all of them call it.

    Args:
      path: the folder of the run's checkpoints; it is only read.
      parts: names, or a dict from name to `like`; both as in `restore_part`.
      step: step of the checkpoint; None restores the newest.

    Returns:
      The step, the parts by name, and the extras of the checkpoint.

    Raises:
      ValueError, OSError: as `restore_part`.
    """
    likes = dict(parts) if isinstance(parts, Mapping) else dict.fromkeys(parts)
    folder = Path(path).absolute()
    wait_for_checkpoint(folder)
    step = decided(functools.partial(_chosen_step, folder, step))
    name = f"checkpoint {folder / str(step)}"
    contents = decided(functools.partial(_readable_contents, folder, step, name))
    records = records_in(contents)
    chosen = {part: _leaves_of(part, records, like, name) for part, like in likes.items()}
    wanted = {full: records[full] for found in chosen.values() for full in found.values()}
    shardings = _shardings(chosen, likes, records)
    try:
        values = read(folder, step, wanted, shardings, name=name)
    except ValueError as error:
        raise ValueError(f"{name} cannot give {', '.join(likes)}: {error}") from error
    place = lambda full, like: placed(values[full], records[full], like, name=full)
    state = {part: _assembled(chosen[part], like, place) for part, like in likes.items()}
    return Restored(step, state, contents["extras"], None)


def restore_masks(path: StrPath, step: int | None = None, *, like: PyTree | None = None) -> PyTree:
    """Restores only the masks: `restore_part` with the name "masks".

    Args:
      path: the folder of the run's checkpoints; it is only read.
      step: step of the checkpoint; None restores the newest.
      like: params, or any tree whose containers the masks will have; see `restore_part`.

    Returns:
      The masks, a tree of bool.

    Raises:
      ValueError, OSError: as `restore_part`.
    """
    as_mask = lambda x: jax.ShapeDtypeStruct(np.shape(x), bool, sharding=sharding_of(x))
    return restore_part(path, "masks", step, like=jax.tree.map(as_mask, like))


def _chosen_step(folder: Path, step: int | None) -> int:
    there = steps(folder)
    if not there:
        raise ValueError(f"{folder} has no checkpoint")
    step = max(there) if step is None else check_whole("step", step, 0)
    if step not in there:
        raise ValueError(f"{folder} has no checkpoint {step}, there are {sorted(there)}")
    return step


def _readable_contents(folder: Path, step: int, name: str) -> Mapping[str, Any]:
    contents, problem = contents_of(folder, step, name)
    if problem is not None:
        raise ValueError(f"{name} cannot be read: {problem}")
    return contents


def _shardings(
    chosen: Mapping[str, Mapping[str, str]],
    likes: Mapping[str, PyTree | None],
    records: Mapping[str, Record],
) -> dict[str, Sharding | None]:
    """The places that the leaves of the parts go to, by their path in the checkpoint."""
    return {
        full: sharding_to_read(leaves[path], records[full])
        for part, like in likes.items()
        if like is not None
        for leaves in [leaves_by_path(like)]
        for path, full in chosen[part].items()
    }


def _leaves_of(
    part: str, records: Mapping[str, Record], like: PyTree | None, name: str
) -> dict[str, str]:
    """The leaves of a part, as a dict from the path in `like` to the path in the checkpoint."""
    if like is not None and not any(np.size(leaf) for leaf in _arrays(like).values()):
        return {}  # leaves without entries were not saved
    try:
        found = under(records, part)
    except ValueError as error:
        raise ValueError(f"{name} {error}") from None
    if like is None:
        return renamed(found)
    leaves = leaves_by_path(like)
    found = renamed(found, leaves)
    arrays = {path: leaf for path, leaf in _arrays(like).items() if np.size(leaf)}
    # `like` may also hold numbers or functions, as a module does: they are restored if saved.
    others = {path: leaf for path, leaf in leaves.items() if path in found and path not in arrays}
    shape = lambda shape: jax.ShapeDtypeStruct(shape, bool)
    check_like(
        {path: shape(records[full].shape) for path, full in found.items()},
        {path: shape(np.shape(leaf)) for path, leaf in (arrays | others).items()},
        name=f"{part} of {name}",
        like="like",
    )
    return found


def _assembled(found: Mapping[str, str], like: PyTree | None, place: Callable) -> PyTree:
    """The part in the containers of `like`.

    `place` makes a leaf from its path in the checkpoint and the leaf of `like`.
    """
    if like is None:
        return nested({path: place(full, None) for path, full in found.items()})
    new = [
        place(found[path], leaf) if path in found else _empty(leaf)
        for path, leaf in leaves_by_path(like).items()
    ]
    return jax.tree.unflatten(jax.tree.structure(like), new)


def _empty(leaf: Any) -> Any:
    """A leaf that was not saved: an array without entries, or a leaf that is no array."""
    return jnp.zeros(leaf.shape, leaf.dtype) if isinstance(leaf, jax.ShapeDtypeStruct) else leaf


def _arrays(like: PyTree) -> dict[str, Any]:
    kinds = jax.Array | np.ndarray | np.generic | jax.ShapeDtypeStruct
    return {p: leaf for p, leaf in leaves_by_path(like).items() if isinstance(leaf, kinds)}
