"""Centripetal SGD: the filters of a cluster grow equal, and all but one of them can then go.

The clusters of a layer are fixed at the start, as many as it shall have filters. For a filter F_j
in cluster H,

    dF_j = -1/|H| sum_{k in H} dL/dF_k - eta F_j + epsilon (mean_{k in H} F_k - F_j).

All filters of a cluster get the same gradient, so the loss cannot tell them apart, and a step of
size tau shrinks their differences by exactly 1 - tau (eta + epsilon). In the end the first of each
cluster stays, and the next layer's inputs from the others are added to those from the first:

    labels = {"conv1/kernel": Clusters(-1, cluster(kernel, 12, key)), ...}
    tx = optax.chain(csgd(labels, centripetal=0.003), optax.sgd(learning_rate, momentum=0.9))
    ...                                                       # train
    kernel = merge_outputs(kernel, -1, labels)
    following = merge_inputs(following, -2, labels)

Channels that are added (the outputs of residual blocks) need the same labels: those of one layer,
the pacesetter, serve the others, its followers.

Reference: Ding et al., "Centripetal SGD for Pruning Very Deep Convolutional Networks with
Complicated Structure", CVPR 2019.
"""

import math
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxsparse.checks import check_in, check_whole
from jaxsparse.paths import leaves_by_path, listed, with_leaves
from jaxsparse.rates import rates_of
from jaxsparse.types import PyTree

_OF_VECTORS = 0.1


class Clusters(NamedTuple):
    """The clusters of one axis of a leaf.

    Attributes:
      axis: of the filters: the last one of a Flax kernel, 0 of a norm's vectors.
      labels: int[filters] on the host, from `jaxsparse.structured.cluster`.
    """

    axis: int
    labels: np.ndarray


def centripetal_gradient(
    gradient: jax.Array, leaf: jax.Array, clusters: Clusters, *, decay: float, centripetal: float
) -> jax.Array:
    """Returns -dF of one leaf: mean_H dL/dF + eta F - epsilon (mean_H F - F).

    Args:
      gradient: of the loss, like `leaf`.
      leaf: float[...], whose axis `clusters.axis` runs over filters.
      clusters: of its filters.
      decay: eta, the weight decay.
      centripetal: epsilon, the strength of the pull to the mean of the cluster.

    Returns:
      An array of the gradient's dtype, computed in float32. Filters that are equal get an equal
      update, to the bit.

    >>> gradient, leaf = jnp.array([[1.0, 3.0, 5.0]]), jnp.array([[2.0, 4.0, 9.0]])
    >>> both = Clusters(1, np.array([0, 0, 1]))
    >>> centripetal_gradient(gradient, leaf, both, decay=0.0, centripetal=0.5)
    Array([[1.5, 2.5, 5. ]], dtype=float32)
    """
    g, f = gradient.astype(jnp.float32), leaf.astype(jnp.float32)
    pull = _means(f, clusters) - f
    return (_means(g, clusters) + decay * f - centripetal * pull).astype(gradient.dtype)


def _means(x: jax.Array, clusters: Clusters) -> jax.Array:
    """Every filter replaced by the mean of its cluster."""
    labels = jnp.asarray(clusters.labels)
    rows = jnp.moveaxis(x, clusters.axis, 0)
    sums = jax.ops.segment_sum(rows, labels, num_segments=int(clusters.labels.max()) + 1)
    counts = np.bincount(clusters.labels).reshape(-1, *[1] * (x.ndim - 1))
    return jnp.moveaxis((sums / counts.astype(np.float32))[labels], 0, clusters.axis)


