"""The cost of a network as a function of the widths of its layers.

A convolution or dense layer costs a * w_in * w_out multiply-adds: a is the number of positions and
taps, and the widths are numbers of channels. If widths are those that compactors leave, then

    MAC(w) = sum_l a_l w_in(l) w_out(l),

where a width that no compactor rules is constant. The coefficients come from the FLOPs counter of
the package, so a table's full cost is the counter's, and so is that of any narrower network.
"""

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import NamedTuple

from jaxsparse.paths import listed


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


class LayerCost(NamedTuple):
    """The cost of a layer: coefficient * product of the widths of its groups.

    Attributes:
      layer: path of its kernel.
      coefficient: multiply-adds for each combination of one channel of every group.
      groups: names of the groups, none, one or two.
    """

    layer: str
    coefficient: int | Fraction
    groups: tuple[str, ...]


class CostTable(NamedTuple):
    """The cost of a network as a function of the widths of groups of channels; call it.

    Attributes:
      layers: those whose cost changes with a width.
      constant: multiply-adds of all other products.
      widths: the full width of every group.
    """

    layers: tuple[LayerCost, ...]
    constant: int
    widths: dict[str, int]

    def __call__(self, widths: Mapping[str, int]) -> int:
        """Returns the multiply-adds of one example at the given widths; missing ones are full."""
        total = self.constant + sum(self._cost(layer, widths) for layer in self.layers)
        return int(total)

    def _cost(self, layer: LayerCost, widths: Mapping[str, int]) -> int | Fraction:
        cost = layer.coefficient
        for group in layer.groups:
            cost *= widths.get(group, self.widths[group])
        return cost


def cost_table(
    flops: Mapping[str, int], ruled: Sequence[Ruled], widths: Mapping[str, int]
) -> CostTable:
    """Returns the cost of a network as a function of widths.

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
        coefficient = Fraction(flops[record.layer], 2)
        for group in groups:
            coefficient /= widths[group]
        exact = int(coefficient) if coefficient.denominator == 1 else coefficient
        layers.append(LayerCost(record.layer, exact, groups))
    ruling = {group for layer in layers for group in layer.groups}
    if idle := [group for group in widths if group not in ruling]:
        raise ValueError(f"{listed(idle)} rules the width of no layer")
    rest = set(flops).difference(layer.layer for layer in layers)
    return CostTable(tuple(layers), sum(flops[path] for path in rest) // 2, dict(widths))
