"""The cost of a network as a function of the widths of its groups of channels.

A leaf's parameters are the product of the lengths of its axes. So are, times a constant, the
multiply-adds of a convolution or dense layer. An axis holds what no group removes and, for each of
its groups, so many indices a unit. The constants come from the FLOPs counter of the package, so a
table's full cost is the counter's, and so is that of any narrower network.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NamedTuple, TypeAlias

from jaxsparse.paths import listed
from jaxsparse.structured.groups import ChannelGroups
from jaxsparse.tracing.flops import OTHER
from jaxsparse.types import OptionError

By: TypeAlias = Literal["multiply-adds", "parameters"]


class Ruled(NamedTuple):
    """A layer, and what rules its widths.

    Attributes:
      layer: path of its kernel.
      inputs: name of the group of channels that its inputs belong to, such as the path of a
        compactor; None if their number is constant.
      outputs: the same for its outputs. A depthwise convolution has one group: name it here alone.
    """

    layer: str
    inputs: str | None = None
    outputs: str | None = None


class Length(NamedTuple):
    """The length of an axis.

    Attributes:
      stays: indices that no group removes.
      groups: (name of a group, indices a unit), for all groups of the axis.
    """

    stays: int
    groups: tuple[tuple[str, int], ...]

    def at(self, widths: Mapping[str, int]) -> int:
        """Returns the length at the given widths, which name all groups of the axis."""
        return self.stays + sum(each * widths[name] for name, each in self.groups)


class LayerCost(NamedTuple):
    """The cost of a leaf: that at full widths, times the shares of its axes that are left.

    Attributes:
      layer: its path.
      full: at full widths.
      lengths: of the axes that can become shorter.
    """

    layer: str
    full: int
    lengths: tuple[Length, ...]

    def at(self, widths: Mapping[str, int], full_widths: Mapping[str, int]) -> float:
        """Returns the cost at the given widths; exact up to 2^53."""
        after = math.prod(length.at(widths) for length in self.lengths)
        before = math.prod(length.at(full_widths) for length in self.lengths)
        return self.full * after / before


class CostTable(NamedTuple):
    """The cost of a network as a function of the widths of groups of channels; call it.

    Attributes:
      layers: the leaves whose cost changes with a width.
      constant: the cost of all others, and of products of two activations.
      widths: the full width of every group.
      by: what is counted, "multiply-adds" of one example or "parameters".
    """

    layers: tuple[LayerCost, ...]
    constant: int
    widths: dict[str, int]
    by: By = "multiply-adds"

    def __call__(self, widths: Mapping[str, int]) -> int:
        """Returns the cost at the given widths; missing ones are full. Others are not looked at."""
        found = {name: widths.get(name, full) for name, full in self.widths.items()}
        return round(self.constant + sum(layer.at(found, self.widths) for layer in self.layers))

    def layers_of(self, name: str) -> Iterator[LayerCost]:
        """Yields the layers whose cost changes with a group's width."""
        for layer in self.layers:
            if any(name == group for length in layer.lengths for group, _ in length.groups):
                yield layer

    def ruled_by(self, names: Mapping[str, str]) -> "CostTable":
        """Returns the table of some groups under other names; the others have full widths.

        Args:
          names: the new name of every group that stays in the table.
        """
        fixed = lambda length: sum(
            each * self.widths[name] for name, each in length.groups if name not in names
        )
        renamed = lambda length: Length(
            length.stays + fixed(length),
            tuple((names[name], each) for name, each in length.groups if name in names),
        )
        layers, constant = [], self.constant
        for layer in self.layers:
            lengths = tuple(x for x in map(renamed, layer.lengths) if x.groups)
            if lengths:
                layers.append(layer._replace(lengths=lengths))
            else:
                constant += layer.full
        widths = {new: self.widths[name] for name, new in names.items()}
        return CostTable(tuple(layers), constant, widths, self.by)