def csgd(
    labels: Mapping[str, Clusters],
    *,
    centripetal: float,
    decay: float = 1e-4,
) -> optax.GradientTransformation:
    """Replaces the gradients of clustered leaves by those of C-SGD, before momentum and the rate.

    Name every leaf of a clustered layer: its kernel, its bias, and scale and bias of its norm, all
    with the same clusters. Vectors get a tenth of epsilon and no decay, as in the official code.
    Other leaves keep their gradient; decay them by an `optax.masked` of your own.

        optax.chain(csgd(labels, centripetal=0.003), optax.sgd(rate, momentum=0.9, nesterov=True))

    The published epsilon is 0.003 for ResNet-56 and 0.05 for ResNet-50.

    Args:
      labels: clusters by the path of a leaf.
      centripetal: epsilon, in (0, inf).
      decay: eta, in [0, inf), of clustered kernels. Take them out of other weight decay.

    Returns:
      A transformation without state. Its `update` needs params.

    Raises:
      ValueError: a number out of its range, labels that are not 0, 1, ... without a gap, or at the
        update a path or shape that does not fit.
    """
    centripetal = check_in("centripetal", centripetal, "(0, inf)")
    decay = check_in("decay", decay, "[0, inf)")
    for path, clusters in labels.items():
        _check_labels(path, clusters.labels)

    def update(updates: PyTree, state: Any, params: PyTree | None = None) -> tuple[PyTree, Any]:
        if params is None:
            raise ValueError("csgd needs params: tx.update(grads, state, params)")
        leaves, grads = leaves_by_path(params), leaves_by_path(updates)
        new = {}
        for path, clusters in labels.items():
            _check_leaf(path, leaves, clusters)
            of_vectors = {"decay": 0.0, "centripetal": _OF_VECTORS * centripetal}
            options = {"decay": decay, "centripetal": centripetal}
            options = of_vectors if leaves[path].ndim == 1 else options
            new[path] = centripetal_gradient(grads[path], leaves[path], clusters, **options)
        return with_leaves(updates, new), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def merge_outputs(leaf: jax.Array, axis: int, labels: np.ndarray) -> jax.Array:
    """Returns a leaf with the first filter of every cluster alone.

    Args:
      leaf: kernel, bias, or scale, bias, mean or variance of a norm.
      axis: of the filters.
      labels: int[filters], their clusters.

    >>> merge_outputs(jnp.array([1.0, 1.0, 2.0, 1.0]), 0, np.array([0, 0, 1, 0]))
    Array([1., 2.], dtype=float32)
    """
    _check_axis(leaf, axis, labels, repeats=1)
    _, first = np.unique(labels, return_index=True)
    return jnp.take(leaf, jnp.asarray(first), axis=axis)


