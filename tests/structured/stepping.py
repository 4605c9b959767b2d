"""Steps of an optimizer with row masks, for the tests of ResRep."""

import jax
import jax.numpy as jnp
import optax

from jaxsparse.structured import with_row_masks


def trained(tx, params, masks, steps, gradient=jnp.zeros_like):
    """Params after every step, stacked, and the last state."""
    state = tx.init(params) if masks is None else with_row_masks(tx.init(params), masks)

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(jax.tree.map(gradient, params), state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), params

    (_, state), path = jax.jit(lambda c: jax.lax.scan(step, c, length=steps))((params, state))
    return path, state
