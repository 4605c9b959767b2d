"""Compactors become part of the layer before them, without the rows that have come to 0."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class BatchNorm(NamedTuple):
    """A batch norm with the statistics of inference.

    Attributes:
      scale: gamma, float[features].
      bias: beta, float[features].
      mean: running mean, float[features].
      var: running variance, float[features].
      epsilon: added to the variance; 1e-5 in Flax and PyTorch.
    """

    scale: jax.Array
    bias: jax.Array
    mean: jax.Array
    var: jax.Array
    epsilon: float = 1e-5


class Target(NamedTuple):
    """The place of a compactor: behind a convolution and its norm, before another convolution.

    Attributes:
      compactor: path of its matrix.
      conv: path of the kernel before it.
      norm: path of the norm between them.
      consumer: path of the kernel behind it, whose inputs are its outputs.
    """

    compactor: str
    conv: str
    norm: str
    consumer: str


def kept_rows(matrix: jax.Array, *, threshold: float = 1e-5) -> np.ndarray:
    """Returns the rows of a compactor that stay, as bool[rows] on the host.

    Args:
      matrix: float[in, rows]; row j of the paper is the column `matrix[:, j]`.
      threshold: rows with a smaller norm go.

    Returns:
      True where a row stays. The largest row always does.

    >>> kept_rows(np.array([[1.0, 1e-6], [0.0, 0.0]])), kept_rows(np.zeros((2, 2)))
    (array([ True, False]), array([ True, False]))
    """
    norms = np.linalg.norm(np.asarray(matrix, np.float64), axis=0)
    keep = norms >= threshold
    keep[np.argmax(norms)] = True
    return keep


def merge_compactor(
    kernel: jax.Array,
    norm: BatchNorm | None,
    matrix: jax.Array,
    keep: np.ndarray,
    *,
    bias: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Returns the kernel and the bias of one layer that does the work of layer, norm and compactor.

    For a layer with kernel K and bias b, and t = gamma / sqrt(var + epsilon),

        K'[..., d'] = sum_d t_d K[..., d] Q[d, d']
        b'[d'] = sum_d (beta_d + (b_d - mean_d) t_d) Q[d, d'].

    A channel that is left out puts out 0 in the network with the compactor, as Q has no bias. The
    merge is exact if what follows, up to the consumer, works on every channel for itself and maps 0
    to 0 (ReLU, GELU, pooling); see `check_compactor`.

    Args:
      kernel: float[..., in, features], of a dense layer or of a convolution with one group.
      norm: the batch norm between the layer and the compactor; None if there is none.
      matrix: float[features, features], Q.
      keep: bool[features] on the host, the rows of Q that stay, at least one.
      bias: float[features], of the layer; None if it has none.

    Returns:
      A kernel float[..., in, kept] and a bias float[kept], in the kernel's dtype; sums are float32.

    Raises:
      ValueError: shapes that do not fit, or no row that stays.

    >>> norm = BatchNorm(*(jnp.array([x, x]) for x in (3.0, 1.0, 0.5, 8.0)), epsilon=1.0)
    >>> merge_compactor(jnp.ones((1, 2)), norm, 2 * jnp.eye(2), np.array([False, True]))
    (Array([[2.]], dtype=float32), Array([1.], dtype=float32))
    """
    features = kernel.shape[-1]
    if np.shape(matrix) != (features, features) or np.shape(keep) != (features,):
        raise ValueError(
            f"the kernel has {features} features, the compactor the shape {np.shape(matrix)} and "
            f"keep {np.shape(keep)}"
        )
    if not np.any(keep):
        raise ValueError("no row of the compactor stays; keep one at least")
    shift = jnp.zeros(features) if bias is None else jnp.asarray(bias, jnp.float32)
    factor = jnp.ones(features)
    if norm is not None:
        scale, beta, mean, var = (jnp.asarray(x, jnp.float32) for x in norm[:4])
        factor = scale * jax.lax.rsqrt(var + norm.epsilon)
        shift = beta + (shift - mean) * factor
    kept = jnp.asarray(matrix, jnp.float32)[:, np.flatnonzero(keep)]
    product = lambda x: jnp.tensordot(x, kept, 1, precision=jax.lax.Precision.HIGHEST)
    each = factor.reshape((1,) * (kernel.ndim - 1) + factor.shape)
    merged = product(kernel.astype(jnp.float32) * each), product(shift)
    return merged[0].astype(kernel.dtype), merged[1].astype(kernel.dtype)
