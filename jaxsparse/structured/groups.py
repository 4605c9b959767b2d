"""The result of the analysis: groups of channels that are removed together, and axes that stay."""

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, TypeAlias

import numpy as np

from jaxsparse.paths import listed
from jaxsparse.text_table import text_table
from jaxsparse.types import Shapes

MemberRole: TypeAlias = Literal["output", "input", "both", "other"]


@dataclasses.dataclass(frozen=True, eq=False)
class Member:
    """An axis of a leaf that becomes shorter with a group.

    Attributes:
      path: of the leaf.
      axis: of the leaf, at least 0.
      indices: int[width, indices of a unit], along the axis: row i is removed with unit i.
      role: "output" if a product with data gives this axis to its result, "input" if one sums over
        it, "both" for tied weights, "other" for biases, norms and statistics.
      kind: the operations that use the axis so, such as "dot_general"; "" for others.
    """

    path: str
    axis: int
    indices: np.ndarray
    role: MemberRole
    kind: str

    @property
    def where(self) -> str:
        """The leaf and its axis, and how many indices a unit has there if it has several."""
        each = self.indices.shape[1]
        return f"{self.path} axis {self.axis}" + (f" ({each} indices a unit)" if each > 1 else "")

    @property
    def block(self) -> int:
        """Indices a unit if they are neighbours, as those of a head or group are; else 0."""
        are_neighbours = bool((np.diff(self.indices, axis=1) == 1).all())
        return self.indices.shape[1] if are_neighbours else 0

    def __str__(self) -> str:
        roles = {"both": ", output and input", "other": ""}
        return self.where + roles.get(self.role, f", {self.role}")


@dataclasses.dataclass(frozen=True, eq=False)
class ChannelGroup:
    """Units that are alike: each is removed from the same axes, with as many indices of each.

    Attributes:
      name: the path of the first leaf that makes its channels, without "/kernel" and the like; a
        number follows if an earlier group has this name.
      width: how many units there are.
      members: the axes that they are removed from: those that make the channels first, in the order
        of the program, then those that read them, then the others.
      notes: what else changes with the number of units. Removal is exact if there are none: the
        network computes what it computes if all entries of the removed units are 0.
      cuts: operations that cut or pad these channels at places that the function fixes. Narrow
        channels may have to be cut elsewhere.
      signature: the same for groups with the same structure, whatever their names and widths: as
        many members of the same kinds, axes and windows.
    """

    name: str
    width: int
    members: tuple[Member, ...]
    notes: tuple[str, ...]
    cuts: tuple[str, ...]
    signature: str

    @property
    def producers(self) -> tuple[str, ...]:
        """The leaves that make the channels; several if a sum or a concatenation couples them."""
        return tuple(m.path for m in self.members if m.role in ("output", "both"))

    @property
    def consumers(self) -> tuple[str, ...]:
        """The leaves that read the channels."""
        return tuple(m.path for m in self.members if m.role in ("input", "both"))


@dataclasses.dataclass(frozen=True, eq=False)
class FrozenAxis:
    """Indices of a leaf's axis that stay.

    Attributes:
      path: of the leaf.
      axis: of the leaf, at least 0.
      indices: int[any], rising: those that stay.
      reason: what froze them first.
      place: of the operation that did: its scope and source line; "" if none did.
    """

    path: str
    axis: int
    indices: np.ndarray
    reason: str
    place: str


