"""A state as arrays by path, and back: the content of a checkpoint, independent of file formats.

The flat form has no containers. It can be described in JSON, compared with another state leaf by
leaf, and taken apart without the classes that it came from.
"""

import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding

from jaxsparse.fingerprints import array_fingerprint
from jaxsparse.meshes import awaited, place
from jaxsparse.paths import check_like, leaves_by_path
from jaxsparse.types import PyTree

T = TypeVar("T")


class Record(NamedTuple):
    """A description of one saved leaf, without its values.

    Attributes:
      dtype: dtype as a string; "key<fry>" for a typed key.
      shape: shape of the leaf; for keys, without the axis of the integers that make a key.
      checksum: `array_fingerprint` of the leaf, or what `kind` says.
      kind: "crc32" for the CRC-32 of the bytes in C order, which earlier versions saved.
    """

    dtype: str
    shape: tuple[int, ...]
    checksum: int
    kind: Literal["fingerprint", "crc32"] = "crc32"


def flatten(state: PyTree) -> tuple[dict[str, jax.Array | np.ndarray], dict[str, Record]]:
    """Returns the arrays of a state and their records, both by path.

    Typed keys become arrays of integers. Leaves without entries are left out. Checksums are
    computed where the arrays are; waits for the device.

    Args:
      state: any pytree of arrays, typed keys and numbers. Sharded arrays stay sharded. An array
        that is not shared by processes, if there are several, must be the same on all of them.

    Raises:
      ValueError: a leaf is none of these (names it), or no leaf has entries.
    """
    leaves = check_leaves(state)
    if not leaves:
        raise ValueError("state has no leaf with entries, so there is nothing to save")
    arrays = {name: _raw(leaf) for name, leaf in leaves.items()}
    sums = {name: awaited(array_fingerprint(array)) for name, array in arrays.items()}
    sums = jax.device_get(sums)
    records = {
        name: Record(dtype_of(leaf), tuple(np.shape(leaf)), int(sums[name]), "fingerprint")
        for name, leaf in leaves.items()
    }
    return arrays, records


def fill(state: PyTree, values: Mapping[str, jax.Array | np.ndarray]) -> PyTree:
    """Returns `state` with new values; every leaf keeps its type and its devices.

    Args:
      state: a tree like the one that was flattened; its values do not matter.
      values: arrays of `flatten` by path, on the host or in the leaf's own sharding. Leaves without
        a value stay as they are.
    """
    leaves = leaves_by_path(state)
    values = renamed(values, leaves)
    new = [_like(leaf, values[name]) if name in values else leaf for name, leaf in leaves.items()]
    return jax.tree.unflatten(jax.tree.structure(state), new)


def check_fits(records: Mapping[str, Record], state: PyTree, *, name: str) -> None:
    """Checks that a state has the paths, shapes and dtypes of some records.

    Args:
      records: records of `flatten`.
      state: the state at hand.
      name: name of the state that the records describe, for messages.

    Raises:
      ValueError: names the first leaf with another path, shape or dtype.
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
      ValueError: a leaf is no array or number, or is only the shape of one; names it.
    """
    leaves = leaves_by_path(state)
    for name, leaf in leaves.items():
        if isinstance(leaf, jax.ShapeDtypeStruct):
            raise ValueError(f"state at {name} is {leaf!r}, only a shape; make the array first")
        if not _is_number(leaf):
            raise ValueError(
                f"state at {name} is {leaf!r}; only arrays and numbers can be saved and restored, "
                f"so filter the rest out"
            )
    return {name: leaf for name, leaf in leaves.items() if np.size(leaf)}


def damaged(
    values: Mapping[str, jax.Array | np.ndarray], records: Mapping[str, Record]
) -> list[str]:
    """Returns the paths of the arrays that differ from their checksums; waits for the device.

    Args:
      values: arrays by path, sharded in any way where the record has a fingerprint.
      records: their records.
    """
    known = {path: record for path, record in records.items() if record.kind == "fingerprint"}
    found = jax.device_get({path: awaited(array_fingerprint(values[path])) for path in known})
    found |= {p: zlib.crc32(np.asarray(values[p]).tobytes()) for p in records if p not in known}
    return [path for path, record in records.items() if int(found[path]) != record.checksum]