def cost_table(
    flops: Mapping[str, int], ruled: Sequence[Ruled], widths: Mapping[str, int]
) -> CostTable:
    """Returns the multiply-adds of a network whose widths are ruled as said, layer by layer.

    Args:
      flops: of the full network without compactors, by path, as `jaxsparse.layer_flops` returns
        them: 2 for a multiply-add.
      ruled: the layers whose widths are ruled. Other layers, and products of no leaf, are constant.
      widths: the full width of every group, at least 1.

    Raises:
      ValueError: a layer without FLOPs or named twice, a group without a width, or one that rules
        nothing.

    >>> flops = {"conv1": 2 * 9 * 3 * 16, "conv2": 2 * 9 * 16 * 8, "fc": 2 * 80}
    >>> ruled = [Ruled("conv1", None, "q"), Ruled("conv2", "q", None)]
    >>> table = cost_table(flops, ruled, {"q": 16})
    >>> table({}), table({"q": 15})
    (1664, 1565)
    """
    layers = []
    for record in ruled:
        if record.layer not in flops:
            raise ValueError(f"{record.layer} has no FLOPs; there are {listed(flops)}")
        if record.layer in [cost.layer for cost in layers]:
            raise ValueError(
                f"{record.layer} is ruled twice; name both of its groups in one record"
            )
        groups = tuple(group for group in record[1:] if group is not None)
        for group in groups:
            if group not in widths:
                raise ValueError(f"{record.layer}: no width of {group}; there are {listed(widths)}")
        lengths = tuple(Length(0, ((group, 1),)) for group in groups)
        layers.append(LayerCost(record.layer, flops[record.layer] // 2, lengths))
    ruling = {group for layer in layers for length in layer.lengths for group, _ in length.groups}
    if idle := [group for group in widths if group not in ruling]:
        raise ValueError(f"{listed(idle)} rules the width of no layer")
    rest = set(flops).difference(layer.layer for layer in layers)
    return CostTable(tuple(layers), sum(flops[path] for path in rest) // 2, dict(widths))


def group_costs(groups: ChannelGroups, flops: Mapping[str, int] | None = None) -> CostTable:
    """Returns the cost of a network by the widths of its groups, from `channel_groups`.

    Args:
      groups: of the network.
      flops: forward FLOPs of one example by path, from `layer_flops` of the same function and tree.
        None counts parameters, the entries of all leaves. Products of two activations, such as
        attention's, count as constant.

    Raises:
      ValueError: flops of a leaf that the groups lack.

    >>> import jax.numpy as jnp
    >>> from jaxsparse.structured import channel_groups
    >>> params = {"up": jnp.ones((4, 16)), "bias": jnp.ones(16), "down": jnp.ones((16, 2))}
    >>> mlp = lambda p, x: jnp.tanh(x @ p["up"] + p["bias"][None]) @ p["down"]
    >>> costs = group_costs(channel_groups(mlp, params, jnp.ones((1, 4))))
    >>> costs({}), costs({"up": 8})
    (112, 56)
    """
    found: dict[str, list[Length]] = {}
    for (path, axis), of in _groups_of_axes(groups).items():
        stays = groups.shapes[path][axis] - sum(num for *_, num in of)
        length = Length(stays, tuple((name, each) for name, each, _ in of))
        found.setdefault(path, []).append(length)
    widths = {group.name: group.width for group in groups}
    by: By = "parameters" if flops is None else "multiply-adds"
    if flops is None:
        costs = {path: math.prod(shape) for path, shape in groups.shapes.items()}
    else:
        if wrong := [path for path in flops if path != OTHER and path not in groups.shapes]:
            raise OptionError("flops", wrong[0], f"is no leaf of {listed(groups.shapes)}")
        costs = {path: num // 2 for path, num in flops.items()}
    layers = tuple(LayerCost(p, costs[p], tuple(found[p])) for p in costs if p in found)
    constant = sum(cost for path, cost in costs.items() if path not in found)
    return CostTable(layers, constant, widths, by)


def _groups_of_axes(groups: ChannelGroups) -> dict[tuple[str, int], list[tuple[str, int, int]]]:
    """The (group, indices a unit, indices in all) of every axis that has groups."""
    found: dict[tuple[str, int], list[tuple[str, int, int]]] = {}
    for group in groups:
        for member in group.members:
            entry = (group.name, member.indices.shape[1], member.indices.size)
            found.setdefault((member.path, member.axis), []).append(entry)
    return found
