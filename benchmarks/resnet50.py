"""Parameters of the shapes of ResNet-50: 54 leaves, 25,502,912 weights."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def shapes() -> dict[str, tuple[int, ...]]:
    """Kernels of ResNet-50 for ImageNet by name, in Flax's layout."""
    found = {"conv1": (7, 7, 3, 64)}
    channels = 64
    for stage, (blocks, width) in enumerate(zip((3, 4, 6, 3), (64, 128, 256, 512), strict=True)):
        for block in range(blocks):
            name = f"stage{stage}_block{block}"
            found[f"{name}_conv1"] = (1, 1, channels, width)
            found[f"{name}_conv2"] = (3, 3, width, width)
            found[f"{name}_conv3"] = (1, 1, width, 4 * width)
            if block == 0:
                found[f"{name}_shortcut"] = (1, 1, channels, 4 * width)
            channels = 4 * width
    return found | {"fc": (channels, 1000)}


def params(seed: int) -> dict[str, Any]:
    """Normal weights with He's standard deviation."""
    key = jax.random.key(seed)
    return {
        name: {"kernel": jax.random.normal(jax.random.fold_in(key, i), shape) * deviation(shape)}
        for i, (name, shape) in enumerate(shapes().items())
    }


def deviation(shape: tuple[int, ...]) -> jax.Array:
    """sqrt(2 / fan in)."""
    return jnp.float32(np.sqrt(2 / np.prod(shape[:-1])))
