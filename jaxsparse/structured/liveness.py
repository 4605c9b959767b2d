"""Which units of a group no weight makes, or reads."""

from collections.abc import Mapping, Sequence

import numpy as np

from jaxsparse.structured.groups import ChannelGroup, Member


def any_entry(alive: np.ndarray, member: Member) -> np.ndarray:
    """Returns whether a unit has an entry that is alive in a member's leaf, bool[width]."""
    entries = np.moveaxis(alive, member.axis, 0)[member.indices]
    return np.asarray(entries.reshape(len(entries), -1).any(axis=1))


def readers(group: ChannelGroup) -> Sequence[Member]:
    """Returns the members that read the channels, tied weights among them."""
    return [member for member in group.members if member.role in ("input", "both")]


def unread(group: ChannelGroup, alive: Mapping[str, np.ndarray]) -> np.ndarray:
    """Returns which units no weight that is alive reads, bool[width]; none if nothing can.

    Args:
      group: any.
      alive: bool, by path of the leaf and of its shape.
    """
    return _none(readers(group), group.width, alive)


def unmade(group: ChannelGroup, alive: Mapping[str, np.ndarray]) -> np.ndarray:
    """Returns which units no weight that is alive makes, bool[width]; arguments as in `unread`."""
    makers = [member for member in group.members if member.role in ("output", "both")]
    return _none(makers, group.width, alive)


def _none(members: Sequence[Member], width: int, alive: Mapping[str, np.ndarray]) -> np.ndarray:
    if not members:
        return np.zeros(width, bool)
    return ~np.any([any_entry(alive[member.path], member) for member in members], axis=0)
