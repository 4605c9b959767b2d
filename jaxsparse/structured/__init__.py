"""Structured pruning: channels of a network that are removed together.

`channel_groups` traces a network and ties the indices of its leaves' axes by the relations between
operations. A walk fills in a `record` of joined and frozen `units`; `moves`, `products` and
`lookups` have the relations; `splits` chooses among the factors of a reshaped axis; `gathering`
makes the `groups`.
"""

from jaxsparse.structured.channel_groups import channel_groups
from jaxsparse.structured.groups import ChannelGroups, FrozenAxis, Group, Member

__all__ = ["ChannelGroups", "FrozenAxis", "Group", "Member", "channel_groups"]
