"""Masks shuffled within their layers: the ablation that keeps only how dense each layer is."""

import jax

from jaxsparse.counting import count_true
from jaxsparse.masks import check_masks, dense_masks
from jaxsparse.one_shot import random_masks
from jaxsparse.paths import leaf_shapes, prunable_leaves, with_leaves
from jaxsparse.pattern_rules import check_given, check_pattern_rules, groups_of
from jaxsparse.patterns import Pattern, PatternRules
from jaxsparse.types import PyTree, Rules
from jaxsparse.units import to_units


def shuffle_masks(
    key: jax.Array,
    masks: PyTree,
    *,
    pattern: Pattern | PatternRules | None = None,
    prunable: Rules | None = None,
) -> PyTree:
    """Returns masks with the counts of each layer, and every arrangement equally likely.

    If a network trains as well with them as with its own masks, then the masks tell no more than
    the density of each layer.

    Args:
      key: drawn from by the path of each leaf.
      masks: bool, any pytree.
      pattern: the pattern that the masks have, for all leaves or as rules in `with_pattern`; they
        keep it. Blocks and channels are moved as a whole, and N:M draws n of every m anew. Without
        it masks of blocks come out unstructured.
      prunable: as in `prunable_paths`; other leaves are all True.

    Returns:
      A tree of bool like masks, with exactly as many True in each leaf. Works under jit; masks on a
      mesh stay where they are, with the same outcome as on one device.

    Raises:
      ValueError: masks that are not bool, or that lack the pattern (names the leaf and the group;
        not under jit, where values are not known).

    Reference: Frankle et al., "Pruning Neural Networks at Initialization: Why Are We Missing the
    Mark?", ICLR 2021; Su et al., "Sanity-Checking Pruning Methods: Random Tickets can Win the
    Jackpot", NeurIPS 2020.

    >>> import jax.numpy as jnp
    >>> masks = {"kernel": jnp.arange(100).reshape(10, 10) < 25}
    >>> shuffled = shuffle_masks(jax.random.key(0), masks)
    >>> int(shuffled["kernel"].sum()), bool((shuffled["kernel"] == masks["kernel"]).all())
    (25, False)
    """
    masks = check_masks(masks, masks)
    leaves = prunable_leaves(masks, prunable)
    shapes = leaf_shapes(leaves)
    rules = () if pattern is None else check_pattern_rules(pattern)
    groups = groups_of(rules, shapes)
    check_given(masks, rules, prunable)
    counts = {path: count_true(units)[0] for path, units in to_units(leaves, groups).items()}
    shuffled = random_masks(key, leaves, counts, groups)
    return with_leaves(dense_masks(masks), shuffled)
