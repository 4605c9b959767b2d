"""A state as arrays by path, and back: what a checkpoint is made of, with no file format in it.

The flat form has no containers, so it can be described in JSON, compared with another state leaf
by leaf, and taken apart without the classes that it came from.
"""

import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxsparse.paths import check_like, leaves_by_path
from jaxsparse.types import PyTree

T = TypeVar("T")


class Record(NamedTuple):
    """What is known of one saved leaf without its values.

    Attributes:
      dtype: as a string; "key<fry>" for a typed key.
      shape: of the leaf; of a key without the integers that it is made of.
      checksum: CRC-32 of the bytes in C order.
    """

    dtype: str
    shape: tuple[int, ...]
    checksum: int


def flatten(state: PyTree) -> tuple[dict[str, jax.Array | np.ndarray], dict[str, Record]]:
    """Returns the arrays of a state by path, keys as the integers they are made of, and records.

    Leaves of no entries are left out: they hold nothing.

    Args:
      state: any pytree of arrays, typed keys and numbers. Sharded arrays stay as they are, but the
        checksum needs all of their entries on this process.

    Raises:
      ValueError: names a leaf that is none of these, or no leaf has entries.
    """
    leaves = check_leaves(state)
    if not leaves:
        raise ValueError("state has no leaf with entries, there is nothing to save")
    arrays = {name: _raw(leaf) for name, leaf in leaves.items()}
    records = {
        name: Record(dtype_of(leaf), tuple(np.shape(leaf)), checksum(arrays[name]))
        for name, leaf in leaves.items()
    }
    return arrays, records


def fill(state: PyTree, values: Mapping[str, np.ndarray]) -> PyTree:
    """Returns `state` with its leaves replaced, each in its own type and on its own devices.

    Args:
      state: like the one that was flattened; its values do not matter.
      values: from `flatten`, on the host. Leaves without one stay.
    """
    leaves = leaves_by_path(state)
    values = renamed(values, leaves)
    new = [_like(leaf, values[name]) if name in values else leaf for name, leaf in leaves.items()]
    return jax.tree.unflatten(jax.tree.structure(state), new)


def check_fits(records: Mapping[str, Record], state: PyTree, *, name: str) -> None:
    """Raises a ValueError that names the first leaf of another path, shape or dtype.

    Args:
      records: from `flatten`.
      state: the state at hand.
      name: of what the records describe.
    """
    ours = check_leaves(state)
    records = renamed(records, ours)
    check_like(
        {path: jax.ShapeDtypeStruct(record.shape, bool) for path, record in records.items()},
        {path: jax.ShapeDtypeStruct(np.shape(leaf), bool) for path, leaf in ours.items()},
        name=name,
        like="the state at hand",
    )
    for path, leaf in ours.items():
        if records[path].dtype != dtype_of(leaf):
            raise ValueError(
                f"{name} at {path} has dtype {records[path].dtype}, the state at hand has "
                f"{dtype_of(leaf)}"
            )


def check_leaves(state: PyTree) -> dict[str, Any]:
    """Returns the leaves with entries by path.

    Raises:
      ValueError: names a leaf that is no array or number, or only the shape of one.
    """
    leaves = leaves_by_path(state)
    for name, leaf in leaves.items():
        if isinstance(leaf, jax.ShapeDtypeStruct):
            raise ValueError(f"state at {name} is {leaf!r}, only a shape; make the array first")
        if not _is_number(leaf):
            raise ValueError(
                f"state at {name} is {leaf!r}; only arrays and numbers can be saved and restored, "
                f"filter the rest out"
            )
    return {name: leaf for name, leaf in leaves.items() if np.size(leaf)}


def checksum(array: jax.Array | np.ndarray) -> int:
    """Returns the CRC-32 of the array's bytes in C order."""
    return zlib.crc32(np.asarray(array).tobytes())


def renamed(leaves: Mapping[str, T], paths: Iterable[str] | None = None) -> dict[str, T]:
    """Returns saved leaves under the paths that the state at hand has for them.

    Old versions left the last "value" out of every path, today's only where it has no siblings:
    the leaf "memory/value" beside "memory/key" was saved as "memory". Others may write all of it.

    Args:
      leaves: by the path that they were saved under.
      paths: of the state at hand. None if there is none: then a leaf that others lie inside gets
        its "value" back.

    >>> renamed({"memory": 1, "memory/key": 2})
    {'memory/value': 1, 'memory/key': 2}
    >>> renamed({"memory": 1, "fc/value": 2}, ["memory/value", "fc"])
    {'memory/value': 1, 'fc': 2}
    """
    here = None if paths is None else set(paths)
    inside = {head for path in leaves for head in _heads(path)}

    def today(path: str) -> str:
        longer, shorter = f"{path}/value", path.removesuffix("/value")
        if here is None:
            return longer if path in inside and longer not in leaves else path
        others = (name for name in (longer, shorter) if name in here and name not in leaves)
        return path if path in here else next(others, path)

    return {today(path): leaf for path, leaf in leaves.items()}


