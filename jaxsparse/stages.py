"""The steps that events are made of: prune (one way) and exchange (drop and grow the same number).

A stage is a pure function (weights, signal, masks, row, key) -> Selected over the prunable leaves
by path. It neither zeroes a weight nor touches optimizer state: `Event.kept` does that, see
`jaxsparse.method`.
"""

import jax
import jax.numpy as jnp

from jaxsparse.counting import count_true
from jaxsparse.keys import fold_key
from jaxsparse.scores import gradient, magnitude, score_leaves
from jaxsparse.selection import top_k
from jaxsparse.timetable import take_fraction
from jaxsparse.types import Leaves, Rounding, Row, Score, Selected, Stage


def prune(score: Score = magnitude) -> Stage:
    """Keeps the best of the active weights, as many as the row's target says.

    Keeps min(target, active): over all leaves together where the target is one number (scope
    "global"), in each leaf where it is one per leaf (scope "layer"). It never makes a mask denser.
    With one number, the best `row.min_keep` weights of every leaf (or all that are active, if
    fewer) survive first.

    Args:
      score: what an active weight is worth.

    Differs from GraNet's code, which keeps what is strictly above (CIFAR) or at least at (ImageNet)
    the k-th value and so misses the count by one, by ties, or wholly when that value is 0.
    """

    def stage(
        weights: Leaves, signal: Leaves, masks: Leaves, row: Row, key: jax.Array | None
    ) -> Selected:
        scores = score_leaves(score, weights, signal, fold_key(key, "prune"))
        if isinstance(row.target, dict) or not row.min_keep:
            return top_k(scores, row.target, eligible=masks)
        reserved = top_k(scores, dict.fromkeys(masks, row.min_keep), eligible=masks)
        taken = sum(count_true(mask)[0] for mask in reserved.masks.values())
        others = {p: masks[p] & ~reserved.masks[p] for p in masks}
        chosen = top_k(scores, row.target - taken, eligible=others)
        return Selected({p: reserved.masks[p] | chosen.masks[p] for p in masks}, reserved.num_nan)

    return stage


def exchange(drop: Score = magnitude, grow: Score = gradient, *, rounding: Rounding) -> Stage:
    """In every leaf drops n of the active weights and grows as many of the inactive ones.

        n = floor or ceil (drop fraction * active)

    Candidates for growth are all positions that are inactive after the drop, those just dropped
    among them: one that is dropped and chosen again in the same exchange was never gone, and keeps
    its value and optimizer slots. On a dense leaf nothing changes.

    Args:
      drop: what an active weight is worth; the lowest go.
      grow: what an inactive position is worth; the highest come.
      rounding: "floor" (RigL, SET, SNFS) or "ceil" (GraNet, ITOP).

    Reference: Evci et al., "Rigging the Lottery", ICML 2020, algorithm 1; Liu et al., "Sparse
    Training via Boosting Pruning Plasticity with Neuroregeneration", NeurIPS 2021, section 4.
    """
    if rounding not in ("floor", "ceil"):
        raise ValueError(f"rounding {rounding!r} must be 'floor' or 'ceil'")

    def stage(
        weights: Leaves, signal: Leaves, masks: Leaves, row: Row, key: jax.Array | None
    ) -> Selected:
        # All leaves in one vector: small operations by leaf take long to compile.
        active = jnp.stack([count_true(mask)[0] for mask in masks.values()])
        n = take_fraction(active, row.drop, rounding)
        by_path = lambda counts: dict(zip(masks, counts, strict=True))
        worth = score_leaves(drop, weights, signal, fold_key(key, "drop"))
        stayed = top_k(worth, by_path(active - n), eligible=masks, num_eligible=active)
        promise = score_leaves(grow, weights, signal, fold_key(key, "grow"))
        inactive = {p: ~mask for p, mask in stayed.masks.items()}
        sizes = jnp.array([mask.size for mask in masks.values()], jnp.int32)
        grown = top_k(promise, by_path(n), eligible=inactive, num_eligible=sizes - (active - n))
        return Selected(
            {p: stayed.masks[p] | grown.masks[p] for p in masks},
            stayed.num_nan + grown.num_nan,
        )

    return stage
