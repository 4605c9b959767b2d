"""The plan of a narrower network: which units of every group stay, and what that saves.

    groups = channel_groups(model.apply, variables, images)
    importance = channel_importance(groups, jax.tree.map(jnp.abs, variables))
    plan = plan_widths(groups, importance, group_costs(groups, flops), target=0.5)
    print(plan)
    narrow = plan.apply(variables)

The units with the least importance are removed, one by one, until the cost meets the target. A
ranking says which units compete: all of them ("global"), those of one group ("layer": all groups
lose the same share), or those of groups with the same structure ("isomorphic").
"""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias, get_args

import numpy as np

from jaxsparse.checks import check_in, check_whole
from jaxsparse.structured.channel_costs import CostTable
from jaxsparse.structured.groups import ChannelGroups
from jaxsparse.structured.importance import Importance
from jaxsparse.structured.slicing import narrowed, zeroed
from jaxsparse.text_table import text_table
from jaxsparse.types import OptionError, PyTree

Ranking: TypeAlias = Literal["global", "layer", "isomorphic"]


@dataclasses.dataclass(frozen=True, eq=False)
class WidthPlan:
    """The units of every group that stay.

    Attributes:
      groups: of the network at full width.
      kept: int[width after], rising, by the name of a group: the units that stay.
      costs: as functions of widths, for the table.
    """

    groups: ChannelGroups
    kept: Mapping[str, np.ndarray]
    costs: tuple[CostTable, ...] = ()

    @property
    def widths(self) -> dict[str, int]:
        """The width of every group after narrowing, by name."""
        return {name: len(units) for name, units in self.kept.items()}

    @property
    def notes(self) -> dict[str, tuple[str, ...]]:
        """What else changes where a group becomes narrower, by its name."""
        narrower = [g for g in self.groups if len(self.kept[g.name]) < g.width]
        return {group.name: group.notes for group in narrower if group.notes}

    def removed(self) -> dict[tuple[str, int], np.ndarray]:
        """Returns the indices that go, rising, by path and axis."""
        found: dict[tuple[str, int], list[np.ndarray]] = {}
        for group in self.groups:
            gone = np.setdiff1d(np.arange(group.width), self.kept[group.name])
            for member in group.members if len(gone) else ():
                key = (member.path, member.axis)
                found.setdefault(key, []).append(member.indices[gone].ravel())
        return {key: np.sort(np.concatenate(parts)) for key, parts in found.items()}

    def apply(self, tree: PyTree) -> PyTree:
        """Returns a tree of the narrow network: variables, params, masks, an optimizer's state.

        Leaves are known by the ends of their paths, so a train state works whole. Leaves of other
        names stay as they are. On a mesh with explicit axes a leaf keeps its sharding, except that
        an axis whose new length the devices do not divide is replicated; so do the shardings of
        `jax.ShapeDtypeStruct`. With automatic axes JAX chooses.

        Args:
          tree: arrays of the network at full width, or their `jax.ShapeDtypeStruct`.

        Raises:
          ValueError: a leaf that would lose indices has another shape than the network's, so the
            tree is of another network or holds slots that are not like their weights; a slot has
            parts (SM3's vectors), which cannot be sliced; the path of a leaf is the end of two; or
            no leaf is known.
        """
        return narrowed(tree, self.groups.shapes, self.removed())

    def zero(self, variables: PyTree) -> PyTree:
        """Returns variables of full width in which everything of the removed units is 0."""
        return zeroed(variables, self.groups.shapes, self.removed())

    def __str__(self) -> str:
        """Returns a table of widths before and after, and of costs."""
        rows = [["group", "width", "after", "kept", "made by"]]
        for group in self.groups:
            after = len(self.kept[group.name])
            made = group.producers[0] if group.producers else group.members[0].path
            more = f" and {len(group.producers) - 1} more" if len(group.producers) > 1 else ""
            share = f"{after / group.width:.2f}"
            rows.append([group.name, str(group.width), str(after), share, f"{made}{more}"])
        lines = text_table(rows, "<>>><")
        for costs in self.costs:
            before, after = costs({}), costs(self.widths)
            lines.append(f"{costs.by}: {before:,} -> {after:,} ({after / before:.4f})")
        for name, notes in self.notes.items():
            lines += [f"note: {name}: {note}" for note in notes]
        return "\n".join(lines)


