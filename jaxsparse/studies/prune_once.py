"""One pruning of a sparse or dense network at a rate of its remaining weights, with regrowth."""

import functools
import math

import jax
import numpy as np

from jaxsparse.checks import check_in
from jaxsparse.counting import count_true, num_true
from jaxsparse.keys import fold_key
from jaxsparse.masks import check_masks, dense_masks
from jaxsparse.paths import check_like, prunable_leaves, prunable_paths, with_leaves
from jaxsparse.scores import gradient, magnitude, score_leaves
from jaxsparse.selection.top_k import top_k
from jaxsparse.types import Leaves, OptionError, PyTree, Rules, Scope, Score


def prune_once(
    params: PyTree,
    masks: PyTree,
    rate: float,
    *,
    scope: Scope = "layer",
    score: Score = magnitude,
    regenerate: bool = False,
    grads: PyTree | None = None,
    prunable: Rules | None = None,
    key: jax.Array | None = None,
) -> tuple[PyTree, PyTree]:
    """Removes a share of the active weights, and lets each layer grow as many if asked to.

    Regrowth is by |gradient|, in each layer as many as it lost. Every position that is inactive
    after the pruning is a candidate, a weight that was just removed among them: it starts at 0
    again, unlike in `stages.exchange`.

    Args:
      params: any pytree of arrays.
      masks: bool, the structure and shapes of params; the active weights.
      rate: p, the share of the active weights to remove, in [0, 1).
      scope: "layer" leaves zeros_l + p * nnz_l zeros in each layer, rounded up; "global" keeps
        nnz * (1 - p) weights of the whole network, rounded down. A layer may come out empty.
      score: what an active weight is worth; the lowest go. The default looks at weights alone.
      regenerate: whether to grow.
      grads: the dense gradient at params, a tree like params; None if nothing looks at it.
      prunable: as in `prunable_paths`.
      key: for a score that draws at random.

    Returns:
      The new masks, and the masks of the weights that survived, which are equal without regrowth.

    Raises:
      ValueError: a rate or scope out of its range, trees that differ, or no gradient where the
        score or the regrowth looks at it.

    Differs from the official code in: counts are exact, whatever the ties are; a rate is meant as a
    decimal number, so that 0.1 of 30 weights are 3 and not 4, as in floating point.

    >>> import jax.numpy as jnp
    >>> params = {"kernel": jnp.array([[1.0, -4.0, 3.0, 2.0]])}
    >>> masks = {"kernel": jnp.array([[True, True, True, False]])}
    >>> prune_once(params, masks, 0.5)[0]
    {'kernel': Array([[False,  True, False, False]], dtype=bool)}
    """
    check_in("rate", rate, "[0, 1)")
    if scope not in ("layer", "global"):
        raise OptionError("scope", scope, "must be layer or global")
    if grads is None and (regenerate or score is not magnitude):
        raise ValueError("regrowth, and scores other than magnitude, need the gradient: give grads")
    masks = check_masks(masks, params)
    grads = params if grads is None else check_like(grads, params, name="grads", like="params")
    paths = prunable_paths(params, prunable)
    weights, signal, active = (prunable_leaves(t, paths=paths) for t in (params, grads, masks))
    counts = _kept(active, rate, scope)
    new, kept = _prune(weights, signal, active, counts, key, score=score, regenerate=regenerate)
    dense = dense_masks(params)
    return with_leaves(dense, new), with_leaves(dense, kept)


def _kept(active: Leaves, rate: float, scope: Scope) -> int | dict[str, int]:
    """How many weights pruning leaves: in all ("global") or in each leaf ("layer")."""
    counts = dict(zip(active, num_true(active.values()), strict=True))
    if scope == "global":
        return math.floor(sum(counts.values()) * (1.0 - rate) + 1e-6)
    zeros = {path: int(np.size(active[path])) - count for path, count in counts.items()}
    left = {path: math.ceil(zeros[path] + rate * counts[path] - 1e-6) for path in counts}
    return {path: int(np.size(active[path])) - left[path] for path in counts}


@functools.partial(jax.jit, static_argnames=("score", "regenerate"))
def _prune(
    weights: Leaves,
    signal: Leaves,
    active: Leaves,
    counts: int | dict[str, int],
    key: jax.Array | None,
    *,
    score: Score,
    regenerate: bool,
) -> tuple[Leaves, Leaves]:
    scores = score_leaves(score, weights, signal, fold_key(key, "prune"))
    kept = top_k(scores, counts, eligible=active).masks
    if not regenerate:
        return kept, kept
    lost = {p: count_true(active[p] & ~kept[p])[0] for p in kept}
    promise = score_leaves(gradient, weights, signal, None)
    grown = top_k(promise, lost, eligible={p: ~mask for p, mask in kept.items()}).masks
    return {p: kept[p] | grown[p] for p in kept}, kept
