"""Parameters of the shapes of ResNet-50: 54 leaves, 25,502,912 weights."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from experiments import resnet50_shapes


def params(seed: int) -> dict[str, Any]:
    """Normal weights with He's standard deviation, sqrt(2 / fan in)."""
    leaves, structure = jax.tree.flatten(resnet50_shapes.init())
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    return structure.unflatten(
        [
            jax.random.normal(key, leaf.shape, leaf.dtype)
            * jnp.float32(math.sqrt(2 / math.prod(leaf.shape[:-1])))
            for key, leaf in zip(keys, leaves, strict=True)
        ]
    )
