"""Masks over time: overlap of two masks, churn of an event, and weights that were ever active."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxsparse.counting import count_true
from jaxsparse.masks import check_masks
from jaxsparse.paths import check_like, prunable_leaves
from jaxsparse.types import EventMetrics, PyTree, Rules


class Shares(NamedTuple):
    """A share of weights, per leaf and over all leaves.

    Attributes:
      layers: float32[leaves] in [0, 1], in the order of `prunable_paths(params)`.
      total: float32[] in [0, 1], from the counts of all leaves added up, not a mean of shares.
    """

    layers: jax.Array
    total: jax.Array


def overlap(a: PyTree, b: PyTree, prunable: Rules | None = None) -> Shares:
    """Returns Jaccard's index of two trees of masks: 1 for equal and 0 for disjoint masks.

        |a and b| / |a or b|

    It is symmetric, even if the masks differ in density. Two random masks of density d have an
    overlap of about d / (2 - d). Two masks of equal density with overlap J share 2 J / (1 + J) of
    their active weights. Two empty leaves have overlap 1. Works under jit.

    Args:
      a: masks.
      b: masks of the same network, for example at another step or from another seed.
      prunable: which leaves count, as in `prunable_paths`.

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
    """Returns the share of active weights that an event grew: num_grown / num_active.

    Weights that an event both drops and grows again do not count. The churn is therefore at most
    the drop fraction (rounded up to a weight), and less if growth chooses weights that were just
    dropped. An empty leaf has churn 0. Works under jit.

    Args:
      metrics: `event.metrics`, or a train state's `event_metrics`.
    """
    return _shares(metrics.num_grown, metrics.num_active, nothing=0.0)


def explore(explored: PyTree, masks: PyTree) -> PyTree:
    """Returns the union of all masks so far, including those after an event; works under jit.

    Args:
      explored: bool, like masks: the union of all masks before. Start with the initial masks.
      masks: the masks after the event.
    """
    return jax.tree.map(jnp.logical_or, explored, masks)


def exploration_rate(explored: PyTree, prunable: Rules | None = None) -> jax.Array:
    """Returns R_s, the share of prunable weights that were ever active: float32[] in [0, 1].

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
    """Divides int32[leaves] by int32[leaves], per leaf and in total; `nothing` if `whole` is 0."""
    # Sums of counts can exceed int32, and float32 is precise enough for a share.
    part, whole = (x.astype(jnp.float32) for x in (part, whole))
    share = lambda p, w: jnp.where(w > 0, p / jnp.maximum(w, 1.0), nothing)
    return Shares(share(part, whole), share(part.sum(), whole.sum()))
