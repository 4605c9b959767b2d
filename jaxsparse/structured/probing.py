"""Gradients of random sums of outputs: they say what a network does with what its weights read."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxsparse.types import PyTree


def probe(apply_fn: Callable[..., Any], seed: int = 0) -> Callable[..., PyTree]:
    """Returns a compiled function from (variables, *inputs) to gradients like the variables.

    They are those of the sum of all outputs, each times a normal number. If what a weight reads is
    0, so is its gradient, whatever outputs count. Leaves of other than floats have gradients of
    `jax.dtypes.float0`.

    Args:
      apply_fn: function of (variables, *inputs), differentiable, of outputs in floating point.
      seed: of the normal numbers.

    Raises:
      ValueError: at the call, for an output of another dtype.
    """

    @jax.jit
    def grads(variables: PyTree, *inputs: Any) -> PyTree:
        def projected(variables: PyTree) -> jax.Array:
            outputs = jax.tree.leaves(apply_fn(variables, *inputs))
            if wrong := [y.dtype for y in outputs if not jnp.issubdtype(y.dtype, jnp.floating)]:
                raise ValueError(f"an output is {wrong[0]}; give a function of float outputs")
            keys = jax.random.split(jax.random.key(seed), len(outputs))
            draws = [jax.random.normal(k, y.shape) for k, y in zip(keys, outputs, strict=True)]
            return sum(((r * y).sum() for r, y in zip(draws, outputs, strict=True)), jnp.zeros(()))

        return jax.grad(projected, allow_int=True)(variables)

    return grads


def other_inputs(inputs: Any) -> Any:
    """Returns inputs with normal numbers in place of all that are floating-point."""
    leaves, treedef = jax.tree.flatten(inputs)
    keys = jax.random.split(jax.random.key(1), max(len(leaves), 1))
    is_float = lambda x: jnp.issubdtype(jnp.result_type(x), jnp.floating)
    new = [
        jax.random.normal(key, jnp.shape(x), jnp.result_type(x)) if is_float(x) else x
        for key, x in zip(keys, leaves, strict=False)
    ]
    return jax.tree.unflatten(treedef, new)
