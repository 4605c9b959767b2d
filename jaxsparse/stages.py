"""The steps that events are made of: prune, grow, and exchange (drop and grow the same number).

A stage is a pure function (weights, signal, masks, row, key) -> Selected over the prunable leaves
by path. It neither zeroes a weight nor touches optimizer state: `Event.kept` does that, see
`jaxsparse.method`. `method.update` compiles it; called by itself, outside of `jax.jit`, it is
compiled at every call.
"""

import jax
import jax.numpy as jnp
from jax import lax

from jaxsparse.comparable import comparable
from jaxsparse.counting import count_true
from jaxsparse.event_rows import take_fraction
from jaxsparse.keys import fold_key
from jaxsparse.scores import gradient, magnitude, score_leaves
from jaxsparse.selection.best_of_group import best_in_groups
from jaxsparse.selection.top_k import top_k, top_k_with_minimum
from jaxsparse.types import Leaves, Rounding, Row, Score, Scores, Selected, Stage
from jaxsparse.units import GroupsByPath, fixed, full_groups


@comparable
def prune(score: Score = magnitude) -> Stage:
    """Keeps the best of the active weights, as many as the row's target says.

    It keeps min(target, active): over all leaves together if the target is one number (scope
    "global"), in each leaf if it is one per leaf (scope "layer"). It never makes a mask denser. A
    single number first keeps the best `row.min_keep` weights of every leaf, or all that are active
    if those are fewer.

    Args:
      score: what an active weight is worth.

    Differs from GraNet's code, which keeps weights strictly above (CIFAR) or not below (ImageNet)
    the k-th value: it misses the count by one, by ties, or wholly when that value is 0.
    """

    def stage(
        weights: Leaves, signal: Leaves, masks: Leaves, row: Row, key: jax.Array | None
    ) -> Selected:
        scores = score_leaves(score, weights, signal, fold_key(key, "prune"), row.groups)
        if isinstance(row.target, dict):
            return top_k(scores, row.target, eligible=masks)
        return top_k_with_minimum(scores, row.target, row.min_keep, eligible=masks)

    return stage


@comparable
def grow(score: Score = gradient) -> Stage:
    """Adds the best of the inactive weights, up to the number that the row's target says.

    It is the mirror of `prune`: it brings the number of active weights to max(target, active), over
    all leaves together if the target is one number (scope "global"), in each leaf if it is one per
    leaf (scope "layer"). It never makes a mask sparser. `[prune(), grow()]` follows a density up
    and down: at each event one of the two has nothing to do. Weights that grow start at 0.

    Leaves with an N:M pattern stay as they are, since their number is held.

    Args:
      score: what an inactive weight is worth.
    """

    def stage(
        weights: Leaves, signal: Leaves, masks: Leaves, row: Row, key: jax.Array | None
    ) -> Selected:
        scores = score_leaves(score, weights, signal, fold_key(key, "grow"), row.groups)
        active = jnp.stack([count_true(mask)[0] for mask in masks.values()])
        if isinstance(row.target, dict):
            missing = jnp.stack([row.target[p] for p in masks]) - active
            missing = dict(zip(masks, missing, strict=True))
        else:
            missing = row.target - active.sum(dtype=jnp.int32)
        sizes = jnp.array([mask.size for mask in masks.values()], jnp.int32)
        inactive = {p: ~mask for p, mask in masks.items()}
        grown = top_k(scores, missing, eligible=inactive, num_eligible=sizes - active)
        return Selected({p: masks[p] | grown.masks[p] for p in masks}, grown.num_nan)

    return stage