def plan_widths(
    groups: ChannelGroups,
    importance: Importance,
    costs: CostTable,
    *,
    target: float,
    ranking: Ranking = "global",
    round_to: int = 1,
    min_share: float | Mapping[str, float] = 0.0,
) -> WidthPlan:
    """Returns which units stay, so that the cost is at most a share of the full one.

    Args:
      groups: from `channel_groups`.
      importance: float[width] by group, such as `channel_importance` gives; the lowest go first,
        among equals those of the first group and of the lowest index.
      costs: from `group_costs`, multiply-adds or parameters.
      target: share of the full cost that may be left, in (0, 1]. The plan stops at the first
        removal that meets it.
      ranking: which units compete. "global" compares importances as they are. "layer" and
        "isomorphic" compare a unit's place among those of its group, or of all groups with one
        signature: the lowest tenth of each goes before the rest of any.
      round_to: each group keeps all its channels or a multiple of this, counted on its first
        member.
      min_share: fewest units that a group keeps, as a share of its width in [0, 1], and at least 1:
        one number, or numbers by regex of the group's name (`re.search`, the first match counts; 0
        without one).

    Raises:
      ValueError: an option out of its range, an importance that does not fit, or a target that
        the smallest widths do not reach (says the smallest share that can be reached).

    >>> import jax.numpy as jnp
    >>> from jaxsparse.structured import channel_groups, channel_importance, group_costs
    >>> params = {"up": jnp.array([[1.0, -3.0, 2.0, 9.0]]), "down": jnp.ones((4, 1))}
    >>> groups = channel_groups(lambda p, x: x @ p["up"] @ p["down"], params, jnp.ones((1, 1)))
    >>> importance = channel_importance(groups, {p: abs(w) for p, w in params.items()})
    >>> plan = plan_widths(groups, importance, group_costs(groups), target=0.5)
    >>> plan.apply(params)["up"]
    Array([[-3.,  9.]], dtype=float32)
    """
    target = check_in("target", target, "(0, 1]")
    check_whole("round_to", round_to, 1)
    if ranking not in get_args(Ranking):
        raise OptionError("ranking", ranking, f"must be one of {', '.join(get_args(Ranking))}")
    _check_importance(groups, importance)
    least = _least(groups, min_share)
    lots = _lots(groups, importance, least, round_to, ranking)
    kept = {group.name: np.ones(group.width, bool) for group in groups}
    budget = target * costs({})
    widths = {group.name: group.width for group in groups}
    layers = {layer.layer: layer.at(widths, costs.widths) for layer in costs.layers}
    users = {group.name: list(costs.layers_of(group.name)) for group in groups}
    total = costs.constant + sum(layers.values())
    for _, name, units in lots:
        if total <= budget * (1 + 1e-12):  # the sum is one of floats
            break
        kept[name][units] = False
        widths[name] -= len(units)
        for layer in users[name]:
            before, layers[layer.layer] = layers[layer.layer], layer.at(widths, costs.widths)
            total += layers[layer.layer] - before
    if total > budget * (1 + 1e-12):
        share = np.ceil(1e4 * costs(widths) / costs({})) / 1e4
        raise OptionError(
            "target",
            target,
            f"cannot be reached: the smallest widths leave {share:.4g} of the {costs.by}",
            "take a target above that, or a lower min_share or round_to",
        )
    return WidthPlan(groups, {n: np.flatnonzero(mask) for n, mask in kept.items()}, (costs,))


