"""Layers whose widths a plan cannot change: they are refused by name."""

from collections.abc import Iterable, Mapping
from typing import Any


def check_group_norm(path: str, num_groups: int | None) -> None:
    """Refuses a group norm without scale and bias in a network that becomes narrower.

    Its channels have no leaf, so nothing says whether it loses whole groups or a part of each, or
    is not in the plan. A single group normalises whatever is left.

    Raises:
      ValueError: it has more than one group; `num_groups` None counts as such.
    """
    if num_groups != 1:
        raise ValueError(
            f"{path or 'the model'} is a group norm without scale and bias, so it is not known how "
            "many of its groups the plan leaves: give it one of them (use_bias=True), with which "
            "the plan follows it"
        )


def check_cell(path: str, changed: Mapping[str, Iterable[tuple[int, ...]]]) -> None:
    """Refuses a recurrent cell whose carry would become narrower; fewer inputs are fine.

    Args:
      path: of the cell.
      changed: by the path of a leaf, its shapes before and after.

    Raises:
      ValueError: a leaf of the cell loses other indices than those of its inputs.
    """
    prefix = f"{path}/" if path else ""
    for leaf, shapes in changed.items():
        if not leaf.startswith(prefix):
            continue
        before, after = shapes
        reads_inputs = leaf.removeprefix(prefix).startswith(("i", "dense_i"))
        if before[-1] != after[-1] or not reads_inputs:
            raise ValueError(
                f"{path or 'the model'} is a recurrent cell, whose carry keeps its width, but "
                f"{leaf} would go from {before} to {after}: give the cell's leaves as ignored= to "
                "channel_groups, or keep all units of their groups"
            )


def shapes_of(changes: Mapping[str, Mapping[str, Any]]) -> dict[str, tuple[tuple[int, ...], ...]]:
    """Returns the shapes before and after by the path of a leaf, from changes by layer and leaf."""
    return {
        f"{layer}/{leaf}" if layer else leaf: (change.before, change.after)
        for layer, leaves in changes.items()
        for leaf, change in leaves.items()
    }