@comparable
def exchange(drop: Score = magnitude, grow: Score = gradient, *, rounding: Rounding) -> Stage:
    """Drops n of the active weights of every leaf, and grows as many of the inactive ones.

        n = floor or ceil (drop fraction * active)

    Candidates for growth are all positions that are inactive after the drop, including those just
    dropped. A weight that is dropped and chosen again in the same exchange was never gone: it keeps
    its value and optimizer slots. A dense leaf does not change.

    A leaf with an N:M pattern drops weights wherever they are worth least, like any other leaf.
    Then every group that lost some grows as many, its own best; it always has enough candidates.
    (Masks from elsewhere are brought to the pattern: a group with too many active entries loses the
    worst, one with too few grows the best.)

    Args:
      drop: what an active weight is worth; the lowest go.
      grow: what an inactive position is worth; the highest come.
      rounding: "floor" (RigL, SET, SNFS) or "ceil" (GraNet, ITOP).

    Differs from the official codes in: counts are exact. GraNet's and ITOP's give active positions
    a score of 0 and let them take part: if fewer gradients differ from 0 than weights are to grow,
    the layer loses weights.

    Reference: Evci et al., "Rigging the Lottery", ICML 2020, algorithm 1; Liu et al., "Sparse
    Training via Boosting Pruning Plasticity with Neuroregeneration", NeurIPS 2021, section 4.
    """
    if rounding not in ("floor", "ceil"):
        raise ValueError(f"rounding {rounding!r} must be 'floor' or 'ceil'")

    def stage(
        weights: Leaves, signal: Leaves, masks: Leaves, row: Row, key: jax.Array | None
    ) -> Selected:
        # One vector holds all leaves, since small operations by leaf take long to compile.
        active = jnp.stack([count_true(mask)[0] for mask in masks.values()])
        n = take_fraction(active, row.drop, rounding)
        by_path = lambda counts: dict(zip(masks, counts, strict=True))
        worth = score_leaves(drop, weights, signal, fold_key(key, "drop"), row.groups)
        stayed = top_k(worth, by_path(active - n), eligible=masks, num_eligible=active)
        promise = score_leaves(grow, weights, signal, fold_key(key, "grow"), row.groups)
        sizes = jnp.array([mask.size for mask in masks.values()], jnp.int32)
        if fixed(row.groups):
            grown = _grow_by_group(worth, promise, by_path(n), stayed.masks, fixed(row.groups))
        else:
            inactive = sizes - (active - n)
            grown = top_k(promise, by_path(n), given=stayed.masks, num_eligible=inactive)
        return grown._replace(num_nan=stayed.num_nan + grown.num_nan)

    return stage


def _grow_by_group(
    worth: Scores, promise: Scores, n: dict[str, jax.Array], stayed: Leaves, groups: GroupsByPath
) -> Selected:
    """The weights that stayed and those that grow, if the leaves in `groups` have an N:M pattern.

    Every group is filled up to n of m by promise. Weights that stayed go first, by worth: more than
    n of them stay only in masks from elsewhere.
    """
    of_groups = {path: stayed[path] for path in groups}
    full = [full_groups(mask, groups[path]).all() for path, mask in of_groups.items()]
    # XLA stores the inputs and outputs of a branch. Without one it ranks the entries three times,
    # for the mask, the kept weights and the counts, and cuts the ties of `stayed` at every
    # comparison: an event of ResNet-50 took ten times as long as RigL's unstructured one.
    fill = lambda stayed: _fill(worth, promise, stayed, groups)
    masks = lax.cond(jnp.stack(full).all(), lambda stayed: stayed, fill, of_groups)
    promises = promise.compute(promise.inputs)
    nan = {path: ~mask & jnp.isnan(promises[path]) for path, mask in of_groups.items()}
    num_nan = {path: count_true(mask)[0] for path, mask in nan.items()}
    free = [path for path in stayed if path not in groups]
    if free:
        take = lambda inputs: {path: promise.compute(inputs)[path] for path in free}
        given = {path: stayed[path] for path in free}
        grown = top_k(Scores(promise.inputs, take), {path: n[path] for path in free}, given=given)
        masks |= grown.masks
        num_nan |= dict(zip(free, grown.num_nan, strict=True))
    return Selected(
        {path: masks[path] for path in stayed}, jnp.stack([num_nan[path] for path in stayed])
    )


def _fill(
    worth: Scores, promise: Scores, stayed: Leaves, groups: GroupsByPath
) -> dict[str, jax.Array]:
    values, promises = worth.compute(worth.inputs), promise.compute(promise.inputs)
    scores = {p: jnp.where(mask, values[p], promises[p]) for p, mask in stayed.items()}
    return {p: best_in_groups(x, groups[p], first=stayed[p]) for p, x in scores.items()}
