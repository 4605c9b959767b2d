"""The products of ResNet-50 v1.5 at 224 x 224, for plans: convolutions and the classifier, traced.

Nothing here is ever run or trained. There are no norms, biases and activations, and slicing stands
for the max-pooling, because none of them is counted; shapes, strides and shortcuts are the real
ones: 25,502,912 weights, 8,178,368,512 forward FLOPs.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

STAGES = ((3, 64, 1), (4, 128, 2), (6, 256, 2), (3, 512, 2))  # blocks, width, stride of the first
EXPANSION = 4

Params = dict[str, dict[str, Any]]


def init(num_classes: int = 1000) -> Params:
    """Returns the shapes of all kernels: float32, (height, width, in, out) and (in, out)."""
    params = {"conv1": _kernel(7, 7, 3, 64)}
    width_in = 64
    for stage, (num_blocks, width, _) in enumerate(STAGES, start=1):
        for block in range(1, num_blocks + 1):
            name, width_out = f"stage{stage}_block{block}", EXPANSION * width
            params[f"{name}_conv1"] = _kernel(1, 1, width_in, width)
            params[f"{name}_conv2"] = _kernel(3, 3, width, width)
            params[f"{name}_conv3"] = _kernel(1, 1, width, width_out)
            if block == 1:
                params[f"{name}_shortcut"] = _kernel(1, 1, width_in, width_out)
            width_in = width_out
    return params | {"fc": _kernel(width_in, num_classes)}


def apply(params: Params, x: jax.Array) -> jax.Array:
    """Maps float[batch, 224, 224, 3] images to float[batch, num_classes], to be traced only."""
    x = _conv(x, params["conv1"], stride=2)[:, ::2, ::2]
    for stage, (num_blocks, _, first_stride) in enumerate(STAGES, start=1):
        for block in range(1, num_blocks + 1):
            name, stride = f"stage{stage}_block{block}", first_stride if block == 1 else 1
            y = _conv(x, params[f"{name}_conv1"])
            y = _conv(y, params[f"{name}_conv2"], stride)  # v1.5: the stride is on the 3 x 3
            y = _conv(y, params[f"{name}_conv3"])
            x = y + (_conv(x, params[f"{name}_shortcut"], stride) if block == 1 else x)
    return jnp.mean(x, (1, 2)) @ params["fc"]["kernel"]


def _kernel(*shape: int) -> dict[str, Any]:
    return {"kernel": jax.ShapeDtypeStruct(shape, jnp.float32)}


def _conv(x: jax.Array, layer: dict[str, Any], stride: int = 1) -> jax.Array:
    axes = ("NHWC", "HWIO", "NHWC")
    strides = (stride, stride)
    return lax.conv_general_dilated(x, layer["kernel"], strides, "SAME", dimension_numbers=axes)
