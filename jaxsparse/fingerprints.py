"""Fingerprints: hashes of arrays that do not depend on how the arrays lie on devices.

    f(x) = sum over i of mix(word_i xor mix(i + 1))  modulo 2**32

A word is an entry's bits, i its index in C order. A sum has no order, so every device adds up its
own part, and one small all-reduce gives the total. The index is mixed in, so entries that change
places change the sum. `mix` is a bijection: a change of one word always changes the sum, and more
changes go unnoticed with a probability of about 2**-32.
"""

import functools
import math
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from jaxsparse.counting import mesh_axes
from jaxsparse.meshes import mesh_of, placed_by
from jaxsparse.paths import leaves_by_path
from jaxsparse.types import PyTree


def fingerprint(tree: PyTree) -> jax.Array:
    """Returns a hash of a tree of masks, or of any arrays: uint32[].

    Equal values give equal numbers on any number of devices and processes, replicated or sharded in
    any way. The number depends on every entry, its position, and the path of its leaf. Only sums
    move between devices. Works under jit; waits for nothing.

    Args:
      tree: any pytree of arrays, typed keys and numbers. A leaf of 2**32 entries or more is hashed
        too, but positions that are 2**32 apart count as one.

    >>> masks = {"kernel": jnp.array([[True, False, True]])}
    >>> fingerprint(masks) == fingerprint({"kernel": jnp.array([[True, False, True]])})
    Array(True, dtype=bool)
    >>> fingerprint(masks) == fingerprint({"kernel": jnp.array([[True, True, False]])})
    Array(False, dtype=bool)
    """
    return _of_tree({path: _hashable(leaf) for path, leaf in leaves_by_path(tree).items()})


def array_fingerprint(x: jax.Array | np.ndarray) -> jax.Array:
    """Returns the hash of one array: uint32[]; see the top of this module.

    Args:
      x: numbers or bool, any shape. NumPy's 64-bit types are hashed whole, though JAX would cut
        them. The shape counts only through the positions: a reshaped array has the same hash.
    """
    return _of_array(_hashable(x))


def check_replicas(tree: PyTree, *, name: str = "masks") -> None:
    """Checks that devices which should hold the same values do; waits for the device.

    Each device hashes its own part of every leaf, and one all-reduce compares the hashes of devices
    that hold the same part. Replicas drift apart if a step draws from another key on each device,
    or if gradients were not added up. JAX itself does not notice.

    Args:
      tree: masks, or any pytree of arrays, on one mesh. Leaves that lie on one device, or are no
        JAX arrays, have no replicas to compare.
      name: what the tree is, for the message.

    Raises:
      ValueError: copies differ (names the first leaf), or a leaf lies on several devices without a
        mesh, so that it is not known which of them hold the same part.
    """
    by_mesh: dict[Mesh, dict[str, tuple[PartitionSpec, jax.Array]]] = {}
    for path, leaf in leaves_by_path(tree).items():
        if not isinstance(leaf, jax.Array) or len(leaf.sharding.device_set) == 1:
            continue
        sharding, mesh = placed_by(leaf), mesh_of(leaf)
        if sharding is None or mesh is None:
            raise ValueError(
                f"{name} at {path} has {leaf.sharding}; copies can be compared on a mesh, so place "
                "it by a NamedSharding"
            )
        by_mesh.setdefault(mesh, {})[path] = sharding.spec, _hashable(leaf)
    for mesh, leaves in by_mesh.items():
        specs, arrays = zip(*leaves.values(), strict=True)
        differ = np.asarray(_differ(mesh, specs, arrays))
        if differ.any():
            first = list(leaves)[int(np.argmax(differ))]
            raise ValueError(
                f"{name} at {first}: copies of it on different devices differ ({differ.sum()} of "
                f"{differ.size} leaves have such copies)"
            )


@jax.jit
def _of_tree(leaves: dict[str, jax.Array]) -> jax.Array:
    by_leaf = [
        _mix(_sum_of_words(leaf) ^ np.uint32(zlib.crc32(path.encode())))
        for path, leaf in leaves.items()
    ]
    return sum(by_leaf, jnp.uint32(0))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _differ(
    mesh: Mesh, specs: tuple[PartitionSpec, ...], leaves: tuple[jax.Array, ...]
) -> jax.Array:
    """bool[leaves], whether copies of a leaf, or of one of its parts, differ."""

    def compare(*parts: jax.Array) -> jax.Array:
        found = []
        for part, spec in zip(parts, specs, strict=True):
            own = _sum_of_words(part)
            cut = mesh_axes(spec)
            copies = tuple(axis for axis in mesh.axis_names if axis not in cut)
            # The largest hash, and by its complement the smallest one.
            most, least = lax.pmax(jnp.stack([own, ~own]), copies) if copies else (own, ~own)
            found.append(most != ~least)
        return lax.pmax(jnp.stack(found).astype(jnp.int32), mesh.axis_names) > 0

    compared = jax.shard_map(
        compare, mesh=mesh, in_specs=specs, out_specs=PartitionSpec(), check_vma=False
    )
    return compared(*leaves)


def _hashable(x: Any) -> Any:
    """An argument of `_sum_of_words`: a JAX array, or a NumPy one that JAX takes as it is."""
    if isinstance(x, jax.Array):
        return jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
    x = np.ascontiguousarray(x).reshape(np.shape(x))
    if x.dtype.itemsize < 8 or x.size == 0:
        return x
    return x.reshape(-1).view(np.uint32).reshape(*x.shape, -1)


_of_array = jax.jit(lambda x: _sum_of_words(x))


def _sum_of_words(x: jax.Array) -> jax.Array:
    words = _words(x)
    index = words ^ words  # laid out as the array if axes are explicit, which `zeros_like` is not
    for axis in range(words.ndim):
        stride = math.prod(words.shape[axis + 1 :]) % 2**32
        index += lax.broadcasted_iota(jnp.uint32, words.shape, axis) * np.uint32(stride)
    return _mix(words ^ _mix(index + np.uint32(1))).sum(dtype=jnp.uint32)


def _words(x: jax.Array) -> jax.Array:
    """The bits of an array: uint32 of its shape; entries of 64 bits add an axis of two words."""
    if x.dtype == bool:
        return x.astype(jnp.uint32)
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        return _words(jnp.stack([x.real, x.imag], -1))
    kind = jnp.finfo if jnp.issubdtype(x.dtype, jnp.floating) else jnp.iinfo
    bits = kind(x.dtype).bits
    if bits == 64:
        return lax.bitcast_convert_type(x, jnp.uint32)
    return lax.bitcast_convert_type(x, jnp.dtype(f"uint{bits}")).astype(jnp.uint32)


def _mix(x: jax.Array) -> jax.Array:
    """A bijection of uint32 whose every output bit depends on every input bit.

    Reference: Wellons, "Prospecting for Hash Functions", 2018 (lowbias32).
    """
    x = (x ^ (x >> 16)) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * np.uint32(0x846CA68B)
    return x ^ (x >> 16)
