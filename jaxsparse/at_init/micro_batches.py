"""Means of gradients over micro-batches, one in memory at a time, and the weights they are of."""

import functools
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from jaxsparse.masks import apply_mask
from jaxsparse.paths import leaves_by_path, prunable_leaves, with_leaves
from jaxsparse.types import Leaves, PyTree, Rules

LossFn: TypeAlias = Callable[[PyTree, Any], jax.Array]
"""(params, batch) to a scalar, the mean over the images of the batch."""


def weights_of(params: PyTree, masks: PyTree | None, prunable: Rules | None) -> dict[str, Any]:
    """Returns the prunable leaves in float32 or wider, 0 where they are inactive."""
    wide = lambda w: jnp.asarray(w, jnp.promote_types(jnp.result_type(w), jnp.float32))
    weights = {path: wide(w) for path, w in prunable_leaves(params, prunable).items()}
    if masks is None:
        return weights
    given = leaves_by_path(masks)
    return {path: apply_mask(w, given[path]) for path, w in weights.items()}


def of_weights(loss_fn: LossFn) -> Callable[[Leaves, PyTree, Any], jax.Array]:
    """Returns the loss as a function of (prunable weights, all params, batch), which it checks.

    Raises:
      ValueError: by the function, the loss is no scalar of floats.
    """

    def loss(weights: Leaves, params: PyTree, batch: Any) -> jax.Array:
        value = loss_fn(with_leaves(params, weights), batch)
        if jnp.shape(value) != () or not jnp.issubdtype(jnp.result_type(value), jnp.floating):
            raise ValueError(
                f"the loss is {jnp.result_type(value)}{list(jnp.shape(value))}; it must be a "
                f"scalar, the mean over the images of the batch"
            )
        return value

    return loss


def on_params(params: PyTree, scores: Leaves) -> PyTree:
    """Returns a tree like params with scores at prunable leaves, and zeros elsewhere."""
    return with_leaves(jax.tree.map(jnp.zeros_like, params), scores)


def mean_over(
    function: Callable[[Any], dict[str, jax.Array]], batches: Iterable[Any]
) -> dict[str, jax.Array]:
    """Returns the mean of a function over micro-batches, each weighted by its number of images.

    Memory holds one sum and one micro-batch, however many there are.

    Args:
      function: compiled; batch to a dict of arrays, means over the batch's images.
      batches: pytrees of arrays whose first axis is the images; they may differ in their number.

    Raises:
      ValueError: there are no batches, or one has no images.
    """
    total, num_images = None, 0
    for number, batch in enumerate(batches):
        size = num_images_of(batch, number)
        total = _add(total, function(batch), size)
        num_images += size
    if total is None:
        raise ValueError("batches is empty; at least one is needed")
    return _divide(total, num_images)


def num_images_of(batch: Any, number: int = 0) -> int:
    """Returns the number of images of a batch, the first axis of its first array.

    Raises:
      ValueError: there is no array with images.
    """
    sizes = [np.shape(x)[0] for x in jax.tree.leaves(batch) if np.ndim(x)]
    if not sizes or not sizes[0]:
        raise ValueError(f"batch {number} has no images")
    return sizes[0]


def reread(batches: Iterable[Any]) -> Iterable[Any]:
    """Returns batches that can be gone over again.

    Raises:
      ValueError: they are an iterator, which can be read once.
    """
    if iter(batches) is batches:
        raise ValueError("batches is an iterator, and is read twice; pass a list")
    return batches


@jax.jit
def _start(values: dict[str, jax.Array], size: Any) -> dict[str, jax.Array]:
    return jax.tree.map(lambda x: x * size, values)


def _add(total: Any, values: dict[str, jax.Array], size: int) -> dict[str, jax.Array]:
    return _start(values, size) if total is None else _add_to(total, values, size)


@functools.partial(jax.jit, donate_argnums=0)
def _add_to(total: dict[str, jax.Array], values: dict[str, jax.Array], size: Any) -> Any:
    return jax.tree.map(lambda sum_, x: sum_ + x * size, total, values)


@jax.jit
def _divide(total: dict[str, jax.Array], num_images: Any) -> dict[str, jax.Array]:
    return jax.tree.map(lambda x: x / num_images, total)
