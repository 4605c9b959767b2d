"""Shapes, values and methods that the tests of patterns share."""

import jax
import jax.numpy as jnp
import numpy as np

import jaxsparse

HALF = (jnp.int32(1), jnp.int32(2))
TWO_OF_FOUR = jaxsparse.n_of_m(2, 4)
RUN = {"total_steps": 10, "update_interval": 2}
METHODS = {
    "static": lambda sparsity: jaxsparse.static(sparsity=sparsity, total_steps=10),
    "rigl": lambda sparsity: jaxsparse.rigl(sparsity=sparsity, **RUN),
    "set": lambda sparsity: jaxsparse.set_(sparsity=sparsity, **RUN),
    "snfs": lambda sparsity: jaxsparse.snfs(sparsity=sparsity, **RUN),
    "rigl_itop": lambda sparsity: jaxsparse.rigl_itop(sparsity=sparsity, **RUN),
    "set_itop": lambda sparsity: jaxsparse.set_itop(sparsity=sparsity, **RUN),
}


def shapes_of(**leaves):
    return {
        path: {"kernel": jax.ShapeDtypeStruct(shape, jnp.float32)} for path, shape in leaves.items()
    }


def drawn(seed, tree, dtype=jnp.float32):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), dtype), tree)


def picture(mask):
    """Rows of a matrix as strings of 0 and 1."""
    return ["".join("01"[int(bit)] for bit in row) for row in np.asarray(mask)]
