"""Runs equations of a jaxpr at once, on arrays of NumPy and keys of random numbers."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsparse.tracing.equations import bound


def computed(eqn: Any, operands: list[Any]) -> list[Any]:
    """Runs an equation on arrays; those that are repeated stay views."""
    name, params = eqn.primitive.name, eqn.params
    if name == "broadcast_in_dim" and len(operands) == 1:
        x = np.asarray(operands[0])
        shape = [1] * len(params["shape"])
        for axis, length in zip(params["broadcast_dimensions"], x.shape, strict=True):
            shape[axis] = length
        return [np.broadcast_to(x.reshape(shape), params["shape"])]
    with jax.ensure_compile_time_eval():  # a function that is being traced may call a network
        found = bound(eqn, operands)
    return [x if is_key(x) else np.asarray(x) for x in found]


def is_key(x: Any) -> bool:
    """Whether an array holds keys of random numbers, which NumPy has not."""
    return jnp.issubdtype(getattr(x, "dtype", np.float32), jax.dtypes.extended)
