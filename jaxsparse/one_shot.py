"""Masks in one shot, with exact counts and any pattern: the highest scores, or a random draw.

`masks_from_scores` is the one way from scores to masks. `magnitude_masks` and `pattern_masks` call
it with |w|; the random masks that methods start with are the best units by random scores.
"""

import functools
from typing import TypedDict, Unpack

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from jaxsparse.checks import check_in
from jaxsparse.keys import fold_key
from jaxsparse.masks import dense_masks
from jaxsparse.meshes import constrained, placed_by
from jaxsparse.paths import leaf_shapes, prunable_leaves, with_leaves
from jaxsparse.pattern_rules import check_pattern_rules, groups_of
from jaxsparse.patterns import Pattern, PatternRules
from jaxsparse.scores import as_given, random, score_leaves
from jaxsparse.selection.best_of_group import best_in_groups
from jaxsparse.selection.top_k import top_k, top_k_with_minimum
from jaxsparse.types import (
    Distribution,
    Groups,
    Leaves,
    PyTree,
    Rules,
    Scope,
    Score,
    Scores,
)
from jaxsparse.unit_counts import one_shot_row
from jaxsparse.units import GroupsByPath, fixed, from_units


def random_masks(
    key: jax.Array, weights: Leaves, counts: dict[str, int], groups: GroupsByPath
) -> dict[str, jax.Array]:
    """Draws masks with exactly `counts[path]` units True, every subset of a leaf equally likely.

    A leaf with an N:M pattern gets n of m in every group, whatever its count. Masks of weights on a
    mesh are drawn where the weights are, with the same outcome as on one device.

    Differs from GraNet's and ITOP's code, whose Bernoulli draws have the count only on average.
    """
    places = tuple((path, placed_by(w)) for path, w in weights.items())
    own = fold_key(key, "init")
    return best_units(random, tuple(groups.items()), 0, weights, counts, own, places=places)


class ScoreOptions(TypedDict, total=False):
    """The options of `masks_from_scores`, which describes them."""

    scope: Scope
    distribution: Distribution | None
    min_keep: int | None
    pattern: Pattern | PatternRules | None
    prunable: Rules | None


def masks_from_scores(
    scores: PyTree,
    sparsity: float | None = None,
    *,
    scope: Scope = "global",
    distribution: Distribution | None = None,
    min_keep: int | None = None,
    pattern: Pattern | PatternRules | None = None,
    prunable: Rules | None = None,
) -> PyTree:
    """Returns the masks that keep the highest scores, with exact counts: pruning in one shot.

    To train on with the result, hand it to `static(masks=...)`, or to `starting_from` for any other
    method, with the same pattern.

    Args:
      scores: a tree like params, float[leaf] at prunable leaves; the others are not looked at.
        Higher is kept, with the sign. NaN is kept last. Ties are cut by a hash of the index, the
        same on every run and device.
      sparsity: share of the prunable weights that are 0, in [0, 1); 0 keeps all. None if every
        leaf has an N:M pattern, which fixes the sparsity.
      scope: "global" puts one threshold over all leaves, and a leaf may come out empty; "layer"
        brings every leaf to the density that `distribution` gives it.
      distribution: shares the density out among layers with scope "layer"; None is `erk()`.
      min_keep: fewest weights of each layer; a smaller layer keeps all. The others make up for it.
        None is 1 with scope "layer" and 0 with "global".
      pattern: a structure such as `block((4, 4))` for all prunable leaves, or rules as in
        `with_pattern`; the score of a group is the sum over its entries. None is no structure.
      prunable: as in `prunable_paths`; other leaves are all True.

    Returns:
      A tree of bool like `scores`. N - floor(sparsity * N + 1e-6) of N prunable weights are True;
      with a pattern, N counts groups.

    Raises:
      ValueError: a sparsity that is missing, out of range or so high that fewer than `min_keep` a
        layer would be left; a pattern that does not fit its leaf; leaves that are ranked together
        and whose groups differ in size; a distribution with scope "global", where it has no say.

    >>> import jax.numpy as jnp
    >>> scores = {
    ...     "a": {"kernel": jnp.array([[4.0, 3.0]])},
    ...     "b": {"kernel": jnp.array([[1.0, 2.0]])},
    ... }
    >>> masks_from_scores(scores, 0.5)["a"]["kernel"]
    Array([[ True,  True]], dtype=bool)
    >>> masks_from_scores(scores, 0.5, scope="layer")["a"]["kernel"]
    Array([[ True, False]], dtype=bool)
    """
    leaves = prunable_leaves(scores, prunable)
    shapes = leaf_shapes(leaves)
    groups = groups_of(() if pattern is None else check_pattern_rules(pattern), shapes)
    density = None if sparsity is None else 1.0 - check_in("sparsity", sparsity, "[0, 1)")
    row = one_shot_row(
        shapes, groups, density, scope=scope, distribution=distribution, min_keep=min_keep
    )
    best = best_units(as_given, tuple(groups.items()), row.min_keep, leaves, row.target)
    return with_leaves(dense_masks(scores), best)


