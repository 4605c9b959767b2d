"""Masks in one shot: at random, or the highest scores, such as the magnitude of trained weights.

With any pattern, over all layers together or in each, and with exact counts.
"""

import functools

import jax

from jaxsparse.keys import fold_key
from jaxsparse.masks import dense_masks
from jaxsparse.paths import leaf_shapes, prunable_leaves, with_leaves
from jaxsparse.pattern_rules import check_pattern_rules, groups_of
from jaxsparse.patterns import Pattern, PatternRules
from jaxsparse.scores import as_given, magnitude, random, score_leaves
from jaxsparse.selection.best_of_group import best_in_groups
from jaxsparse.selection.top_k import top_k, top_k_with_minimum
from jaxsparse.types import (
    Distribution,
    Groups,
    Leaves,
    OptionError,
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

    Of a leaf with an N:M pattern every group has n of m, whatever its count.

    Differs from GraNet's and ITOP's code, whose Bernoulli draws have the count only on average.
    """
    return _best(random, tuple(groups.items()), 0, weights, counts, fold_key(key, "init"))


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

    To train on with the result hand it to `static(masks=...)`, or as the masks to start from to
    another method, with the same pattern.

    Args:
      scores: a tree like params, float[leaf] where a leaf is prunable, looked at nowhere else.
        Higher is kept; they are not made absolute. NaN is kept last. Ties are cut by a hash of the
        index, the same on every run and device.
      sparsity: share of the prunable weights that are 0, in [0, 1); 0 keeps all. None where all
        leaves have an N:M pattern, which fixes their own.
      scope: "global": one threshold over all leaves, and a leaf may come out empty; "layer": every
        leaf to the density that `distribution` gives it.
      distribution: shares the density out among layers with scope "layer"; None is `erk()`.
      min_keep: fewest weights of each layer, all of a smaller one; the others make up for it. None:
        1 with scope "layer", 0 with "global".
      pattern: a structure such as `block((4, 4))` for all prunable leaves, or rules as in
        `with_pattern`; a group is scored by the sum over its entries. None is no structure.
      prunable: as in `prunable_paths`; other leaves are all True.

    Returns:
      A tree of bool like `scores`. Of N prunable weights N - floor(sparsity * N + 1e-6) are True;
      with a pattern N counts groups.

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
    asked = _ask(scores, sparsity, scope, distribution, min_keep, pattern, prunable)
    return with_leaves(dense_masks(scores), _best(as_given, *asked))


def magnitude_masks(
    params: PyTree,
    sparsity: float | None = None,
    *,
    scope: Scope = "global",
    distribution: Distribution | None = None,
    min_keep: int | None = None,
    pattern: Pattern | PatternRules | None = None,
    prunable: Rules | None = None,
) -> PyTree:
    """Returns the masks that keep the largest |w|: magnitude pruning in one shot.

        masks = jaxsparse.magnitude_masks(params, sparsity=0.9)
        params = jaxsparse.apply_masks(params, masks)

    Args:
      params: any pytree of arrays, of a trained model say.
      sparsity: as in `masks_from_scores`, like all other options; for the same sparsity in every
        layer take `scope="layer", distribution=uniform()`.
      scope: "global" or "layer".
      distribution: with scope "layer".
      min_keep: fewest weights of each layer.
      pattern: a structure.
      prunable: which leaves.

    Raises:
      ValueError: as `masks_from_scores`.

    Reference: Han et al., "Learning both Weights and Connections for Efficient Neural Networks",
    NeurIPS 2015 (layer by layer). Frankle and Carbin, "The Lottery Ticket Hypothesis", ICLR 2019,
    section 4 (all layers together).

    >>> import jax.numpy as jnp
    >>> magnitude_masks({"kernel": jnp.array([[1.0, -4.0, 3.0, 2.0]])}, sparsity=0.75)
    {'kernel': Array([[False,  True, False, False]], dtype=bool)}
    """
    asked = _ask(params, sparsity, scope, distribution, min_keep, pattern, prunable)
    return with_leaves(dense_masks(params), _best(magnitude, *asked))


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
      params: any pytree of arrays, of a trained model say; or scores in their place, of which the
        largest |x| are kept.
      pattern: a pattern for all prunable leaves, or rules as in `with_pattern`.
      sparsity: of the leaves without an N:M pattern, in [0, 1); None where there are none.
      distribution: shares it out among those leaves, in each of which the best units are kept; None
        is `erk()`.
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


def _ask(
    params: PyTree,
    sparsity: float | None,
    scope: Scope,
    distribution: Distribution | None,
    min_keep: int | None,
    pattern: Pattern | PatternRules | None,
    prunable: Rules | None,
) -> tuple[tuple[tuple[str, Groups], ...], int, Leaves, int | dict[str, int]]:
    """The groups, the minimum, the leaves and the counts that `_best` takes."""
    weights = prunable_leaves(params, prunable)
    shapes = leaf_shapes(weights)
    groups = groups_of(() if pattern is None else check_pattern_rules(pattern), shapes)
    if sparsity is not None and not 0.0 <= sparsity < 1.0:
        raise OptionError("sparsity", sparsity, "must be at least 0 and below 1")
    row = one_shot_row(
        shapes,
        groups,
        None if sparsity is None else 1.0 - sparsity,
        scope=scope,
        distribution=distribution,
        min_keep=min_keep,
    )
    return tuple(groups.items()), row.min_keep, weights, row.target


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _best(
    score: Score,
    groups: tuple[tuple[str, Groups], ...],
    min_keep: int,
    weights: Leaves,
    counts: int | jax.Array | dict[str, int],
    key: jax.Array | None = None,
) -> dict[str, jax.Array]:
    """The best units of every leaf. Op by op the search would be compiled anew at every call."""
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
    return from_units(masks, by_path, weights)
