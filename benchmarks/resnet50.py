"""The prunable weights of ResNet-50: 54 leaves, 25,502,912 weights."""

import math

import jax
import jax.numpy as jnp

from jaxsparse.nn import resnet
from jaxsparse.paths import prunable_leaves


def params(seed: int) -> dict[str, jax.Array]:
    """Normal weights by path, with He's standard deviation, sqrt(2 / fan in)."""
    image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    shapes = jax.eval_shape(resnet(50).init, jax.random.key(0), image)["params"]
    leaves = prunable_leaves(shapes)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    return {
        path: jax.random.normal(key, leaf.shape, leaf.dtype)
        * jnp.float32(math.sqrt(2 / math.prod(leaf.shape[:-1])))
        for key, (path, leaf) in zip(keys, leaves.items(), strict=True)
    }