def magnitude_masks(
    params: PyTree, sparsity: float | None = None, **options: Unpack[ScoreOptions]
) -> PyTree:
    """Returns the masks that keep the largest |w|: magnitude pruning in one shot.

        masks = jaxsparse.magnitude_masks(params, sparsity=0.9)
        params = jaxsparse.apply_masks(params, masks)

    It is `masks_from_scores` of |w|. For the same sparsity in every layer take
    `scope="layer", distribution=uniform()`.

    Args:
      params: any pytree of arrays, such as those of a trained model.
      sparsity: as in `masks_from_scores`.
      **options: `scope`, `distribution`, `min_keep`, `pattern`, `prunable`, as there.

    Raises:
      ValueError: as `masks_from_scores`.

    Reference: Han et al., "Learning both Weights and Connections for Efficient Neural Networks",
    NeurIPS 2015 (layer by layer). Frankle and Carbin, "The Lottery Ticket Hypothesis", ICLR 2019,
    section 4 (all layers together).

    >>> import jax.numpy as jnp
    >>> magnitude_masks({"kernel": jnp.array([[1.0, -4.0, 3.0, 2.0]])}, sparsity=0.75)
    {'kernel': Array([[False,  True, False, False]], dtype=bool)}
    """
    weights = prunable_leaves(params, options.get("prunable"))
    scores = with_leaves(params, {path: jnp.abs(w) for path, w in weights.items()})
    return masks_from_scores(scores, sparsity, **options)


def pattern_masks(
    params: PyTree,
    pattern: Pattern | PatternRules,
    *,
    sparsity: float | None = None,
    distribution: Distribution | None = None,
    prunable: Rules | None = None,
) -> PyTree:
    """Returns masks with a pattern, by the magnitude of the weights in each layer.

    It is `magnitude_masks` with scope "layer".

    Args:
      params: any pytree of arrays, such as those of a trained model; the largest |x| are kept.
      pattern: a pattern for all prunable leaves, or rules as in `with_pattern`.
      sparsity: of the leaves without an N:M pattern, in [0, 1); None if there are none.
      distribution: shares the density out among those leaves; each keeps its best units. None is
        `erk()`.
      prunable: as in `prunable_paths`; other leaves are all True.

    Raises:
      ValueError: a pattern that does not fit its leaf; a sparsity that is missing or out of range.

    >>> import jax.numpy as jnp
    >>> from jaxsparse.patterns import n_of_m
    >>> params = {"kernel": jnp.array([[1.0, -4.0, 3.0, 2.0]])}
    >>> pattern_masks(params, n_of_m(2, 4, axis=-1))
    {'kernel': Array([[False,  True,  True, False]], dtype=bool)}
    """
    return magnitude_masks(
        params,
        sparsity,
        scope="layer",
        distribution=distribution,
        pattern=check_pattern_rules(pattern),
        prunable=prunable,
    )


@functools.partial(jax.jit, static_argnums=(0, 1, 2), static_argnames="places")
def best_units(
    score: Score,
    groups: tuple[tuple[str, Groups], ...],
    min_keep: int,
    weights: Leaves,
    counts: int | jax.Array | dict[str, int],
    key: jax.Array | None = None,
    *,
    places: tuple[tuple[str, NamedSharding | None], ...] = (),
) -> dict[str, jax.Array]:
    """Selects the best units of every leaf, compiled as one program.

    Op by op, every call would compile anew.

    Args:
      score: of the weights; static, as are the next two.
      groups: (path, groups) of the leaves that have a pattern.
      min_keep: fewest units of each leaf if the counts are one number.
      weights: float arrays by path.
      counts: units to keep, over all leaves without N:M together or by path; may be traced.
      key: of a score that draws at random.
      places: the places of leaves on a mesh; random scores do not lead the compiler there.
    """
    by_path = dict(groups)
    scores = score_leaves(score, weights, weights, key, by_path)
    free = [path for path in weights if path not in fixed(by_path)]
    masks = {}
    if free:
        take = lambda inputs: {path: scores.compute(inputs)[path] for path in free}
        of_free = Scores(scores.inputs, take)
        if isinstance(counts, dict):
            masks |= top_k(of_free, {path: counts[path] for path in free}).masks
        else:
            masks |= top_k_with_minimum(of_free, counts, min_keep).masks
    values = scores.compute(scores.inputs)
    masks |= {path: best_in_groups(values[path], g) for path, g in fixed(by_path).items()}
    masks = from_units(masks, by_path, weights)
    return masks | {
        path: constrained(masks[path], place) for path, place in places if place is not None
    }
