"""The gradient of a batch that is cut over devices, with the exchange between them written out.

By default JAX finds the exchange by itself: a step under `jax.jit` is written as for one device,
and computes what one device would. Here each device computes the mean loss of its own part under
`jax.shard_map`; losses, gradients and statistics are then averaged. With norms over the whole batch
the result is the same up to rounding. With norms over the part of each device it is what PyTorch's
DistributedDataParallel and the published runs on several GPUs compute.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from experiments.mesh.layout import AXIS
from experiments.training.batches import Batch, Loaded
from experiments.training.run import Run


def explicit(mesh: Mesh, gradient: Callable[..., Any]) -> Callable[..., Any]:
    """Returns `loss_and_grads` with the exchange between devices written out.

    Whether norms are over the whole batch is up to the network: with `axis_name="data"` they are.

    Args:
      mesh: of `layout.make_mesh`.
      gradient: (run, params, collections, step, batch, part=0) to the loss, the gradient and the
        collections after the forward pass, all of them of one device.

    Returns:
      A function with these arguments. Params may be cut over devices: they are gathered.

    Raises:
      ValueError: when traced, if the run changes images at random on the device: every device would
        do so alike.
    """

    def everywhere(
        run: Run, params: Any, collections: Any, step: Any, batch: Batch, part: Any = 0
    ) -> Any:
        if run.augment is not None:
            raise ValueError("with explicit exchange images are changed where they are loaded")
        images, labels = batch.take()

        @functools.partial(
            jax.shard_map,
            mesh=mesh,
            in_specs=(P(), P(), P(), P(), P(), P(AXIS), P(AXIS)),
            out_specs=P(),
        )
        def on_each(
            seed: Any, params: Any, others: Any, step: Any, part: Any, images: Any, labels: Any
        ) -> Any:
            # A gradient by params that every device has alike would be summed already.
            own = jax.tree.map(lambda x: jax.lax.pcast(x, AXIS, to="varying"), params)
            here = run._replace(seed=seed)
            found = gradient(here, own, others, step, Loaded(images, labels), part)
            return jax.tree.map(mean, found)

        return on_each(run.seed, params, collections, step, part, images, labels)

    return everywhere


def mean(x: jax.Array) -> jax.Array:
    """Returns the mean over the devices; what they have alike already stays as it is."""
    return jax.lax.pmean(x, AXIS) if AXIS in jax.typeof(x).manual_axis_type.varying else x
