"""Gradient flow: the squared norm of the gradient that the active weights receive."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxsparse.masks import apply_masks
from jaxsparse.paths import check_like, leaves_by_path, prunable_paths
from jaxsparse.types import PyTree, Rules


class GradientFlow(NamedTuple):
    """Squared L2 norms of a masked gradient, float32.

    Attributes:
      total: [], over all parameters: active weights, and biases, norms and all else that is dense.
      layers: [leaves], that of each prunable leaf, in the order of `prunable_paths`.
    """

    total: jax.Array
    layers: jax.Array


def gradient_flow(
    grads: PyTree, masks: PyTree | None = None, *, prunable: Rules | None = None
) -> GradientFlow:
    """Returns ||m * grad L||^2: to first order, what a small step takes off the loss.

    A step of plain gradient descent with learning rate lr changes the loss by -lr times this. A
    network that is too sparse, or sparse in the wrong places, has little of it and does not learn.
    Compare networks on the same examples: the number depends on the batch.

    Pure, under `jit` and on a mesh. Sums are in float32 whatever the dtype of the gradient.

    Args:
      grads: the dense gradient, any pytree of arrays. That of an average over the batch: a sum
        would make it larger by the square of the batch size.
      masks: bool, like grads; None takes the gradient as it is.
      prunable: as in `prunable_paths`.

    Raises:
      ValueError: the trees differ, or masks are not bool; names the first leaf.

    Reference: Evci et al., "Gradient Flow in Sparse Neural Networks and How Lottery Tickets Win",
    AAAI 2022. Whether its numbers cover biases and norms as `total` does is not said there; sum up
    `layers` for the weights alone.

    >>> grads = {"kernel": jnp.array([[3.0, 4.0]]), "bias": jnp.array([1.0])}
    >>> masks = {"kernel": jnp.array([[False, True]]), "bias": jnp.array([True])}
    >>> flow = gradient_flow(grads, masks)
    >>> float(flow.total), flow.layers
    (17.0, Array([16.], dtype=float32))
    """
    if masks is not None:
        masks = check_like(masks, grads, name="masks", like="grads")
        grads = apply_masks(grads, masks)
    squares = {path: _squared(g) for path, g in leaves_by_path(grads).items()}
    layers = [squares[path] for path in prunable_paths(grads, prunable)]
    return GradientFlow(jnp.stack(list(squares.values())).sum(), jnp.stack(layers))


def _squared(x: jax.Array) -> jax.Array:
    return jnp.sum(jnp.square(x.astype(jnp.float32)))
