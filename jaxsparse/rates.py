"""The learning rates of a run, step by step, before it starts."""

import jax
import jax.numpy as jnp
import numpy as np
import optax


def rates_of(learning_rate: float | optax.Schedule, start: int, stop: int) -> np.ndarray:
    """Returns the learning rates of the steps start, start + 1, ..., stop - 1 as float64.

    Args:
      learning_rate: number or schedule over steps, as the optimizer has it.
      start: completed steps before the first of them, at least 0.
      stop: completed steps after the last of them; no steps if it is not above `start`.

    >>> rates_of(optax.linear_schedule(1.0, 0.0, 4), 1, 4)
    array([0.75, 0.5 , 0.25])
    """
    if not callable(learning_rate):
        return np.full(max(stop - start, 0), float(learning_rate))
    rates = jax.jit(jax.vmap(lambda step: jnp.asarray(learning_rate(step), jnp.float32)))
    return np.asarray(rates(jnp.arange(start, stop)), np.float64)
