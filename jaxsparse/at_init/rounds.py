"""From scores to masks in one round or many, each round scoring what the last one left."""

from collections.abc import Callable
from typing import Any, Unpack

import jax
import jax.numpy as jnp

from jaxsparse.checks import check_in, check_whole
from jaxsparse.masks import dense_masks
from jaxsparse.one_shot import ScoreOptions, masks_from_scores
from jaxsparse.paths import leaves_by_path, listed, prunable_leaves, with_leaves
from jaxsparse.types import Leaves, PyTree


def prune_in_rounds(
    score: Callable[[PyTree], PyTree],
    params: PyTree,
    sparsity: float | None,
    num_rounds: int,
    **options: Unpack[ScoreOptions],
) -> PyTree:
    """Returns masks of the sparsity asked for, in rounds of equal factors.

    After round k of n the density is (1 - sparsity)^(k/n), of all prunable weights. Masks are
    nested: a pruned weight scores below all others.

    Args:
      score: masks to a tree like params with the scores of active weights at prunable leaves.
      params: of the network.
      sparsity: as in `masks_from_scores`; with None, for N:M patterns, there is one round.
      num_rounds: at least 1.
      **options: as in `masks_from_scores`.

    Raises:
      ValueError: a score is NaN or infinite, or all of a round are 0; and as `masks_from_scores`.
    """
    check_whole("num_rounds", num_rounds, 1)
    masks = dense_masks(params)
    steps = [None] if sparsity is None else _sparsities(sparsity, num_rounds)
    for number, step in enumerate(steps, 1):
        scores = score(masks)
        check_scores(scores, masks, number=number, **options)
        masks = masks_from_scores(_pruned_last(scores, masks, **options), step, **options)
    return masks


def _sparsities(sparsity: float, num_rounds: int) -> list[float]:
    density = 1.0 - check_in("sparsity", sparsity, "[0, 1)")
    between = [1.0 - density ** (k / num_rounds) for k in range(1, num_rounds)]
    return [*between, sparsity]


def check_scores(
    scores: PyTree, masks: PyTree, *, number: int = 1, **options: Unpack[ScoreOptions]
) -> None:
    """Refuses scores that do not rank weights; waits for the device.

    Raises:
      ValueError: names the first leaf with a score that is not finite; or all scores are 0.
    """
    leaves = prunable_leaves(scores, options.get("prunable"))
    bad, nonzero = jax.device_get(_looked_at(leaves))
    for path, num in bad.items():
        if num:
            raise ValueError(
                f"{num} of {leaves[path].size} scores of {path} are not finite (round {number}): "
                f"the loss or a gradient is, or outputs leave the range of the network's dtype"
            )
    if not any(nonzero.values()):
        raise ValueError(
            f"all scores are 0 (round {number}): no active weight of {listed(leaves)} has an "
            f"effect on the output"
        )


@jax.jit
def _looked_at(leaves: Leaves) -> tuple[dict[str, Any], dict[str, Any]]:
    bad = {path: (~jnp.isfinite(x)).sum() for path, x in leaves.items()}
    return bad, {path: (x != 0).any() for path, x in leaves.items()}


def _pruned_last(scores: PyTree, masks: PyTree, **options: Unpack[ScoreOptions]) -> PyTree:
    leaves = prunable_leaves(scores, options.get("prunable"))
    given = leaves_by_path(masks)
    return with_leaves(scores, _below({p: (x, given[p]) for p, x in leaves.items()}))


@jax.jit
def _below(pairs: dict[str, tuple[jax.Array, jax.Array]]) -> dict[str, jax.Array]:
    """Scores that are lower than all others where a weight is pruned already."""
    return {path: jnp.where(mask, x, -jnp.inf) for path, (x, mask) in pairs.items()}
