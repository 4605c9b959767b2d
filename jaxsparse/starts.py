"""Masks to start from: at random, or by the magnitude of a trained model, with any pattern."""

import functools

import jax

from jaxsparse.budget import initial_counts
from jaxsparse.distributions import erk
from jaxsparse.groups import GroupsByPath, fixed, from_units
from jaxsparse.keys import fold_key
from jaxsparse.masks import dense_masks
from jaxsparse.paths import leaf_shapes, prunable_leaves, with_leaves
from jaxsparse.patterns import Pattern, PatternRules, check_pattern_rules, groups_of
from jaxsparse.ranking import best_in_groups
from jaxsparse.scores import magnitude, random, score_leaves
from jaxsparse.selection import top_k
from jaxsparse.types import Distribution, Groups, Leaves, PyTree, Rules, Score, Scores


def random_masks(
    key: jax.Array, weights: Leaves, counts: dict[str, int], groups: GroupsByPath
) -> dict[str, jax.Array]:
    """Draws masks with exactly `counts[path]` units True, every subset of a leaf equally likely.

    Of a leaf with an N:M pattern every group has n of m, whatever its count.

    Differs from GraNet's and ITOP's code, whose Bernoulli draws have the count only on average.
    """
    return _best(random, tuple(groups.items()), weights, counts, fold_key(key, "init"))


def pattern_masks(
    params: PyTree,
    pattern: Pattern | PatternRules,
    *,
    sparsity: float | None = None,
    distribution: Distribution | None = None,
    prunable: Rules | None = None,
) -> PyTree:
    """Returns masks with a pattern, by the magnitude of the weights: one-shot pruning.

    To train on with the result hand it to `static(masks=...)`, or as the masks to start from to a
    method with the same pattern.

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
    weights = prunable_leaves(params, prunable)
    shapes = leaf_shapes(weights)
    groups = groups_of(check_pattern_rules(pattern), shapes)
    if sparsity is not None and not 0.0 <= sparsity < 1.0:
        raise ValueError(f"sparsity {sparsity} must be at least 0 and below 1")
    free = [path for path in shapes if path not in fixed(groups)]
    if sparsity is None and free:
        raise ValueError(f"leaf {free[0]} has no N:M pattern, so its sparsity= must be given")
    density = None if sparsity is None else 1.0 - sparsity
    counts = initial_counts(distribution or erk(), shapes, groups, density)
    return with_leaves(
        dense_masks(params), _best(magnitude, tuple(groups.items()), weights, counts, None)
    )


@functools.partial(jax.jit, static_argnums=(0, 1))
def _best(
    score: Score,
    groups: tuple[tuple[str, Groups], ...],
    weights: Leaves,
    counts: dict[str, int],
    key: jax.Array | None,
) -> dict[str, jax.Array]:
    """The best units of every leaf. Op by op the search would be compiled anew at every call."""
    by_path = dict(groups)
    scores = score_leaves(score, weights, weights, key, by_path)
    free = [path for path in weights if path not in fixed(by_path)]
    masks = {}
    if free:
        take = lambda inputs: {path: scores.compute(inputs)[path] for path in free}
        masks |= top_k(Scores(scores.inputs, take), {path: counts[path] for path in free}).masks
    values = scores.compute(scores.inputs)
    masks |= {path: best_in_groups(values[path], g) for path, g in fixed(by_path).items()}
    return from_units(masks, by_path, leaf_shapes(weights))
