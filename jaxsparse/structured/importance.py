"""The importance of channels: one number for every unit of every group, from scores of weights.

    scores = jax.tree.map(jnp.abs, variables)                # L1
    importance = channel_importance(groups, scores)

Scores are a tree like the variables that the groups were found in, and so can come from anywhere:
|w| (L1, Li et al. 2017), w^2 (L2), |w g| or w g (Taylor, Molchanov et al. 2017 and 2019), a norm's
|gamma| (network slimming, Liu et al. 2017), uniform numbers (random).
"""

from collections.abc import Callable, Mapping
from typing import Literal, TypeAlias, get_args

import numpy as np

from jaxsparse.paths import leaves_by_path, listed
from jaxsparse.structured.groups import ChannelGroup, ChannelGroups, Member
from jaxsparse.types import OptionError, PyTree

Importance: TypeAlias = Mapping[str, np.ndarray]
"""float64[width] by the name of a group: what each of its units is worth."""
Which: TypeAlias = Literal["output", "input", "product", "norm", "all"]
_WHICH: dict[str, Callable[[Member], bool]] = {
    "output": lambda member: member.role in ("output", "both"),
    "input": lambda member: member.role in ("input", "both"),
    "product": lambda member: member.role != "other",
    "norm": lambda member: member.role == "other" and member.path.endswith(("scale", "gamma")),
    "all": lambda member: True,
}


def channel_importance(
    groups: ChannelGroups,
    scores: PyTree,
    *,
    of: Which = "output",
    normalised: bool = True,
) -> dict[str, np.ndarray]:
    """Returns what every unit is worth: the sum of its entries' scores.

    Args:
      groups: from `channel_groups`.
      scores: float arrays, a tree like the `params` of the groups, with any sign: a unit's worth is
        the absolute value of its sum. (So the first-order Taylor score w g cancels within a unit,
        as published, and |w g| does not. Before a batch norm the sum of w g over a filter is 0, as
        its scale has no effect: give w g of the norms' scales and biases and 0 elsewhere, with
        `of="all"`.)
      of: which members count: those that make the channels ("output"), read them ("input"), both
        ("product"), scales of norms ("norm"), or every one ("all"). A group without such members
        is ranked by those that make its channels.
      normalised: divide by the mean over the group, without which groups of large layers and of
        small ones cannot be compared. A group whose scores are all 0 keeps them.

    Returns:
      float64[width] by group, at least 0.

    Raises:
      ValueError: scores are not like the tree of the groups, or one is not finite; names the leaf.

    >>> import jax.numpy as jnp
    >>> from jaxsparse.structured import channel_groups
    >>> params = {"up": jnp.array([[1.0, -3.0]]), "down": jnp.array([[5.0], [1.0]])}
    >>> groups = channel_groups(lambda p, x: x @ p["up"] @ p["down"], params, jnp.ones((1, 1)))
    >>> scores = {path: abs(w) for path, w in params.items()}
    >>> channel_importance(groups, scores, normalised=False)
    {'up': array([1., 3.])}
    >>> channel_importance(groups, scores, of="product", normalised=False)
    {'up': array([6., 4.])}
    """
    if of not in _WHICH:
        raise OptionError("of", of, f"must be one of {', '.join(get_args(Which))}")
    leaves = _checked(groups, scores)
    found = {}
    for group in groups:
        members = [m for m in group.members if _WHICH[of](m)]
        members = members or [m for m in group.members if _WHICH["output"](m)]
        worth = _worth(group, members or group.members, leaves)
        found[group.name] = _over_mean(worth) if normalised else worth
    return found


def activation_importance(
    groups: ChannelGroups, means: Mapping[str, np.ndarray], *, normalised: bool = True
) -> dict[str, np.ndarray]:
    """Returns what every unit is worth by its mean |activation|, given by the user's own pass.

    Args:
      groups: from `channel_groups`.
      means: float[width] by group, such as the mean over data of |activation| of each channel.
      normalised: as in `channel_importance`.

    Raises:
      ValueError: a group is missing or its width differs; names it.
    """
    found = {}
    for group in groups:
        if group.name not in means:
            raise ValueError(f"means lack the group {group.name}; they have {listed(means)}")
        worth = np.abs(np.asarray(means[group.name], np.float64))
        if worth.shape != (group.width,):
            raise ValueError(f"means of {group.name} are {worth.shape}, its width {group.width}")
        found[group.name] = _over_mean(worth) if normalised else worth
    return found


def random_importance(groups: ChannelGroups, seed: int) -> dict[str, np.ndarray]:
    """Returns uniform numbers in [0, 1) for every unit, from a seed in [0, 2^32)."""
    rng = np.random.default_rng(seed)
    return {group.name: rng.random(group.width) for group in groups}


def _over_mean(worth: np.ndarray) -> np.ndarray:
    """Returns numbers over their mean; as they are if all are 0."""
    return worth / (worth.mean() or 1.0)


def _worth(
    group: ChannelGroup,
    members: tuple[Member, ...] | list[Member],
    leaves: Mapping[str, np.ndarray],
) -> np.ndarray:
    total = np.zeros(group.width)
    for member in members:
        x = np.moveaxis(leaves[member.path], member.axis, 0)
        each = x.reshape(len(x), -1).sum(1)
        total += each[member.indices].sum(1)
    return np.abs(total)


def _checked(groups: ChannelGroups, scores: PyTree) -> dict[str, np.ndarray]:
    leaves = leaves_by_path(scores)
    if set(leaves) != set(groups.shapes):
        path = min(set(leaves).symmetric_difference(groups.shapes))
        raise ValueError(f"leaf {path} is in one of scores and groups, and missing in the other")
    found = {}
    for path, leaf in leaves.items():
        array = np.asarray(leaf, np.float64)
        if array.shape != groups.shapes[path]:
            raise ValueError(f"scores of {path} are {array.shape}, the leaf {groups.shapes[path]}")
        if not np.isfinite(array).all():
            raise ValueError(f"a score of {path} is not finite")
        found[path] = array
    return found
