"""The accuracy of a network on images that are cut over devices, each of them counted once."""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from experiments.training.run import Run


def evaluate(
    run: Run, variables: Any, batches: Iterable[tuple[jax.Array, jax.Array, jax.Array]]
) -> float:
    """Returns the share of the validation images that are classified correctly, each counted once.

    Args:
      run: model and normalisation.
      variables: of the model, on the mesh.
      batches: images, labels and weights, on the mesh; see `_count`.

    Raises:
      ValueError: the network gives NaN.
    """
    correct = total = 0.0
    for batch in batches:
        right, images, num_nan = map(float, _count(run.model, run.normalise, variables, *batch))
        if num_nan:
            raise ValueError(
                f"the network gives NaN for {num_nan:.0f} of {images:.0f} validation images, "
                "though its training loss is finite"
            )
        correct, total = correct + right, total + images
    return correct / total


@functools.partial(jax.jit, static_argnums=(0, 1))
def _count(
    model: nn.Module,
    normalise: Callable[[jax.Array], jax.Array],
    variables: Any,
    images: jax.Array,
    labels: jax.Array,
    weights: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns how many images are classified correctly, how many there are, and those with a NaN.

    Weights are 1 for images, and 0 for what only fills the last batch.
    """
    logits = jnp.asarray(model.apply(variables, normalise(images)))
    right = (jnp.argmax(logits, -1) == labels) * weights
    return right.sum(), weights.sum(), (jnp.isnan(logits).any(-1) * weights).sum()