@dataclasses.dataclass(frozen=True, eq=False)
class ChannelGroups:
    """The channels of a network that are removed together, and those that stay.

    Units of all groups may be removed in any combination that leaves an index of every axis.
    `print` gives a table of the groups. `groups[name]` is a group, and iteration goes through all.

    Attributes:
      groups: in the order of the program. No index of a leaf's axis is in two of them.
      frozen: indices of axes longer than 1 that are in no group.
      shapes: of all leaves, by path.
    """

    groups: tuple[ChannelGroup, ...]
    frozen: tuple[FrozenAxis, ...]
    shapes: Shapes

    def __iter__(self) -> Iterator[ChannelGroup]:
        return iter(self.groups)

    def __len__(self) -> int:
        return len(self.groups)

    @functools.cached_property
    def _by_name(self) -> Mapping[str, ChannelGroup]:
        return {group.name: group for group in self.groups}

    def __getitem__(self, name: str) -> ChannelGroup:
        if name not in self._by_name:
            raise KeyError(f"no group {name}; there are {listed(self._by_name)}")
        return self._by_name[name]

    def of(self, path: str, axis: int | None = None) -> tuple[ChannelGroup, ...]:
        """Returns the groups that a leaf is a member of, with one axis or with any.

        Raises:
          ValueError: there is no such leaf.
        """
        self._check(path)
        axis = axis if axis is None else axis % len(self.shapes[path])
        is_it = lambda m: m.path == path and axis in (None, m.axis)
        return tuple(group for group in self.groups if any(map(is_it, group.members)))

    def members(self, path: str, axis: int) -> tuple[Member, ...]:
        """Returns the memberships of one axis of a leaf, of one group each.

        Raises:
          ValueError: there is no such leaf.
        """
        groups, axis = self.of(path, axis), axis % len(self.shapes[path])
        found = (member for group in groups for member in group.members)
        return tuple(m for m in found if (m.path, m.axis) == (path, axis))

    def explain(self, path: str) -> str:
        """Returns in sentences what is tied to each axis of a leaf, and what keeps it whole.

        Raises:
          ValueError: there is no such leaf.
        """
        self._check(path)
        lines = [f"{path} {self.shapes[path]}:"]
        for axis, size in enumerate(self.shapes[path]):
            lines += [f"  {line}" for line in self._axis_lines(path, axis, size)]
        return "\n".join(lines)

    def _axis_lines(self, path: str, axis: int, size: int) -> Iterator[str]:
        if size == 1:
            yield f"axis {axis} has a single index, which stays."
        for group in self.of(path, axis):
            others = [m.where for m in group.members if (m.path, m.axis) != (path, axis)]
            mine = next(m for m in group.members if (m.path, m.axis) == (path, axis))
            each = f" of {mine.indices.shape[1]} indices" if mine.indices.shape[1] > 1 else ""
            together = f", removed together with {listed(others)}" if others else ""
            num = f"{group.width} unit{'s' * (group.width > 1)}"
            yield f"axis {axis}: {num}{each} of the group {group.name}{together}."
            for note in group.notes:
                yield f"  Their number matters: {note}."
            for cut in group.cuts:
                yield f"  Their places matter: {cut}."
        for frozen in self.frozen:
            if (frozen.path, frozen.axis) == (path, axis):
                part = "" if len(frozen.indices) == size else f"{len(frozen.indices)} indices of "
                stays = "stay" if part else "stays whole"
                place = f", {frozen.place}" if frozen.place else ""
                yield f"{part}axis {axis} {stays}: {frozen.reason}{place}."

    def _check(self, path: str) -> None:
        if path not in self.shapes:
            raise ValueError(f"there is no leaf {path}; the leaves are {listed(self.shapes)}")

    def __str__(self) -> str:
        """Returns a table of the groups, and one of the reasons why other axes stay."""
        rows = [["group", "width", "producers", "read by", "others", "notes"]]
        for group in self.groups:
            read = _shown(list(map(layer_of, group.consumers)))
            others = sum(m.role == "other" for m in group.members)
            counts = [str(n) for n in (group.width, len(group.producers), others)]
            rows.append([group.name, *counts[:2], read, counts[2], _shown(group.notes)])
        lines = text_table(rows, "<>><><")
        first: dict[str, list[FrozenAxis]] = {}
        for frozen in self.frozen:
            first.setdefault(frozen.reason, []).append(frozen)
        if first:
            rows = [["axes that stay", "because of", "first"]]
            rows += [
                [str(len(each)), why, f"{each[0].path} axis {each[0].axis} {each[0].place}".strip()]
                for why, each in first.items()
            ]
            lines += ["", *text_table(rows, "><<")]
        return "\n".join(lines)


def layer_of(path: str) -> str:
    """Returns a path without the name of a weight.

    >>> layer_of("params/conv1/kernel"), layer_of("head/bias"), layer_of("w")
    ('params/conv1', 'head/bias', 'w')
    """
    above, _, last = path.rpartition("/")
    return above if above and last in ("kernel", "weight", "w", "embedding") else path


def _shown(what: Sequence[str]) -> str:
    return f"{what[0]} and {len(what) - 1} more" if len(what) > 1 else "".join(what)
