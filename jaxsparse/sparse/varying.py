"""Inside `jax.shard_map`: what is the same on all devices, and what varies over them.

JAX follows this by the type of every array and asks that what enters one call agrees in it. Images
that are cut up and weights that are not do not agree.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxsparse.types import PyTree


def varying_alike(*trees: PyTree) -> tuple[Any, ...]:
    """Returns the trees, all of whose arrays vary over the devices as far as any of them does.

    The numbers stay what they are. The gradient of an array that was the same on all devices
    becomes the sum over the devices. Outside of `jax.shard_map`, or where it does not check what
    varies, this does nothing.
    """
    axes = frozenset[Any]().union(*(_axes(x) for x in jax.tree.leaves(trees)))
    vary = lambda x: lax.pcast(x, more, to="varying") if (more := tuple(axes - _axes(x))) else x
    return jax.tree.map(vary, trees) if axes else trees


def result_type(shape: tuple[int, ...], like: jax.Array) -> jax.ShapeDtypeStruct:
    """Returns the type of an array of a shape that varies over the devices as `like` does."""
    return jax.eval_shape(lambda x: jnp.zeros_like(x, shape=shape), like)


def _axes(x: Any) -> frozenset[Any]:
    return jax.typeof(x).manual_axis_type.varying