def renamed(leaves: Mapping[str, T], paths: Iterable[str] | None = None) -> dict[str, T]:
    """Returns saved leaves under the paths that they have in the state at hand.

    Old versions left out the last part "value" of every path. Today's version leaves it out only if
    it has no siblings. The leaf "memory/value" beside "memory/key" was thus saved as "memory".
    Other programs may write every "value".

    Args:
      leaves: leaves by the path under which they were saved.
      paths: paths of the state at hand, or None if there is none. Then only a leaf at a path that
        other leaves are inside gets its "value" back.

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
    """Returns nested dicts, one level for every "/" in a path; a single leaf at "" is itself.

    Raises:
      ValueError: a leaf is inside another one; names both.

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
    value: jax.Array | np.ndarray, record: Record, like: Any = None, *, name: str
) -> jax.Array | np.ndarray:
    """Returns a leaf as an array of its saved dtype.

    Args:
      value: array of `flatten`, on the host or in the sharding of `like`.
      record: record of the leaf.
      like: an array or `jax.ShapeDtypeStruct` whose sharding is used; anything else has none.
      name: name of the leaf, for the error.

    Returns:
      A JAX array, sharded as `like` or on the default device; a NumPy array if JAX would cut it to
      32 bits.

    Raises:
      ValueError: the leaf is a key of a kind that JAX does not have.
    """
    sharding = sharding_of(like)
    if record.dtype.startswith("key<"):
        kinds = ("threefry2x32", "rbg", "unsafe_rbg")
        by_dtype = {dtype_of(jax.random.key(0, impl=kind)): kind for kind in kinds}
        if record.dtype not in by_dtype:
            raise ValueError(f"{name} has dtype {record.dtype}, none of {', '.join(by_dtype)}")
        return _placed_key(value, by_dtype[record.dtype], sharding)
    if jnp.result_type(value) != value.dtype:
        return value
    return _placed(value, sharding)


def sharding_to_read(leaf: Any, record: Record) -> Sharding | None:
    """Returns the sharding into which a leaf can be read part by part; None reads it to the host.

    Args:
      leaf: the array or `jax.ShapeDtypeStruct` that it will be like.
      record: record of the leaf. Its whole bytes are needed on the host for a CRC-32, and so are
        64-bit types that JAX would cut.
    """
    sharding = sharding_of(leaf)
    if sharding is None or record.kind == "crc32" or len(sharding.device_set) == 1:
        return None
    is_cut = not record.dtype.startswith("key<") and (
        jnp.dtype(record.dtype) != jax.dtypes.canonicalize_dtype(record.dtype)
    )
    return None if is_cut else sharding


def sharding_of(leaf: Any) -> Any:
    """Returns the sharding of a committed array or of a shape, or None if there is none."""
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return leaf.sharding
    return leaf.sharding if isinstance(leaf, jax.Array) and leaf.committed else None


def _heads(path: str) -> Iterator[str]:
    """The paths above a path: "a" and "a/b" for "a/b/c"."""
    return (path[:end] for end, character in enumerate(path) if character == "/")


def _is_number(leaf: Any) -> bool:
    """Whether a leaf is a number or an array of numbers; NumPy also has arrays of text or dates."""
    if isinstance(leaf, jax.Array):
        return True
    if not isinstance(leaf, np.ndarray | np.generic | bool | int | float):
        return False
    dtype = np.asarray(leaf).dtype  # object, for an integer beyond 64 bits
    return jnp.issubdtype(dtype, np.number) or jnp.issubdtype(dtype, np.bool_)


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def dtype_of(leaf: Any) -> str:
    """Returns the dtype of an array, key or number as a string, as in `Record`."""
    return str(leaf.dtype if isinstance(leaf, jax.Array) else np.asarray(leaf).dtype)


def _raw(leaf: Any) -> jax.Array | np.ndarray:
    if not isinstance(leaf, jax.Array):
        return np.asarray(leaf)
    array = jax.random.key_data(leaf) if _is_key(leaf) else leaf
    return np.asarray(array) if jax.process_count() > 1 and array.is_fully_addressable else array


def _like(leaf: Any, value: jax.Array | np.ndarray) -> Any:
    if not isinstance(leaf, jax.Array):
        return value if isinstance(leaf, np.ndarray) else type(leaf)(value[()])
    # An array that was not committed to a device stays uncommitted.
    sharding = sharding_of(leaf)
    if _is_key(leaf):
        return _placed_key(value, jax.random.key_impl(leaf), sharding)
    return _placed(value, sharding)


def _placed(value: jax.Array | np.ndarray, sharding: Sharding | None) -> jax.Array:
    if isinstance(value, jax.Array):
        return value
    if sharding is not None and not sharding.is_fully_addressable:
        return place(value, sharding)
    return jax.device_put(value, sharding, may_alias=False)  # its own buffer: a step may donate it


def _placed_key(value: jax.Array | np.ndarray, impl: Any, sharding: Sharding | None) -> jax.Array:
    if isinstance(value, jax.Array):
        return jax.random.wrap_key_data(value, impl=impl)
    key = jax.random.wrap_key_data(jnp.array(value), impl=impl)
    return key if sharding is None else place(key, sharding)
