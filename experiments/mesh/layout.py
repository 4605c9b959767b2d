"""The layout of a run on a mesh of devices: the data cut up, the state whole or cut up.

The mesh has one axis, "data". A batch is cut along its images. The state is on every device, or
fully sharded: each leaf is cut along its longest axis that the devices divide. Masks and optimizer
slots have the shapes of their weights, and so lie where these lie.
"""

import os
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXIS = "data"
SMALLEST = 2**12
"""Leaves with fewer entries stay on every device: to gather them costs more than to hold them."""


def give_cpu_devices_threads() -> None:
    """Gives CPU devices that are forced (JAX_NUM_CPU_DEVICES) more threads than there are cores.

    Otherwise all threads may wait in an all-reduce for a device whose convolution waits for a
    thread, and XLA ends the process after 40 seconds. Call it before JAX looks for its devices; a
    number of threads in NPROC stays.
    """
    num_devices: int = jax.config.values["jax_num_cpu_devices"]
    if num_devices > 1:
        os.environ.setdefault("NPROC", str(4 * num_devices))


def make_mesh(devices: Sequence[Any] | None = None) -> Mesh:
    """Returns the mesh of these devices; None takes all devices of all processes."""
    devices = jax.devices() if devices is None else devices
    return jax.make_mesh((len(devices),), (AXIS,), axis_types=(AxisType.Auto,), devices=devices)


def shardings(mesh: Mesh, tree: Any, *, fsdp: bool) -> Any:
    """Returns a sharding for every leaf of a state.

    Args:
      mesh: of `make_mesh`.
      tree: arrays or their shapes.
      fsdp: cut the leaves up; otherwise each device holds the whole state.
    """
    place = lambda x: NamedSharding(mesh, _cut(np.shape(x), mesh.size) if fsdp else PartitionSpec())
    return jax.tree.map(place, tree)


def _cut(shape: tuple[int, ...], num_devices: int) -> PartitionSpec:
    """Returns the cut of a leaf along its longest axis that the devices divide, the last of equals.

    >>> tuple(_cut((3, 3, 256, 512), 8)), tuple(_cut((2048, 1000), 16))
    ((None, None, None, 'data'), ('data', None))
    >>> tuple(_cut((64,), 8)), tuple(_cut((7, 1001), 8))
    ((), ())
    """
    fits = [i for i, size in enumerate(shape) if size % num_devices == 0]
    if not fits or np.prod(shape) < SMALLEST:
        return PartitionSpec()
    longest = max(fits, key=lambda i: (shape[i], i))
    return PartitionSpec(*(AXIS if i == longest else None for i in range(len(shape))))


def spread(mesh: Mesh, arrays: Any, *, axis: int = 0) -> Any:
    """Makes global arrays of what each process has, one part after the other.

    Args:
      mesh: of `make_mesh`.
      arrays: a tree of NumPy arrays; each process has as many entries along `axis`.
      axis: that is cut over the devices.
    """
    sharding = NamedSharding(mesh, PartitionSpec(*[None] * axis, AXIS))
    return jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), arrays
    )


def check_batch_size(mesh: Mesh, batch_size: int, accumulate: int) -> None:
    """Refuses a batch that the devices cannot share evenly.

    Raises:
      ValueError: names the flag and the numbers near it that work.
    """
    parts = mesh.size * accumulate
    if batch_size % parts == 0:
        return
    below = batch_size - batch_size % parts
    near = [n for n in (below, below + parts) if n > 0]
    each = f"{mesh.size} devices" + (f" in {accumulate} micro-batches each" * (accumulate > 1))
    raise ValueError(
        f"--batch_size={batch_size} cannot be cut evenly over {each}; take "
        f"{' or '.join(map(str, near))}"
    )
