"""Lottery tickets: rounds that prune what survives; `rewound` goes back to an earlier step.

    params_k, opt_state_k = ...                               # after k steps, kept
    masks = jaxsparse.dense_masks(params_k)
    for r in range(1, 11):
        params = ...                                          # trained on to the end, with masks
        masks = jaxsparse.prune_survivors(params, masks, 0.2, rounds=r)
        params, opt_state = jaxsparse.rewound(params_k, masks, tx, opt_state_k)

Everything here is a pure function of trees, so it goes with any training loop. The ablations are
compositions: `rewound` with freshly initialised params is a re-initialisation, with the masks of
another seed a swap, and with `shuffle_masks` a shuffle.

Reference: Frankle and Carbin, "The Lottery Ticket Hypothesis", ICLR 2019 (k = 0); Frankle et al.,
"Linear Mode Connectivity and the Lottery Ticket Hypothesis", ICML 2020 (rewinding to step k).
"""

import functools
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, Unpack

import jax
import jax.numpy as jnp

from jaxsparse.checks import check_whole
from jaxsparse.counting import count_true
from jaxsparse.event_rows import take_fraction
from jaxsparse.masks import check_masks, dense_masks
from jaxsparse.paths import leaf_shapes, prunable_leaves, with_leaves
from jaxsparse.pattern_rules import check_given, check_pattern_rules
from jaxsparse.scores import magnitude, score_leaves
from jaxsparse.selection.top_k import top_k, top_k_with_minimum
from jaxsparse.survivors import Rule, SurvivorOptions, rule_of, target_of
from jaxsparse.types import Groups, Leaves, PyTree
from jaxsparse.units import GroupsByPath, from_units, to_units


def prune_survivors(
    params: PyTree,
    masks: PyTree,
    rate: float,
    *,
    rounds: int | None = None,
    **options: Unpack[SurvivorOptions],
) -> PyTree:
    """Removes a share of the active weights, those with the smallest |w|: a round of IMP.

    The result lies within `masks` (tickets nest). It is exact: S - floor(rate * S) of S active
    weights stay, by rank and not by a threshold. Roundings of many rounds add up to at most
    1 / rate weights; `rounds` avoids even that.

    Args:
      params: trained params, any pytree of floating-point arrays; an inactive entry is never looked
        at. NaN goes first. Ties are cut by a hash of the index, as in `top_k_mask`.
      masks: bool, the structure and shapes of params.
      rate: share of the survivors that goes, in (0, 1).
      rounds: number of rounds that have then been made from the dense network, this one included,
        at least 1. The counts are then those of `survivor_counts`: n - floor((1 - (1 - rate)^r) n)
        of n prunable weights, each rounded once. Masks that have fewer already stay as they are.
        None counts from the survivors.
      **options: as in `SurvivorOptions`.

    Returns:
      A tree of bool like params. Works under jit; masks on a mesh stay where they are.

    Raises:
      ValueError: masks that do not fit params or lack the pattern, a rate out of range, a rule that
        is no leaf's first match, an N:M pattern, groups of different sizes with scope "global", or
        an exclusion that leaves too few weights to take the quota from.

    Differs from both published codes in: they keep |w| strictly above the n-th smallest, which
    removes n + 1 weights, and more where weights tie.

    Reference: Frankle and Carbin, ICLR 2019, section 1; github.com/facebookresearch/open_lth,
    `pruning/sparse_global.py`.

    >>> params = {"kernel": jnp.array([[0.1, -5.0, 3.0, 0.2, 4.0]])}
    >>> masks = prune_survivors(params, dense_masks(params), 0.2)
    >>> prune_survivors(params, masks, 0.25)
    {'kernel': Array([[False,  True,  True, False,  True]], dtype=bool)}
    """
    masks = check_masks(masks, params)
    weights = prunable_leaves(params, options.get("prunable"))
    rule = rule_of(rate, leaf_shapes(weights), options)
    pattern = options.get("pattern")
    if pattern is not None:
        check_given(masks, check_pattern_rules(pattern), options.get("prunable"))
    target = None if rounds is None else target_of(rule, check_whole("rounds", rounds, 1))
    old = prunable_leaves(masks, paths=list(weights))
    return with_leaves(dense_masks(masks), _pruned(rule, weights, old, target))


@functools.partial(jax.jit, static_argnums=0)
def _pruned(
    rule: Rule, weights: Leaves, masks: Leaves, target: int | dict[str, int] | None
) -> dict[str, jax.Array]:
    """The masks after a round, of all prunable leaves, compiled as one."""
    groups: GroupsByPath = dict(rule.groups)
    units = to_units(masks, groups)
    free = rule.free
    scores = score_leaves(
        magnitude, {p: weights[p] for p in free}, weights, None, _of(groups, free)
    )
    eligible = {path: units[path] for path in free}
    active = {path: count_true(mask)[0] for path, mask in units.items()}
    if rule.scope == "layer":
        rates = dict(zip((path for path, _ in rule.sizes), rule.rates, strict=True))
        if target is None:
            counts = {path: _after(active[path], rates[path]) for path in free}
        else:
            assert isinstance(target, dict)
            counts = {path: target[path] for path in free}
        kept = top_k(scores, counts, eligible).masks
    else:
        if target is None:
            survivors = sum(active[path] for path in free)
            counted = sum(active.values()) if rule.of_all else survivors
            k = jnp.maximum(survivors - (counted - _after(counted, rule.rate)), 0)
        else:
            assert not isinstance(target, dict)
            k = target
        kept = top_k_with_minimum(scores, k, rule.min_keep, eligible).masks
    return from_units(units | kept, groups, masks)


def _of(groups: GroupsByPath, paths: Sequence[str]) -> dict[str, Groups]:
    return {path: groups[path] for path in paths if path in groups}


def _after(active: Any, rate: Fraction) -> jax.Array:
    """The units that a round leaves of the active ones, int32[]."""
    ratio = (jnp.int32(rate.numerator), jnp.int32(rate.denominator))
    return active - take_fraction(jnp.asarray(active, jnp.int32), ratio, "floor")
