"""What a weight is worth: functions (w, g, key) -> score, higher means keep, or grow.

To try a new criterion write one more function of this form and hand it to a method:

    def movement(w, g, key):           # keep what moves away from zero (Sanh et al. 2020)
        return -w * g

    method = jaxsparse.gmp(sparsity=0.9, total_steps=10_000, score=movement)

`w` is the leaf's weights, 0 where inactive; `g` its dense gradient, or what the method's `observe`
made of it; `key` the leaf's own random key for this event, or None.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxsparse.masks import fold_key
from jaxsparse.types import Leaves, Score


def magnitude(w: jax.Array, g: jax.Array, key: jax.Array | None) -> jax.Array:
    """|w|, the score that GMP, GraNet, RigL and SET drop by.

    >>> import jax.numpy as jnp
    >>> magnitude(jnp.array([0.5, -2.0]), jnp.zeros(2), None)
    Array([0.5, 2. ], dtype=float32)
    """
    return jnp.abs(w)


def gradient(w: jax.Array, g: jax.Array, key: jax.Array | None) -> jax.Array:
    """|g|, the score that RigL and GraNet grow by, and SNFS with g averaged over steps."""
    return jnp.abs(g)


def saliency(w: jax.Array, g: jax.Array, key: jax.Array | None) -> jax.Array:
    """|w g|, to first order the change of the loss without the weight (SNIP, Lee et al. 2019)."""
    return jnp.abs(w * g)


def random(w: jax.Array, g: jax.Array, key: jax.Array | None) -> jax.Array:
    """Uniform in [0, 1): every candidate is as good as any other (SET).

    Raises:
      ValueError: no key was given.
    """
    if key is None:
        raise ValueError("a random score needs a key: call method.update(..., key=key)")
    return jax.random.uniform(key, np.shape(w), jnp.float32)


def score_leaves(
    score: Score, weights: Leaves, signal: Leaves, key: jax.Array | None
) -> dict[str, jax.Array]:
    """Scores every leaf, each with its own key.

    Raises:
      ValueError: a score has another shape than its leaf; names the leaf.
    """
    scores = {p: score(weights[p], signal[p], fold_key(key, p)) for p in weights}
    for path, values in scores.items():
        if np.shape(values) != np.shape(weights[path]):
            raise ValueError(
                f"the score of {path} has shape {np.shape(values)}, the leaf "
                f"{np.shape(weights[path])}"
            )
    return scores
