"""Clusters of the filters of a layer: by k-means, evenly, or all that is left in one."""

from typing import Literal, TypeAlias, get_args

import jax
import numpy as np

from jaxsparse.checks import check_whole
from jaxsparse.processes import whole

Clustering: TypeAlias = Literal["kmeans", "even", "imbalanced"]

_MOST_TURNS = 300


def cluster(
    kernel: jax.Array,
    num_clusters: int,
    key: jax.Array | None = None,
    *,
    axis: int = -1,
    by: Clustering = "kmeans",
) -> np.ndarray:
    """Returns the cluster of every filter, as int[filters] on the host.

    Args:
      kernel: float[..., filters]; any shape and float dtype.
      num_clusters: the width that the layer shall have, in [1, filters].
      key: for the start of k-means; the others take none.
      axis: of the filters.
      by: "kmeans" on the flattened filters, started by k-means++ and run until nothing changes, for
        300 turns at most; "even" for runs of neighbours whose sizes differ by one at most;
        "imbalanced" for clusters of one filter each, and a last one that holds the rest.

    Returns:
      Labels 0, 1, ... in the order in which clusters first appear. No cluster is empty.

    Raises:
      ValueError: another `by`, a number of clusters out of its range, k-means without a key, or
        filters that are not finite.

    The paper has all three; the exact form of the last two is ours.

    >>> kernel = np.array([[0.0, 5.0, 0.1, 5.1, 9.0]])
    >>> cluster(kernel, 3, jax.random.key(0))
    array([0, 1, 0, 1, 2])
    >>> cluster(kernel, 3, by="even"), cluster(kernel, 3, by="imbalanced")
    (array([0, 0, 1, 1, 2]), array([0, 1, 2, 2, 2]))
    """
    filters = np.moveaxis(np.asarray(whole(kernel), np.float64), axis, 0)
    filters = filters.reshape(len(filters), -1)
    num_clusters = check_whole("num_clusters", num_clusters, 1, len(filters), of="clusters")
    if by not in get_args(Clustering):
        raise ValueError(f"by {by!r} must be 'kmeans', 'even' or 'imbalanced'")
    if by == "even":
        sizes = [len(part) for part in np.array_split(np.arange(len(filters)), num_clusters)]
        return np.repeat(np.arange(num_clusters), sizes)
    if by == "imbalanced":
        return np.minimum(np.arange(len(filters)), num_clusters - 1)
    if key is None:
        raise ValueError("by 'kmeans' needs a key")
    if not np.isfinite(filters).all():
        raise ValueError("the filters have entries that are not finite")
    return _in_order(_kmeans(filters, num_clusters, key))


def _kmeans(points: np.ndarray, num: int, key: jax.Array) -> np.ndarray:
    """Lloyd's algorithm."""
    seed = np.asarray(jax.random.key_data(key)).ravel().tolist()
    centers = points[_spread(points, num, np.random.default_rng(seed))]
    labels = np.full(len(points), -1)
    for _ in range(_MOST_TURNS):
        distances = _squared_distances(points, centers)
        new = _without_empty(distances.argmin(axis=1), distances, num)
        # A point that is as near to its old center stays, so that ties do not go round in circles.
        rows = np.arange(len(points))
        stays = (labels >= 0) & (distances[rows, labels] <= distances[rows, new])
        new = _without_empty(np.where(stays, labels, new), distances, num)
        if (new == labels).all():
            break
        labels = new
        centers = np.stack([points[labels == i].mean(axis=0) for i in range(num)])
    return labels


def _spread(points: np.ndarray, num: int, rng: np.random.Generator) -> list[int]:
    """k-means++: each next center is drawn with the squared distance to the nearest one so far."""
    chosen = [int(rng.integers(len(points)))]
    nearest = _squared_distances(points, points[chosen])[:, 0]
    for _ in range(num - 1):
        left = np.setdiff1d(np.arange(len(points)), chosen)
        weights = nearest[left]
        total = weights.sum()
        chosen.append(int(rng.choice(left, p=weights / total if total > 0 else None)))
        nearest = np.minimum(nearest, _squared_distances(points, points[chosen[-1:]])[:, 0])
    return chosen


def _without_empty(labels: np.ndarray, distances: np.ndarray, num: int) -> np.ndarray:
    """Gives every empty cluster the point farthest from its center, out of a cluster of several."""
    labels = labels.copy()
    for empty in np.setdiff1d(np.arange(num), labels):
        sizes = np.bincount(labels, minlength=num)
        far = np.where(sizes[labels] > 1, distances[np.arange(len(labels)), labels], -1.0)
        labels[far.argmax()] = empty
    return labels


def _squared_distances(points: np.ndarray, centers: np.ndarray) -> np.ndarray:
    """|p - c|^2 of every point and center, without an array of all differences."""
    norms = (points**2).sum(axis=1)[:, None] + (centers**2).sum(axis=1)[None]
    return np.maximum(norms - 2 * points @ centers.T, 0.0)


def _in_order(labels: np.ndarray) -> np.ndarray:
    """The same clusters, numbered in the order in which they first appear."""
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    rank = np.empty(len(first), int)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[inverse]
