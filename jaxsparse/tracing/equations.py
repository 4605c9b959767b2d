"""Running equations of a jaxpr, for analyses that compute as they walk."""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp


def bound(eqn: Any, operands: Iterable[Any]) -> list[Any]:
    """Runs an equation in JAX: at once, or as a part of what is being traced.

    Args:
      eqn: of a jaxpr.
      operands: arrays, tracers or numbers, one for each input of the equation.

    Returns:
      Its outputs.
    """
    params = eqn.primitive.get_bind_params(eqn.params)
    arrays = [x if isinstance(x, jax.Array) else jnp.asarray(x) for x in operands]
    found = eqn.primitive.bind(*arrays, **params)
    return list(found) if eqn.primitive.multiple_results else [found]