def plan_of_units(groups: ChannelGroups, kept: Mapping[str, Any]) -> WidthPlan:
    """Returns the plan that keeps the units given, and all of the groups that are not named.

    Args:
      groups: from `channel_groups`.
      kept: by the name of a group, bool[width] or the numbers of the units that stay, at least one.

    Raises:
      KeyError: no such group; lists the groups.
      ValueError: units that a group lacks, or a mask of another length.
    """
    for name in kept:
        groups[name]
    found = {}
    for group in groups:
        units = np.asarray(kept.get(group.name, np.arange(group.width)))
        if units.dtype == bool and units.shape == (group.width,):
            units = np.flatnonzero(units)
        elif units.size and not np.issubdtype(units.dtype, np.integer):
            raise ValueError(
                f"units of {group.name} are {units.dtype}{list(units.shape)}, and must be integers "
                f"or bool[{group.width}]"
            )
        units = np.unique(units).astype(int)
        if not len(units) or units[0] < 0 or units[-1] >= group.width:
            raise ValueError(
                f"units {units.tolist()} of {group.name} must be one or more in [0, {group.width})"
            )
        found[group.name] = units
    return WidthPlan(groups, found)


def _check_importance(groups: ChannelGroups, importance: Importance) -> None:
    for group in groups:
        found = importance.get(group.name)
        if found is None or np.shape(found) != (group.width,):
            shape = "none" if found is None else np.shape(found)
            raise ValueError(
                f"the importance of {group.name} is {shape}, and must be ({group.width},)"
            )
        if not np.isfinite(found).all():
            raise ValueError(f"the importance of {group.name} is not finite")


def _least(groups: ChannelGroups, min_share: float | Mapping[str, float]) -> dict[str, int]:
    rules = {"": min_share} if not isinstance(min_share, Mapping) else dict(min_share)
    for regex, share in rules.items():
        check_in(f"min_share of {regex!r}" if regex else "min_share", share, "[0, 1]")
        try:
            matches = any(re.search(regex, group.name) for group in groups)
        except re.error as error:
            raise OptionError("min_share", regex, f"is no regular expression: {error}") from None
        if not matches and len(groups):
            raise OptionError("min_share", regex, "matches no group")
    found = {}
    for group in groups:
        share = next((x for regex, x in rules.items() if re.search(regex, group.name)), 0.0)
        found[group.name] = max(1, int(np.ceil(share * group.width)))
    return found


def _lots(
    groups: ChannelGroups,
    importance: Importance,
    least: Mapping[str, int],
    round_to: int,
    ranking: Ranking,
) -> list[tuple[float, str, np.ndarray]]:
    """Returns (key, group, units) of all lots that may go, those that go first at the front."""
    keys = _keys(groups, importance, ranking)
    found = []
    for group in groups:
        order = np.argsort(importance[group.name], kind="stable")
        lot = round_to // math.gcd(round_to, group.members[0].indices.shape[1])
        ends = [width for width in range(group.width - 1, 0, -1) if width % lot == 0]
        start, key = 0, -np.inf
        for width in ends:
            if width < least[group.name]:
                break
            units = order[start : group.width - width]
            key = max(key, float(keys[group.name][units].mean()))  # lots of a group go in turn
            found.append((key, group.name, units))
            start = group.width - width
    return sorted(found, key=lambda lot: lot[0])


def _keys(groups: ChannelGroups, importance: Importance, ranking: Ranking) -> dict[str, np.ndarray]:
    """What units are compared by: their importance, or their place among those they rank with."""
    if ranking == "global":
        return {group.name: np.asarray(importance[group.name]) for group in groups}
    classes: dict[str, list[str]] = {}
    for group in groups:
        label = group.name if ranking == "layer" else group.signature
        classes.setdefault(label, []).append(group.name)
    found = {}
    for names in classes.values():
        found |= dict(zip(names, _places([importance[name] for name in names]), strict=True))
    return found


def _places(importances: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Returns the places of all numbers in their common order, over how many there are."""
    together = np.concatenate(importances)
    places = np.empty(len(together))
    places[np.argsort(together, kind="stable")] = np.arange(1, len(together) + 1) / len(together)
    return np.split(places, np.cumsum([len(x) for x in importances])[:-1])
