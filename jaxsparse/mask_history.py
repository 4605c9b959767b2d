"""Masks over time: what two masks share, how much an event replaced, what has ever been active."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxsparse.counting import count_true
from jaxsparse.masks import check_masks
from jaxsparse.paths import check_like, prunable_leaves
from jaxsparse.types import EventMetrics, PyTree, Rules


class Shares(NamedTuple):
    """A share of weights, per leaf and of all of them together.

    Attributes:
      layers: float32[leaves] in [0, 1], in the order of `prunable_paths(params)`.
      total: float32[] in [0, 1], over all leaves: their counts added up, no mean of shares.
    """

    layers: jax.Array
    total: jax.Array


def overlap(a: PyTree, b: PyTree, prunable: Rules | None = None) -> Shares:
    """How alike two trees of masks are: Jaccard's index, 1 for the same and 0 for disjoint masks.

        |a and b| / |a or b|

    It is symmetric, also for masks of different density. Two masks of one density d drawn at random
    have about d / (2 - d); of masks of one density that have the overlap J, each has the share
    2 J / (1 + J) of the other's weights. Two empty leaves are the same. Works under jit.

    Args:
      a: masks.
      b: masks of the same network, at another step, say, or of another seed.
      prunable: which leaves count; as in `prunable_paths`.

    Raises:
      ValueError: the trees differ, or a leaf is not bool; names the first one.

    >>> a, b = ({"kernel": jnp.array([row], bool)} for row in ([1, 1, 1, 0], [0, 1, 1, 1]))
    >>> float(overlap(a, b).total)
    0.5
    """
    b = check_like(b, a, name="b", like="a")
    for masks in (a, b):
        check_masks(masks, a)
    ours, theirs = prunable_leaves(a, prunable), prunable_leaves(b, prunable)
    counts = [count_true(ours[p] & theirs[p], ours[p] | theirs[p]) for p in ours]
    both, either = (jnp.stack(column) for column in zip(*counts, strict=True))
    return _shares(both, either, nothing=1.0)


def churn(metrics: EventMetrics) -> Shares:
    """The share of the active weights that an event brought in: num_grown / num_active.

    Weights that one event both drops and grows again were never gone and do not count, so it is at
    most the drop fraction (rounded up to a weight) and less where growth chooses what was just
    dropped. An empty leaf has 0. Works under jit.

    Args:
      metrics: `event.metrics`, or a train state's `event_metrics`.
    """
    return _shares(metrics.num_grown, metrics.num_active, nothing=0.0)


def explore(explored: PyTree, masks: PyTree) -> PyTree:
    """Adds the masks after an event to all that has been active so far; works under jit.

    Args:
      explored: bool, like masks: the union of all masks so far. Start with the initial masks.
      masks: the new masks.
    """
    return jax.tree.map(jnp.logical_or, explored, masks)


def exploration_rate(explored: PyTree, prunable: Rules | None = None) -> jax.Array:
    """R_s, the share of prunable weights that were active at some time, float32[] in [0, 1].

        R_s = |M_0 or M_1 or ... or M_t| / N

    Reference: Liu et al., "In-Time Over-Parameterization in Sparse Training", ICML 2021.

    >>> import jax.numpy as jnp
    >>> masks = [
    ...     {"kernel": jnp.array([m], bool)} for m in ([1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1])
    ... ]
    >>> explored = explore(explore(masks[0], masks[1]), masks[2])
    >>> float(exploration_rate(explored))
    1.0
    """
    leaves = prunable_leaves(explored, prunable).values()
    counts = [count_true(mask)[0].astype(jnp.float32) for mask in leaves]
    return jnp.stack(counts).sum() / max(sum(mask.size for mask in leaves), 1)


def _shares(part: jax.Array, whole: jax.Array, *, nothing: float) -> Shares:
    """Shares of int32[leaves] in another, `nothing` where the other is 0."""
    # Sums of counts can pass int32, and float32 is precise enough for a share.
    part, whole = (x.astype(jnp.float32) for x in (part, whole))
    share = lambda p, w: jnp.where(w > 0, p / jnp.maximum(w, 1.0), nothing)
    return Shares(share(part, whole), share(part.sum(), whole.sum()))
