"""Structured pruning: channels of a network that are removed together.

`channel_groups` traces a network and ties the indices of its leaves' axes by the relations between
operations. A walk fills in a `record` of joined and frozen `units`. The `relations` of operations
are in `moves`, `reshapes`, `products`, `lookups` and `along`. Then `splits` chooses among the
factors of reshaped axes, and `gathering` makes the `groups`.
"""

from jaxsparse.structured.channel_groups import channel_groups
from jaxsparse.structured.groups import ChannelGroup, ChannelGroups, FrozenAxis, Member

__all__ = ["ChannelGroups", "FrozenAxis", "ChannelGroup", "Member", "channel_groups"]
