"""What a weight is worth: functions (w, g, key) -> score, higher means keep, or grow.

To try a new criterion write one more function of this form and hand it to a method:

    def movement(w, g, key):           # keep what moves away from zero (Sanh et al. 2020)
        return -w * g

    method = jaxsparse.gmp(sparsity=0.9, total_steps=10_000, score=movement)

`w` is the leaf's weights, 0 where inactive; `g` its dense gradient, or what the method's `observe`
made of it; `key` the leaf's own random key for this event, or None.
"""

from collections.abc import Sequence
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsparse.keys import fold_key
from jaxsparse.tracing.jaxprs import CallAnalysis, walk
from jaxsparse.types import Leaves, Score, Scores
from jaxsparse.units import GroupsByPath, pool, whole


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
    """|w g|, to first order the change of the loss without the weight (SNIP, Lee et al. 2019).

    A score to keep or drop by: it is 0 wherever w is, so nothing new grows by it.
    """
    return jnp.abs(w * g)


def as_given(w: jax.Array, g: jax.Array, key: jax.Array | None) -> jax.Array:
    """The leaf itself, where leaves are scores already (`masks_from_scores`)."""
    return w


def random(w: jax.Array, g: jax.Array, key: jax.Array | None) -> jax.Array:
    """Uniform in [0, 1): every candidate is as good as any other (SET).

    Raises:
      ValueError: no key was given.
    """
    if key is None:
        raise ValueError("a random score needs a key: call method.update(..., key=key)")
    return jax.random.uniform(key, np.shape(w), jnp.float32)


def score_leaves(
    score: Score,
    weights: Leaves,
    signal: Leaves,
    key: jax.Array | None,
    groups: GroupsByPath = MappingProxyType({}),
) -> Scores:
    """Returns the scores of all leaves, each with its own key.

    Scores that draw from their key are computed once and stored, and so are scores of units, which
    are few. Other scores are computed wherever they are needed.

    Args:
      score: called once per leaf, on its entries.
      weights: float arrays by path.
      signal: the same, the dense gradient.
      key: of this event and purpose, or None.
      groups: by path. If a leaf's groups are active as a whole, the score of such a unit is the sum
        over its entries.

    Raises:
      ValueError: a score has another shape than its leaf; names the leaf.
    """
    if not callable(score):
        raise ValueError(f"score {score!r} must be a function (w, g, key) -> array")

    def compute(inputs: tuple[Leaves, Leaves]) -> dict[str, jax.Array]:
        return {p: score(w, inputs[1][p], fold_key(key, p)) for p, w in inputs[0].items()}

    for path, kind in jax.eval_shape(compute, (dict(weights), dict(signal))).items():
        if kind.shape != np.shape(weights[path]):
            raise ValueError(
                f"the score of {path} has shape {kind.shape}, the leaf {np.shape(weights[path])}"
            )
    if _draws(score, next(iter(weights.values())), key):
        drawn = compute((weights, signal))
        return Scores(_pooled(drawn, groups), lambda scores: scores)
    if not whole(groups):
        return Scores((weights, signal), compute)
    of_units = {p: w for p, w in weights.items() if p in whole(groups)}
    stored = _pooled(compute((of_units, signal)), groups)
    others = {p: w for p, w in weights.items() if p not in of_units}
    return Scores((stored, (others, signal)), lambda inputs: inputs[0] | compute(inputs[1]))


def _pooled(scores: Leaves, groups: GroupsByPath) -> dict[str, jax.Array]:
    return dict(scores) | {p: pool(scores[p], g) for p, g in whole(groups).items()}


def _draws(score: Score, leaf: jax.Array, key: jax.Array | None) -> bool:
    """Whether the score uses its key."""
    if key is None:
        return False
    closed = jax.make_jaxpr(score)(leaf, leaf, key)
    return any(walk(closed, [False, False, True], _FromKey()))


class _FromKey(CallAnalysis[bool]):
    """Whether a value is computed from the key."""

    def constant(self, atom: Any, value: Any) -> bool:
        del atom, value
        return False

    def operation(self, eqn: Any, operands: list[bool]) -> Sequence[bool]:
        return [any(operands)] * len(eqn.outvars)