def merge_inputs(leaf: jax.Array, axis: int, labels: np.ndarray) -> jax.Array:
    """Returns the kernel that reads merged channels: the inputs of every cluster are added.

    Args:
      leaf: kernel of the next layer.
      axis: of its inputs: the one before the last of a Flax kernel. It may be a whole multiple of
        the number of channels, as behind a flattening of images whose last axis they are.
      labels: int[channels], their clusters.

    Returns:
      An array of the leaf's dtype; sums are float32.

    >>> merge_inputs(jnp.array([[1.0], [2.0], [4.0], [8.0]]), 0, np.array([0, 0, 1, 0]))
    Array([[11.],
           [ 4.]], dtype=float32)
    """
    size = len(labels)
    repeats = max(1, leaf.shape[axis] // size)
    _check_axis(leaf, axis, labels, repeats)
    num = int(labels.max()) + 1
    each = np.concatenate([labels + i * num for i in range(repeats)])
    rows = jnp.moveaxis(leaf, axis, 0).astype(jnp.float32)
    sums = jax.ops.segment_sum(rows, jnp.asarray(each), num_segments=repeats * num)
    return jnp.moveaxis(sums, 0, axis).astype(leaf.dtype)


class CsgdPreflight(NamedTuple):
    """How far the differences inside clusters shrink in a run.

    Attributes:
      kernels: sum(lr) (eta + epsilon) / (1 - mu), the exponent of kernels.
      vectors: the same for vectors, with a tenth of epsilon and no eta.
      total_steps: of the run.
      enough: the largest factor with which the merge is harmless.
    """

    kernels: float
    vectors: float
    total_steps: int
    enough: float

    @property
    def is_long_enough(self) -> bool:
        """Whether kernels and vectors end at `enough` of their differences or below."""
        return math.exp(-min(self.kernels, self.vectors)) <= self.enough

    def __str__(self) -> str:
        """A line on the factors, and on what to change if the run is too short."""
        line = (
            f"csgd: in {self.total_steps:,} steps differences inside clusters shrink to "
            f"e^-{self.kernels:.3g} in kernels and e^-{self.vectors:.3g} in biases and norms"
        )
        if self.is_long_enough:
            return line
        times = math.log(self.enough) / -min(self.kernels, self.vectors)
        return (
            f"{line}, and should to {self.enough:g}: the merge would change the outputs; take "
            f"{times:.3g} times the steps, the learning rate or epsilon"
        )


def csgd_preflight(
    learning_rate: float | optax.Schedule,
    *,
    centripetal: float,
    decay: float = 1e-4,
    momentum: float = 0.9,
    total_steps: int,
    enough: float = 1e-3,
) -> CsgdPreflight:
    """Says before a run how far differences inside clusters shrink, and warns if not far enough.

    They shrink by about exp(-sum_t lr_t (eta + epsilon) / (1 - mu)), whatever the loss; without
    momentum by exactly the product of 1 - lr_t (eta + epsilon).

    Args:
      learning_rate: number or schedule over steps.
      centripetal: epsilon, in (0, inf).
      decay: eta, in [0, inf).
      momentum: mu, in [0, 1).
      total_steps: length of the run, at least 1.
      enough: the factor that is small enough, in (0, 1). The default is ours.

    Warns:
      UserWarning: kernels, or biases and norms, end above `enough` of their differences.

    Raises:
      ValueError: a number out of its range, or learning rates that add up to 0.

    The published first stage of ResNet-56, 200 epochs of 782 steps at a rate of 0.03:

    >>> print(csgd_preflight(0.03, centripetal=0.003, total_steps=200 * 782))
    csgd: in 156,400 steps differences inside clusters shrink to e^-145 in kernels and e^-14.1 in
    biases and norms
    """
    total_steps = check_whole("total_steps", total_steps, 1, of="steps")
    check_in("centripetal", centripetal, "(0, inf)")
    check_in("decay", decay, "[0, inf)")
    check_in("momentum", momentum, "[0, 1)")
    check_in("enough", enough, "(0, 1)")
    total = float(np.sum(rates_of(learning_rate, 0, total_steps)))
    if not (math.isfinite(total) and total > 0):
        raise ValueError(
            f"the learning rates of {total_steps} steps add up to {total}, not above 0"
        )
    way = total / (1 - momentum)
    found = CsgdPreflight(
        way * (decay + centripetal), way * _OF_VECTORS * centripetal, total_steps, enough
    )
    if not found.is_long_enough:
        warnings.warn(str(found), stacklevel=2)
    return found


def _check_labels(path: str, labels: np.ndarray) -> None:
    if not np.array_equal(np.unique(labels), np.arange(np.max(labels) + 1)):
        raise ValueError(f"{path}: labels must be 0, 1, ... without a gap; they are {labels}")


def _check_leaf(path: str, leaves: Mapping[str, Any], clusters: Clusters) -> None:
    if path not in leaves:
        raise ValueError(f"labels: params has no leaf {path}; it has {listed(leaves)}")
    shape = leaves[path].shape
    if shape[clusters.axis] != len(clusters.labels):
        raise ValueError(
            f"labels: {path} {shape} has {shape[clusters.axis]} filters on axis {clusters.axis}, "
            f"and {len(clusters.labels)} labels"
        )


def _check_axis(leaf: jax.Array, axis: int, labels: np.ndarray, repeats: int) -> None:
    if leaf.shape[axis] != repeats * len(labels):
        raise ValueError(
            f"a leaf of shape {leaf.shape} has {leaf.shape[axis]} channels on axis {axis}, and "
            f"there are {len(labels)} labels"
        )
