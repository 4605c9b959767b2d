"""Channels that sparse weights have made dead, as the plan of a narrower network without them.

At extreme sparsity many channels are not made by any active weight, or not read by any. A network
without them computes the same, and is faster everywhere:

    params = jaxsparse.apply_masks(params, masks)
    variables = {"params": params, "batch_stats": batch_stats}
    groups = channel_groups(model.apply, variables, images)
    plan = compact(groups, model.apply, variables, images)
    model, variables, masks = narrow_module(model, plan), plan.apply(variables), plan.apply(masks)
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsparse.paths import leaves_by_path
from jaxsparse.structured.comparing import check_unchanged
from jaxsparse.structured.groups import ChannelGroup, ChannelGroups
from jaxsparse.structured.liveness import any_entry, readers, unmade, unread
from jaxsparse.structured.narrowing import WidthPlan, plan_of_units
from jaxsparse.structured.probing import other_inputs, probe
from jaxsparse.types import PyTree


def compact(
    groups: ChannelGroups, apply_fn: Callable[..., Any], variables: PyTree, *inputs: Any
) -> WidthPlan:
    """Returns the plan that removes dead channels; outputs stay as they are, up to rounding.

    A channel is dead if no weight that is not 0 reads it; or if none makes it and it is 0 behind
    norm and activation. (One that a bias holds at another number stays, unless `fold_constants`
    comes before.) Channels whose readers or makers die with others are dead too, until nothing
    changes. Each group keeps one channel at least. Groups with notes, such as those that a layer
    norm runs over, stay whole.

    Args:
      groups: from `channel_groups` of the same function and variables.
      apply_fn: function of (variables, *inputs) at inference, differentiable.
      variables: with inactive weights at 0.
      *inputs: pytrees of arrays, such as a batch of images; whether a channel is 0 is seen in them,
        and in normal numbers of their shapes.

    Raises:
      ValueError: an output is not floating point; or one moves by more than 1e-5 of the largest: a
        channel that seemed 0 is not; give inputs that activate more of the network.

    >>> from jaxsparse.structured import channel_groups
    >>> params = {"up": jnp.array([[1.0, 0.0, 2.0]]), "down": jnp.array([[1.0], [1.0], [0.0]])}
    >>> mlp = lambda p, x: jax.nn.relu(x @ p["up"]) @ p["down"]
    >>> groups = channel_groups(mlp, params, jnp.ones((1, 1)))
    >>> compact(groups, mlp, params, jnp.ones((1, 1))).kept
    {'up': array([0])}
    """
    leaves = {path: x for path, x in leaves_by_path(variables).items() if not _is_key(x)}
    alive = {path: np.asarray(leaf) != 0 for path, leaf in leaves.items()}
    others = other_inputs(inputs)
    silent = _silent(groups, apply_fn, variables, inputs)
    for name, quiet in _silent(groups, apply_fn, variables, others).items():
        silent[name] &= quiet
    gone = {group.name: np.zeros(group.width, bool) for group in groups if not group.notes}
    changed = True
    while changed:
        changed = False
        for name in gone:
            group = groups[name]
            dead = unread(group, alive)
            if readers(group):
                dead |= unmade(group, alive) & silent[name]
            if (dead & ~gone[name]).any():
                gone[name] |= dead
                _bury(groups[name], dead, alive)
                changed = True
    kept = {name: ~dead if not dead.all() else [0] for name, dead in gone.items()}
    plan = plan_of_units(groups, kept)
    check_unchanged(apply_fn, variables, plan.zero(variables), (inputs, others), seemed="0")
    return plan


def _bury(group: ChannelGroup, dead: np.ndarray, alive: dict[str, np.ndarray]) -> None:
    """Marks all entries of dead units as dead, so that what they read or make may die too."""
    for member in group.members:
        where = (slice(None),) * member.axis + (member.indices[dead].ravel(),)
        alive[member.path] = alive[member.path].copy()
        alive[member.path][where] = False


def _silent(
    groups: ChannelGroups, apply_fn: Callable[..., Any], variables: PyTree, inputs: Any
) -> dict[str, np.ndarray]:
    """Returns which units are 0 where they are read, bool[width] by group.

    If a channel is 0, the gradients of all weights that read it are 0, whatever outputs count. The
    converse fails only where nothing behind the channel passes a gradient.
    """
    paths = {member.path for group in groups for member in group.members}
    found = leaves_by_path(probe(apply_fn)(variables, *inputs))
    moves = {
        path: np.asarray(g) != 0
        if jnp.issubdtype(g.dtype, jnp.floating)
        else np.ones(g.shape, bool)
        for path, g in found.items()
        if path in paths
    }
    silent = {}
    for group in groups:
        heard = [any_entry(moves[member.path], member) for member in readers(group)]
        silent[group.name] = ~np.any(heard, axis=0) if heard else np.zeros(group.width, bool)
    return silent


def _is_key(leaf: Any) -> bool:
    """Whether a leaf is a random key, as NNX states hold them."""
    return jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.extended)
