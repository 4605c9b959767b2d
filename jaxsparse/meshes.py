"""The mesh of a tree, and other arrays placed beside its leaves.

A state belongs on the mesh of its params: masks and slots as their weights are, everything else on
all devices. Traced arrays are left alone, because `out_shardings` says where they go.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, Sharding

from jaxsparse.types import PyTree


def mesh_of(tree: PyTree) -> Mesh | None:
    """Returns the mesh of the first leaf that was placed on one; None if there is none."""
    found = (sharding.mesh for sharding in map(placed_by, jax.tree.leaves(tree)) if sharding)
    return next((mesh for mesh in found if isinstance(mesh, Mesh)), None)


def placed_by(leaf: object) -> NamedSharding | None:
    """Returns the sharding of an array that was placed on a mesh, else None; None if traced."""
    if isinstance(leaf, Tracer) or not isinstance(leaf, jax.Array) or not leaf.committed:
        return None
    return leaf.sharding if isinstance(leaf.sharding, NamedSharding) else None


def on_all_devices(mesh: Mesh) -> NamedSharding:
    """Returns the sharding that gives every device of a mesh a copy."""
    return NamedSharding(mesh, PartitionSpec())


def shardings_on(mesh: Mesh, tree: PyTree) -> PyTree:
    """Returns the sharding of every leaf; those that lie on no mesh get a copy on every device."""
    return jax.tree.map(lambda leaf: placed_by(leaf) or on_all_devices(mesh), tree)


def replicate(mesh: Mesh | None, tree: PyTree) -> PyTree:
    """Returns the tree with a copy of every JAX array on every device of a mesh.

    Arrays that lie on a mesh already stay as they are; so do all if `mesh` is None.
    """
    if mesh is None:
        return tree
    free = lambda leaf: isinstance(leaf, jax.Array) and placed_by(leaf) is None
    everywhere = on_all_devices(mesh)
    return jax.tree.map(lambda leaf: place(leaf, everywhere) if free(leaf) else leaf, tree)


def place(x: PyTree, sharding: Sharding) -> PyTree:
    """Returns an array with another sharding; traced arrays and other leaves as they are.

    Args:
      x: an array or typed key. On a mesh of several processes, an array that is not on it yet must
        have the same values on each of them.
      sharding: its devices may belong to several processes.
    """
    if isinstance(x, Tracer) or not isinstance(x, jax.Array | np.ndarray):
        return x
    if isinstance(x, jax.Array):
        if x.committed and x.sharding.is_equivalent_to(sharding, x.ndim):
            return x
        # JAX copies between devices of one process, and between two layouts on the same devices.
        if sharding.is_fully_addressable or x.sharding.device_set == sharding.device_set:
            return jax.device_put(x, sharding)
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            data = place(jax.random.key_data(x), sharding)
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(x))
    here = np.asarray(x)
    return jax.make_array_from_callback(here.shape, sharding, lambda part: here[part])


def awaited(x: PyTree) -> PyTree:
    """Waits for results that lie on several CPU devices; returns them.

    Two programs that run at the same time, each with a collective, share the threads of such
    devices, and can wait for each other forever. So a loop that starts one after the other waits
    for each.

    >>> awaited({"a": jnp.ones(())})
    {'a': Array(1., dtype=float32)}
    """
    for leaf in jax.tree.leaves(x):
        if isinstance(leaf, jax.Array) and not isinstance(leaf, Tracer):
            devices = leaf.sharding.device_set
            if len(devices) > 1 and next(iter(devices)).platform == "cpu":
                leaf.block_until_ready()
    return x


def constrained(x: jax.Array, place: NamedSharding | None) -> jax.Array:
    """Returns a traced array that the compiled program puts in a place; None lets XLA choose."""
    if place is None:
        return x
    if AxisType.Explicit in place.mesh.axis_types:
        return jax.sharding.reshard(x, place)
    return jax.lax.with_sharding_constraint(x, place)
