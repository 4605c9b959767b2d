"""Masks from scores in one round or in many, each of which scores what the one before has left."""

import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

from jaxsparse.at_init.subject import Subject, check_scores, shape_of_one
from jaxsparse.checks import check_in, check_whole
from jaxsparse.counting import num_true
from jaxsparse.masks import apply_mask, dense_masks
from jaxsparse.one_shot import ScoreOptions, best_units
from jaxsparse.paths import leaf_shapes, leaves_by_path, with_leaves
from jaxsparse.pattern_rules import check_pattern_rules, groups_of
from jaxsparse.scores import as_given
from jaxsparse.tracing.connectivity import where_paths_end
from jaxsparse.types import Leaves, PyTree, Row, Shapes
from jaxsparse.unit_counts import one_shot_row
from jaxsparse.units import GroupsByPath

ScoreLeft = Callable[[Leaves, Leaves | None], dict[str, jax.Array]]
"""(weights by path, 0 where inactive; their masks, None if all are active) to all scores."""


def prune_in_rounds(
    score: ScoreLeft,
    subject: Subject,
    sparsity: float | None,
    options: ScoreOptions,
    *,
    num_rounds: int,
    may_return: bool = False,
) -> PyTree:
    """Scores and prunes `num_rounds` times, to the density rho^(-k/n) after round k of n.

    Args:
      score: is called once a round.
      subject: what is scored.
      sparsity: after the last round, as in `masks_from_scores`.
      options: of `masks_from_scores`; `prunable` has been applied.
      num_rounds: at least 1.
      may_return: whether a weight that was pruned in an earlier round may come back. If not, masks
        are nested, and weights of score 0 are the first to go, after those gone already.

    Returns:
      Masks like params. The counts are those of `masks_from_scores`.

    Raises:
      ValueError: as `masks_from_scores` and `check_scores`.
    """
    shapes = leaf_shapes(subject.weights)
    pattern = options.get("pattern")
    groups = groups_of(() if pattern is None else check_pattern_rules(pattern), shapes)
    rows = rows_of(shapes, groups, sparsity, num_rounds, options)
    weights, masks = subject.weights, None
    for number, row in enumerate(rows, 1):
        left = weights if masks is None else masked(weights, masks)
        scores = score(left, masks)
        when = f" of round {number}" if num_rounds > 1 else ""
        check_scores(scores, masks, when)
        if masks is not None and not may_return:
            scores = _others_last(scores, masks)
        masks = best_units(as_given, tuple(groups.items()), row.min_keep, scores, row.target)
    assert masks is not None
    return with_leaves(dense_masks(subject.params), masks)


def rows_of(
    shapes: Shapes,
    groups: GroupsByPath,
    sparsity: float | None,
    num_rounds: int,
    options: ScoreOptions,
) -> list[Row]:
    """Returns how many weights each round leaves: never more than the one before.

    >>> sizes = {"a": (10, 10)}
    >>> [row.target for row in rows_of(sizes, {}, 0.99, 2, {})]
    [10, 1]
    """
    num_rounds = check_whole("num_rounds", num_rounds, 1)
    final = None if sparsity is None else 1.0 - check_in("sparsity", sparsity, "[0, 1)")
    given = {name: options.get(name) for name in ("distribution", "min_keep")}
    scope = options.get("scope", "global")
    rows: list[Row] = []
    for k in range(num_rounds, 0, -1):
        # The last one as it was given, since its count has to be exact.
        density = final if final is None or k == num_rounds else final ** (k / num_rounds)
        row: Any = one_shot_row(shapes, groups, density, scope=scope, **given)
        if rows and isinstance(row.target, dict):
            # Layers are rounded so that they add up, and one may gain a weight from round to round.
            later: Any = rows[-1].target
            row = row._replace(target={p: max(n, later[p]) for p, n in row.target.items()})
        rows.append(row)
    return rows[::-1]


@jax.jit
def masked(weights: Leaves, masks: Leaves) -> dict[str, jax.Array]:
    """Returns the leaves with 0 where their masks are False."""
    return {path: apply_mask(w, masks[path]) for path, w in weights.items()}


@jax.jit
def _others_last(scores: Leaves, masks: Leaves) -> dict[str, jax.Array]:
    return {path: jnp.where(masks[path], x, -jnp.inf) for path, x in scores.items()}


def warn_if_cut(
    subject: Subject,
    masks: PyTree,
    forward: Callable[[PyTree, Any], Any] | None,
    inputs: Any,
) -> None:
    """Warns of masks that leave no path from input to output.

    Args:
      subject: what was scored.
      masks: like params. Nothing is checked if they are traced.
      forward: (params, inputs) to outputs; None if only a loss is known. Then it warns of every
        leaf without a weight, since it cannot tell whether that cuts the network.
      inputs: arrays with an axis of examples, or shapes.
    """
    if any(isinstance(mask, Tracer) for mask in jax.tree.leaves(masks)):
        return
    advice = "take a lower sparsity, scope='layer', or min_keep=1"
    if forward is None:
        leaves = leaves_by_path(masks)
        by_path = {path: leaves[path] for path in subject.weights}
        counts = dict(zip(by_path, num_true(by_path.values()), strict=True))
        if empty := [path for path, count in counts.items() if not count and by_path[path].size]:
            warnings.warn(
                f"no weight is left in {', '.join(empty)}; if no other layer goes around, the "
                f"network is cut: {advice}",
                stacklevel=4,
            )
        return
    end = where_paths_end(forward, subject.params, masks, shape_of_one(inputs))
    if end is not None:
        warnings.warn(
            f"the masks cut the network: no path leads from input to output, all end at {end}; "
            f"{advice}",
            stacklevel=4,
        )
