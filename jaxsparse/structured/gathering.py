"""Groups from units: classes of joined units that have members in the same axes."""

import collections
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from jaxsparse.structured.groups import (
    ChannelGroup,
    ChannelGroups,
    FrozenAxis,
    Member,
    MemberRole,
    layer_of,
)
from jaxsparse.structured.record import Record
from jaxsparse.structured.units import Reason, Units
from jaxsparse.types import Shapes

_NEVER = np.iinfo(np.int64).max


class _Place(NamedTuple):
    """An axis of a leaf. Sorted by root, its classes are stretches of `order`."""

    path: str
    axis: int
    units: np.ndarray  # int[size], the leaf's own, before they were joined
    order: np.ndarray  # int[size], indices sorted by class
    roots: np.ndarray  # int[classes], rising
    starts: np.ndarray  # int[classes], of each class in `order`
    counts: np.ndarray  # int[classes]


_RANKS: dict[MemberRole, int] = {"output": 0, "both": 0, "input": 1, "other": 2}
_Key: TypeAlias = tuple[tuple[int, int], ...]
"""The number of a place and the indices that a unit has there, for every place it is in."""


class _Uses:
    """The use of every unit by products.

    Attributes:
      first: by role, int[units], the number of the first use; a large number if there is none.
      kinds: what all uses are, by their number.
    """

    def __init__(self, record: Record):
        num = len(record.units)
        self.first = {role: np.full(num, _NEVER) for role in ("output", "input")}
        self.kinds = [use.kind for use in record.uses]
        for i, use in enumerate(record.uses):
            np.minimum.at(self.first[use.role], use.units, i)


class _Found(NamedTuple):
    places: Sequence[_Place]
    shapes: Shapes
    uses: _Uses
    notes: Mapping[int, Mapping[str, None]]
    cuts: Mapping[int, Mapping[str, None]]


def gathered(record: Record, axes: Mapping[str, Sequence[np.ndarray]]) -> ChannelGroups:
    """Returns the groups and the frozen axes.

    Args:
      record: all splits settled.
      axes: the units of every axis of every leaf, by path.
    """
    shapes = {path: tuple(map(len, each)) for path, each in axes.items()}
    places = [
        _place(record.units, path, axis, units)
        for path, each in axes.items()
        for axis, units in enumerate(each)
        if len(units) > 1
    ]
    said = [_by_root(record.units, pairs) for pairs in (record.notes, record.cuts)]
    found = _Found(places, shapes, _Uses(record), *said)
    ranked, alone = [], []
    for key, roots in _by_key(record.units, places).items():
        is_all = any(count * len(roots) == len(places[i].units) for i, count in key)
        if len(roots) == 1 and is_all:
            alone += roots
        else:
            ranked.append(_group(found, key, roots))
    groups = _named(sorted(ranked, key=lambda pair: pair[0]))
    return ChannelGroups(groups, tuple(_frozen(record.units, places, alone)), shapes)


def _place(units: Units, path: str, axis: int, own: np.ndarray) -> _Place:
    of = units.roots(own)
    order = np.argsort(of, kind="stable")
    roots, starts, counts = np.unique(of[order], return_index=True, return_counts=True)
    return _Place(path, axis, own, order, roots, starts, counts)


def _by_key(units: Units, places: Sequence[_Place]) -> dict[_Key, list[int]]:
    """Returns the free classes by the places that they are in."""
    keys: dict[int, list[tuple[int, int]]] = {}
    for number, place in enumerate(places):
        free = units.is_free(place.roots)
        pairs = zip(place.roots[free].tolist(), place.counts[free].tolist(), strict=True)
        for root, count in pairs:
            keys.setdefault(root, []).append((number, count))
    found: dict[_Key, list[int]] = {}
    for root, key in keys.items():
        found.setdefault(tuple(key), []).append(root)
    return found


def _by_root(units: Units, said: Sequence[tuple[np.ndarray, Reason]]) -> dict[int, dict[str, None]]:
    """Returns what is said of every class, by root; the keys of a dict keep their order."""
    found: dict[int, dict[str, None]] = {}
    for axis, reason in said:
        for root in np.unique(units.roots(axis)).tolist():
            found.setdefault(root, {})[str(reason)] = None
    return found


def _group(found: _Found, key: _Key, roots: Sequence[int]) -> tuple[tuple[int, int], ChannelGroup]:
    """Returns a group, still named by a path, and its rank in the order of the program."""
    members = []
    for number, count in key:
        place = found.places[number]
        starts = place.starts[np.searchsorted(place.roots, roots)]
        indices = place.order[starts[:, None] + np.arange(count)]
        role, kind, first = _role(found.uses, place.units[indices.ravel()])
        members.append((_RANKS[role], first, number, indices, role, kind))
    members.sort(key=lambda member: member[:3])
    order = np.argsort(members[0][3].min(1), kind="stable")  # by the place in the first member
    built = tuple(
        Member(found.places[number].path, found.places[number].axis, indices[order], role, kind)
        for *_, number, indices, role, kind in members
    )
    notes, cuts = (
        tuple(dict.fromkeys(what for root in roots for what in said.get(root, ())))
        for said in (found.notes, found.cuts)
    )
    name, signature = layer_of(built[0].path), _signature(found.shapes, built)
    group = ChannelGroup(name, len(roots), built, notes, cuts, signature)
    return (min(first for _, first, *_ in members), members[0][2]), group


def _role(uses: _Uses, own: np.ndarray) -> tuple[MemberRole, str, int]:
    """Returns the role of a leaf's units, the operations that use them so, and the first use."""
    firsts = {role: int(first[own].min()) for role, first in uses.first.items()}
    used = {role: first for role, first in firsts.items() if first < _NEVER}
    if not used:
        return "other", "", _NEVER
    kinds = ", ".join(uses.kinds[first] for first in used.values())
    role = "both" if len(used) > 1 else "output" if "output" in used else "input"
    return role, kinds, min(used.values())


def _signature(shapes: Shapes, members: Sequence[Member]) -> str:
    """Returns the structure of a group: the kinds of its members, sorted, and how many of each."""
    shown = collections.Counter(
        f"{m.role} {m.kind}".strip() + f" axis {m.axis} of {len(shapes[m.path])}" for m in members
    )
    return "; ".join(f"{count} {what}" for what, count in sorted(shown.items()))


def _named(ranked: Sequence[tuple[Any, ChannelGroup]]) -> tuple[ChannelGroup, ...]:
    """Numbers groups that share a name, such as the halves of a layer's outputs."""
    seen: collections.Counter[str] = collections.Counter()
    named = []
    for _, group in ranked:
        seen[group.name] += 1
        number = seen[group.name]
        name = f"{group.name} ({number})" if number > 1 else group.name
        named.append(dataclasses.replace(group, name=name))
    return tuple(named)


def _frozen(units: Units, places: Sequence[_Place], alone: Sequence[int]) -> Iterator[FrozenAxis]:
    """Yields the indices of every axis that are in no group, by reason."""
    for place in places:
        is_free = units.is_free(place.units)
        frozen: dict[tuple[str, str], list[np.ndarray]] = {}
        for why, indices in units.by_reason(place.units):
            frozen.setdefault((why.what, why.place), []).append(indices)
        for (what, where), parts in frozen.items():
            indices = np.sort(np.concatenate(parts))
            yield FrozenAxis(place.path, place.axis, indices, what, where)
        at = np.flatnonzero(is_free & np.isin(units.roots(place.units), alone))
        if len(at):
            reason = "all its indices could only be removed at once"
            yield FrozenAxis(place.path, place.axis, at, reason, "")
