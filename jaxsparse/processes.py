"""Agreement between processes: one decides and all follow, or all learn of an error of one.

A process that raises alone leaves the others waiting in their next collective operation. All
functions here are collective: every process calls them at the same point. In one process they cost
nothing.
"""

import json
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxsparse.meshes import mesh_of, on_all_devices
from jaxsparse.types import PyTree

T = TypeVar("T")

_ERRORS = {error.__name__: error for error in (ValueError, OSError, MemoryError, TimeoutError)}


def decided(decide: Callable[[], T]) -> T:
    """Returns what a function returns on process 0, which alone calls it.

    Args:
      decide: its result has types that JSON has; tuples arrive as lists on other processes.

    Raises:
      ValueError, OSError, MemoryError: what `decide` raised; the others raise its type and message.
      RuntimeError: `decide` raised an error of another type. (Process 0 raises the error itself.)
    """
    if jax.process_count() == 1:
        return decide()
    result, problem = None, None
    if jax.process_index() == 0:
        try:
            result = decide()
            json.dumps(result)
        except Exception as error:  # the others wait to be told of any error
            problem = error
    said = json.loads(_from_one(json.dumps([result, _said(problem)]), 0))
    if jax.process_index() != 0:
        result, problem = said[0], _heard(said[1])
    if problem is not None:
        raise problem
    return result  # pyright: ignore[reportReturnType] - it is what decide returned


def problem_anywhere(problem: Exception | None) -> Exception | None:
    """Returns the error of the first process that has one, on all processes; None if none has.

    Args:
      problem: the error of this process, or None.
    """
    if jax.process_count() == 1:
        return problem
    has = multihost_utils.process_allgather(np.array(problem is not None))
    if not has.any():
        return None
    first = int(np.argmax(has))
    said = json.loads(_from_one(json.dumps(_said(problem)), first))
    return problem if first == jax.process_index() else _heard(said)


def is_shared(tree: PyTree) -> bool:
    """Whether processes share a leaf: no process holds it alone."""
    arrays = (leaf for leaf in jax.tree.leaves(tree) if isinstance(leaf, jax.Array))
    return any(not leaf.is_fully_addressable for leaf in arrays)


def whole(leaf: Any) -> np.ndarray:
    """Returns all of an array on the host, part by part; collective if processes share it.

    A leaf that processes share is first copied to every device, so each device needs memory for one
    whole leaf at that moment.
    """
    return _on_host(_readable(leaf))


def whole_on_first(leaf: Any) -> np.ndarray | None:
    """Returns `whole` of an array on process 0, None on the others; collective if it is shared."""
    leaf = _readable(leaf)
    return _on_host(leaf) if jax.process_index() == 0 else None


def _readable(leaf: Any) -> Any:
    """An array that this process can read: it has all parts of it, or a copy of the whole."""
    if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable or leaf.is_fully_replicated:
        return leaf
    if (mesh := mesh_of(leaf)) is None:
        raise ValueError(f"an array that processes share lies on no mesh: {leaf.sharding}")
    return jax.device_put(leaf, on_all_devices(mesh))


def _on_host(leaf: Any) -> np.ndarray:
    if not isinstance(leaf, jax.Array) or len(leaf.sharding.device_set) == 1:
        return np.asarray(leaf)
    if leaf.is_fully_replicated:
        return np.asarray(leaf.addressable_data(0))
    # `np.asarray` of the leaf would keep the copy for as long as the leaf lives.
    array = np.empty(leaf.shape, leaf.dtype)
    for shard in leaf.addressable_shards:
        if shard.replica_id == 0:
            array[shard.index] = np.asarray(shard.data)
    return array


def _from_one(text: str, source: int) -> str:
    """The text of one process, on all of them."""
    is_source = jax.process_index() == source
    data = np.frombuffer(text.encode(), np.uint8)
    size = multihost_utils.broadcast_one_to_all(np.int32(data.size), is_source=is_source)
    data = data if is_source else np.zeros(int(size), np.uint8)
    return multihost_utils.broadcast_one_to_all(data, is_source=is_source).tobytes().decode()


def _said(problem: Exception | None) -> list[str] | None:
    if problem is None:
        return None
    kind = next((name for name, error in _ERRORS.items() if isinstance(problem, error)), "")
    return [kind, str(problem) or type(problem).__name__]


def _heard(said: list[str] | None) -> Exception | None:
    return None if said is None else _ERRORS.get(said[0], RuntimeError)(said[1])
