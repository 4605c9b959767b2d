"""Counting True in one pass: one reduction on one device, one small all-reduce on a mesh."""

import functools
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_batching import custom_vmap
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import AxisType, NamedSharding, PartitionSpec, SingleDeviceSharding

from jaxsparse.meshes import awaited


@functools.partial(jax.jit, inline=True)  # without jit, every call would compile it again
def count_true(*masks: jax.Array) -> tuple[jax.Array, ...]:
    """Returns int32[] for each mask: its number of True. Reads all masks in one pass.

    Masks may be sharded in any way. Every device counts its own part, and all-reduces add up the
    counts. (Under `vmap`, and with the older GSPMD partitioner, XLA gathers the counts of the parts
    instead.) `jax.export` cannot serialise a program for a mesh that contains such a count; it can
    for one device.

    Args:
      *masks: bool, all of one shape.

    >>> import jax.numpy as jnp
    >>> count_true(jnp.array([True, False, True]), jnp.zeros(3, bool))
    (Array(2, dtype=int32), Array(0, dtype=int32))
    """
    first, *others = masks
    if others:
        return _count(*masks)
    # On CPU, a reduction of one operand first stores the mask as integers, a reduction of two does
    # not. The barrier keeps XLA from removing the second operand.
    return lax.optimization_barrier(_count(first, ~first))[:1]


def num_true(masks: Iterable[jax.Array | np.ndarray]) -> list[int]:
    """Returns the number of True in each mask, as Python ints; waits for the device.

    JAX arrays are counted on their devices, and only the counts come to the host. They may be
    sharded over devices and processes. In an array of another dtype, entries other than 0 count.

    >>> num_true([jnp.array([True, False, True]), np.zeros(3, bool)])
    [2, 0]
    """
    count = lambda x: awaited(_num_set(x)) if isinstance(x, jax.Array) else np.count_nonzero(x)
    counts = [count(x) for x in masks]
    return [int(count) for count in jax.device_get(counts)]


@jax.jit
def _num_set(x: jax.Array) -> jax.Array:
    return count_true(x if x.dtype == bool else x != jnp.zeros((), x.dtype))[0]


def _count_plainly(*masks: jax.Array) -> tuple[jax.Array, ...]:
    # One variadic reduction: separate sums would not be fused on CPU, so each would read its mask.
    ones = [mask.astype(jnp.int32) for mask in masks]
    add = lambda a, b: tuple(map(lax.add, a, b))
    return tuple(lax.reduce(ones, [np.int32(0)] * len(ones), add, range(masks[0].ndim)))


def _count_parts(axes: tuple[str, ...], *masks: jax.Array) -> tuple[jax.Array, ...]:
    """The counts over a mesh, computed from one device's part of the masks."""
    counts = _count_plainly(*masks)
    return tuple(lax.psum(jnp.stack(counts), axes)) if axes else counts


# Without this rule XLA gathers the partial results of a variadic reduction instead of adding them
# up.
@custom_partitioning
def _count_on_any_mesh(*masks: jax.Array) -> tuple[jax.Array, ...]:
    return _count_plainly(*masks)


def _partition(mesh: Any, args: Any, results: Any) -> tuple[Any, ...]:
    sharding = args[0].sharding
    if not isinstance(sharding, NamedSharding):  # no mesh is known: every device counts everything
        everywhere = SingleDeviceSharding(jax.devices()[0])
        return mesh, _count_plainly, (everywhere,) * len(results), (everywhere,) * len(args)
    counting = lambda *masks: _count_parts(mesh_axes(sharding.spec), *masks)
    return mesh, counting, _replicated(mesh, args, results), (sharding,) * len(args)


def _replicated(mesh: Any, args: Any, results: Any) -> tuple[NamedSharding, ...]:
    return (NamedSharding(mesh, PartitionSpec()),) * len(results)


def _rule(mesh: Any, args: Any, results: Any) -> str:
    dimensions = " ".join(f"d{axis}" for axis in range(len(args[0].shape)))
    return ", ".join([dimensions] * len(args)) + " -> " + ", ".join([""] * len(results))


def mesh_axes(spec: PartitionSpec) -> tuple[str, ...]:
    """Returns the names of all mesh axes that a sharding uses."""
    names = (name if isinstance(name, tuple) else (name,) for name in spec if name is not None)
    return tuple(name for group in names for name in group)


_count_on_any_mesh.def_partition(
    partition=_partition, infer_sharding_from_operands=_replicated, sharding_rule=_rule
)


@custom_vmap
def _count(*masks: jax.Array) -> tuple[jax.Array, ...]:
    sharding = jax.typeof(masks[0]).sharding
    if AxisType.Explicit not in sharding.mesh.axis_types:
        return _count_on_any_mesh(*masks)
    if not (axes := mesh_axes(sharding.spec)):
        return _count_plainly(*masks)
    return jax.shard_map(
        lambda *masks: _count_parts(axes, *masks),
        mesh=sharding.mesh,
        in_specs=sharding.spec,
        out_specs=PartitionSpec(),
        axis_names=set(axes),
    )(*masks)


@_count.def_vmap
def _count_batch(
    axis_size: int, batched: list[bool], *masks: jax.Array
) -> tuple[tuple[jax.Array, ...], tuple[bool, ...]]:
    axes = tuple(0 if is_batched else None for is_batched in batched)
    return jax.vmap(_count_plainly, axes)(*masks), (True,) * len(masks)
