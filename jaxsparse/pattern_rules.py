"""Which leaf has which pattern, by rules, and whether masks have theirs."""

import jax
import numpy as np
from jax.core import Tracer

from jaxsparse.masks import check_masks
from jaxsparse.paths import first_matches, prunable_leaves
from jaxsparse.patterns import Pattern, PatternRules
from jaxsparse.types import Groups, OptionError, PyTree, Rules, Shapes
from jaxsparse.units import check_groups


def check_pattern_rules(pattern: Pattern | PatternRules) -> tuple[tuple[str, Pattern | None], ...]:
    """Returns (path regex, pattern or None) pairs, raises a ValueError for anything else."""
    if isinstance(pattern, Pattern):
        return ((r"", pattern),)
    try:
        rules = tuple((regex, chosen) for regex, chosen in pattern)
    except (TypeError, ValueError):
        rules = ()
    if not rules or not all(
        isinstance(regex, str) and (chosen is None or isinstance(chosen, Pattern))
        for regex, chosen in rules
    ):
        raise ValueError(
            f"pattern {pattern!r} must be a pattern such as n_of_m(2, 4), or (path regex, pattern "
            "or None) pairs"
        )
    return rules


def patterns_in(rules: PatternRules) -> dict[str, Pattern]:
    """Returns the patterns of some rules by name, in order."""
    return {pattern.name: pattern for _, pattern in rules if pattern is not None}


def groups_of(rules: PatternRules, shapes: Shapes) -> dict[str, Groups]:
    """Returns the groups of every leaf that has a pattern.

    Args:
      rules: for each leaf the first regex found in its path decides; one without a match, or with
        the pattern None, has no groups.
      shapes: of the prunable leaves, by path.

    Raises:
      ValueError: a rule that is no leaf's first match; or a pattern that does not fit its leaf, or
        whose `cut` returns groups of another shape, with the leaf's path.
    """
    found = {}
    first = first_matches([regex for regex, _ in rules], shapes, name="pattern rule")
    for path, index in first.items():
        pattern = None if index is None else rules[index][1]
        if pattern is None:
            continue
        try:
            found[path] = check_groups(pattern.groups(path, shapes[path]), shapes[path])
        except ValueError as error:
            raise OptionError(
                "pattern",
                pattern.name,
                f"does not fit leaf {path} {shapes[path]}: {error}",
                f"a rule ({path!r}, None) before it exempts the leaf",
            ) from None
    return found


def check_pattern(
    masks: PyTree, pattern: Pattern | PatternRules, prunable: Rules | None = None
) -> None:
    """Checks on the host that masks have a pattern.

    Args:
      masks: a tree of bool.
      pattern: a pattern for all prunable leaves, or rules as in `with_pattern`.
      prunable: as in `prunable_paths`; other leaves are not looked at.

    Raises:
      ValueError: names the first bad leaf, its first bad group and the counts that are allowed; or
        names the first leaf that is not bool.

    >>> import jax.numpy as jnp
    >>> from jaxsparse.patterns import n_of_m
    >>> check_pattern({"kernel": jnp.array([[True], [True], [True], [False]])}, n_of_m(2, 4))
    Traceback (most recent call last):
    ...
    ValueError: masks at kernel: the group of 4 that starts at (0, 0) has 3 active entries;
        2:4 allows 2 (1 of 1 groups is bad)
    """
    check_masks(masks, masks)
    leaves = {p: np.asarray(mask) for p, mask in prunable_leaves(masks, prunable).items()}
    shapes = {p: mask.shape for p, mask in leaves.items()}
    for path, groups in groups_of(check_pattern_rules(pattern), shapes).items():
        _check_leaf(path, leaves[path], groups)


def check_given(masks: PyTree, rules: PatternRules, prunable: Rules | None = None) -> None:
    """`check_pattern` of masks that a user gave, if their values can be read on this host.

    Traced masks, and those of which other processes hold a part, are not looked at.
    """
    here = lambda x: not isinstance(x, Tracer) and getattr(x, "is_fully_addressable", True)
    if rules and all(map(here, jax.tree.leaves(masks))):
        check_pattern(masks, rules, prunable)


def _check_leaf(path: str, mask: np.ndarray | jax.Array, groups: Groups) -> None:
    size = int(np.prod([groups.split[axis] for axis in groups.axes]))
    allowed = (0, size) if groups.num_active is None else (groups.num_active,)
    active = np.asarray(mask).reshape(groups.split).sum(groups.axes, keepdims=True)
    bad = ~np.isin(active, allowed)
    if not bad.any():
        return
    group = tuple(np.argwhere(bad)[0])
    entry = np.unravel_index(np.ravel_multi_index(group, groups.split), np.shape(mask))
    raise ValueError(
        f"masks at {path}: the group of {size} that starts at {tuple(map(int, entry))} has "
        f"{active[group]} active entries; {groups.pattern} allows {' or '.join(map(str, allowed))} "
        f"({bad.sum()} of {bad.size} groups {'is' if bad.sum() == 1 else 'are'} bad)"
    )
