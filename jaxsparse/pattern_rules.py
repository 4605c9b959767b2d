"""Which leaf has which pattern, by rules, and whether masks have theirs."""

import functools
import math
import operator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer

from jaxsparse.masks import check_masks
from jaxsparse.meshes import awaited
from jaxsparse.paths import first_matches, leaf_shapes, prunable_leaves
from jaxsparse.patterns import Pattern, PatternRules
from jaxsparse.types import Groups, OptionError, PyTree, Rules, Shapes
from jaxsparse.units import check_groups, split_into


class _Bad(NamedTuple):
    """int32[] each: bad groups, the index of the first one in C order, its active entries."""

    num_bad: jax.Array
    first: jax.Array
    num_active: jax.Array


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
    """Checks that masks have a pattern; waits for the device.

    Masks may be sharded over devices and processes in any way: only counts come to the host.

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
    leaves = prunable_leaves(masks, prunable)
    shapes = leaf_shapes(leaves)
    groups = groups_of(check_pattern_rules(pattern), shapes)
    found = {path: awaited(_bad_groups(leaves[path], g)) for path, g in groups.items()}
    found = jax.device_get(found)
    for path, g in groups.items():
        _check_leaf(path, g, found[path], shapes[path])


def check_given(masks: PyTree, rules: PatternRules, prunable: Rules | None = None) -> None:
    """`check_pattern` of masks that a user gave, unless they are traced."""
    if rules and not any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(masks)):
        check_pattern(masks, rules, prunable)


def _check_leaf(path: str, groups: Groups, found: _Bad, shape: tuple[int, ...]) -> None:
    if not (num_bad := int(found.num_bad)):
        return
    sizes = _num_groups(groups)
    group = np.unravel_index(int(found.first), sizes)
    entry = np.unravel_index(np.ravel_multi_index(group, groups.split), shape)
    raise ValueError(
        f"masks at {path}: the group of {_num_entries(groups)} that starts at "
        f"{tuple(map(int, entry))} has {int(found.num_active)} active entries; {groups.pattern} "
        f"allows {' or '.join(map(str, _allowed(groups)))} "
        f"({num_bad} of {math.prod(sizes)} groups {'is' if num_bad == 1 else 'are'} bad)"
    )


@functools.partial(jax.jit, static_argnums=1)
def _bad_groups(mask: jax.Array, groups: Groups) -> _Bad:
    """Counts the bad groups by reductions alone: an index would gather a sharded mask."""
    active = split_into(groups, mask).sum(groups.axes, jnp.int32, keepdims=True)
    bad = functools.reduce(operator.and_, [active != number for number in _allowed(groups)])
    index = jnp.zeros_like(active)
    for axis in range(active.ndim):
        stride = math.prod(active.shape[axis + 1 :])
        index += lax.broadcasted_iota(jnp.int32, active.shape, axis) * stride
    first = jnp.where(bad, index, np.int32(2**31 - 1)).min()
    # Groups may be fewer than devices, which `count_true` does not take.
    return _Bad(bad.sum(dtype=jnp.int32), first, jnp.where(index == first, active, 0).sum())


def _num_groups(groups: Groups) -> tuple[int, ...]:
    """The shape of a leaf's groups, with an axis of 1 for each axis within a group."""
    return tuple(1 if axis in groups.axes else n for axis, n in enumerate(groups.split))


def _num_entries(groups: Groups) -> int:
    return math.prod(groups.split[axis] for axis in groups.axes)


def _allowed(groups: Groups) -> tuple[int, ...]:
    return (0, _num_entries(groups)) if groups.num_active is None else (groups.num_active,)
