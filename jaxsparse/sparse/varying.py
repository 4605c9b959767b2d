"""Makes arrays agree inside `jax.shard_map`: which of them vary over the devices.

In `jax.shard_map` the type of an array says over which mesh axes it varies. The arguments of one
call must agree in that. Images that are sharded and weights that are replicated do not.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxsparse.types import PyTree


def varying_alike(*trees: PyTree) -> tuple[Any, ...]:
    """Returns the trees with every array marked as varying over the axes that any of them has.

    No number changes. The gradient of an array that was the same on all devices becomes the sum
    over the devices. Outside of `jax.shard_map`, or with `check_vma=False`, this does nothing.
    """
    axes = frozenset[Any]().union(*(_axes(x) for x in jax.tree.leaves(trees)))
    vary = lambda x: lax.pcast(x, more, to="varying") if (more := tuple(axes - _axes(x))) else x
    return jax.tree.map(vary, trees) if axes else trees


def result_type(shape: tuple[int, ...], like: jax.Array) -> jax.ShapeDtypeStruct:
    """Returns the type of an array of this shape that varies over the devices as `like` does."""
    return jax.eval_shape(lambda x: jnp.zeros_like(x, shape=shape), like)


def _axes(x: Any) -> frozenset[Any]:
    return jax.typeof(x).manual_axis_type.varying
