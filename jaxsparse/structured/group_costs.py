"""Multiply-adds and parameters of a network as functions of the widths of its groups of channels.

A leaf's parameters are the product of the lengths of its axes, and so are, times a constant, the
multiply-adds of a convolution or dense layer. An axis holds what no group removes and, for each of
its groups, so many indices a unit.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping

from jaxsparse.paths import listed
from jaxsparse.structured.groups import ChannelGroups
from jaxsparse.tracing.flops import OTHER
from jaxsparse.types import OptionError


@dataclasses.dataclass(frozen=True, eq=False)
class GroupCosts:
    """What a network costs at given widths; `group_costs` makes it.

    Attributes:
      by: "macs" or "params".
      full: the width of every group.
      leaves: by path, what the leaf costs at full widths.
      lengths: by path and axis, the indices that stay and (group, indices a unit) of all groups.
      constant: the cost of what has no leaf, such as the products of two activations.
    """

    by: str
    full: Mapping[str, int]
    leaves: Mapping[str, float]
    lengths: Mapping[str, tuple[tuple[int, tuple[tuple[str, int], ...]], ...]]
    constant: float

    def __call__(self, widths: Mapping[str, int]) -> float:
        """Returns the cost at these widths; groups that are missing have their full width."""
        return self.constant + sum(self.of_leaf(path, widths) for path in self.leaves)

    def of_leaf(self, path: str, widths: Mapping[str, int]) -> float:
        """Returns the cost of one leaf."""
        cost = self.leaves[path]
        for stays, groups in self.lengths[path]:
            before = stays + sum(each * self.full[name] for name, each in groups)
            after = stays + sum(each * widths.get(name, self.full[name]) for name, each in groups)
            cost *= after / before
        return cost

    def leaves_of(self, name: str) -> Iterator[str]:
        """Yields the leaves whose cost depends on a group's width."""
        for path, axes in self.lengths.items():
            if any(name == group for _, groups in axes for group, _ in groups):
                yield path


def group_costs(groups: ChannelGroups, flops: Mapping[str, int] | None = None) -> GroupCosts:
    """Returns a network's cost as a function of widths: multiply-adds, or parameters without flops.

    Args:
      groups: from `channel_groups`.
      flops: forward FLOPs of one example by path (2 for a multiply-add), from `layer_flops` of the
        same function and tree. None counts parameters, the entries of all leaves. Products of two
        activations, such as attention's, count as constant.

    Raises:
      ValueError: flops of a leaf that the groups lack.

    >>> import jax.numpy as jnp
    >>> from jaxsparse.structured import channel_groups
    >>> params = {"up": jnp.ones((4, 16)), "bias": jnp.ones(16), "down": jnp.ones((16, 2))}
    >>> mlp = lambda p, x: jnp.tanh(x @ p["up"] + p["bias"][None]) @ p["down"]
    >>> costs = group_costs(channel_groups(mlp, params, jnp.ones((1, 4))))
    >>> costs({}), costs({"up": 8})
    (112.0, 56.0)
    """
    lengths = {}
    for path, shape in groups.shapes.items():
        axes = []
        for axis, size in enumerate(shape):
            found = [
                (group.name, member.indices.shape[1], member.indices.size)
                for group in groups.of(path, axis)
                for member in group.members
                if (member.path, member.axis) == (path, axis)
            ]
            stays = size - sum(num for *_, num in found)
            axes.append((stays, tuple((name, each) for name, each, _ in found)))
        lengths[path] = tuple(axes)
    full = {group.name: group.width for group in groups}
    if flops is None:
        sizes = {path: float(math.prod(shape)) for path, shape in groups.shapes.items()}
        return GroupCosts("params", full, sizes, lengths, 0.0)
    known = {path: num / 2 for path, num in flops.items() if path in groups.shapes}
    rest = {path: num for path, num in flops.items() if path not in groups.shapes}
    if wrong := [path for path in rest if path != OTHER]:
        raise OptionError("flops", wrong[0], f"is no leaf of the groups; {listed(groups.shapes)}")
    lengths = {path: lengths[path] for path in known}
    return GroupCosts("macs", full, known, lengths, sum(rest.values()) / 2)