def nested(leaves: Mapping[str, Any]) -> Any:
    """Returns nested dicts, one level for every "/" in a path; the leaf itself at the path "".

    Raises:
      ValueError: a leaf lies inside another one; names both.

    >>> nested({"a/kernel": 1, "a/bias": 2})
    {'a': {'kernel': 1, 'bias': 2}}
    """
    if list(leaves) == [""]:
        return leaves[""]
    for path in leaves:
        for outer in filter(leaves.__contains__, _heads(path)):
            raise ValueError(
                f"{path} is inside the leaf {outer}, so no nested dict can hold both; pass like="
            )
    tree: dict[str, Any] = {}
    for name, leaf in leaves.items():
        *above, last = name.split("/")
        node = tree
        for part in above:
            node = node.setdefault(part, {})
        node[last] = leaf
    return tree


def placed(
    value: np.ndarray, record: Record, like: Any = None, *, name: str
) -> jax.Array | np.ndarray:
    """Returns a leaf of values from `flatten` as an array of its own dtype.

    Args:
      value: on the host.
      record: of the leaf.
      like: an array or `jax.ShapeDtypeStruct` with the sharding to take; anything else has none.
      name: of the leaf, for the error.

    Returns:
      A JAX array on the default device or sharded as `like`; NumPy's if JAX would cut it to 32
      bits.

    Raises:
      ValueError: a key of a kind that JAX does not have.
    """
    sharding = sharding_of(like)
    if record.dtype.startswith("key<"):
        kinds = ("threefry2x32", "rbg", "unsafe_rbg")
        by_dtype = {dtype_of(jax.random.key(0, impl=kind)): kind for kind in kinds}
        if record.dtype not in by_dtype:
            raise ValueError(f"{name} has dtype {record.dtype}, none of {', '.join(by_dtype)}")
        key = jax.random.wrap_key_data(jnp.asarray(value), impl=by_dtype[record.dtype])
        return jax.device_put(key, sharding)
    if jnp.result_type(value) != value.dtype:
        return value
    return jax.device_put(value, sharding, may_alias=False)


def sharding_of(leaf: Any) -> Any:
    """Returns the sharding of an array that is committed to it, or that a shape names, or None."""
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return leaf.sharding
    return leaf.sharding if isinstance(leaf, jax.Array) and leaf.committed else None


def _heads(path: str) -> Iterator[str]:
    """The paths above: "a" and "a/b" of "a/b/c"."""
    return (path[:end] for end, character in enumerate(path) if character == "/")


def _is_number(leaf: Any) -> bool:
    """Whether it is an array or number; NumPy's arrays may also be of objects, text or dates."""
    if isinstance(leaf, jax.Array):
        return True
    if not isinstance(leaf, np.ndarray | np.generic | bool | int | float):
        return False
    dtype = np.asarray(leaf).dtype  # that of an integer beyond 64 bits is object
    return jnp.issubdtype(dtype, np.number) or jnp.issubdtype(dtype, np.bool_)


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def dtype_of(leaf: Any) -> str:
    """Returns the dtype of an array, key or number as a string, as in `Record`."""
    return str(leaf.dtype if isinstance(leaf, jax.Array) else np.asarray(leaf).dtype)


def _raw(leaf: Any) -> jax.Array | np.ndarray:
    if not isinstance(leaf, jax.Array):
        return np.asarray(leaf)
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def _like(leaf: Any, value: np.ndarray) -> Any:
    if not isinstance(leaf, jax.Array):
        return value if isinstance(leaf, np.ndarray) else type(leaf)(value[()])
    # An array that was committed to no device stays so, to follow those that it meets.
    sharding = sharding_of(leaf)
    if _is_key(leaf):
        key = jax.random.wrap_key_data(jnp.array(value), impl=jax.random.key_impl(leaf))
        return jax.device_put(key, sharding)
    return jax.device_put(value, sharding, may_alias=False)  # its own buffer: a step may donate it
