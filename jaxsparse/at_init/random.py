"""Random masks at initialisation: the control of every method that chooses them."""

from typing import Unpack

import jax
import jax.numpy as jnp

from jaxsparse.keys import fold_key
from jaxsparse.one_shot import ScoreOptions, masks_from_scores
from jaxsparse.paths import prunable_leaves, with_leaves
from jaxsparse.types import PyTree


def random_masks(
    key: jax.Array,
    params: PyTree,
    sparsity: float | None = None,
    **options: Unpack[ScoreOptions],
) -> PyTree:
    """Returns random masks with exact counts, each of which is equally likely.

    With scope "global" each layer has the sparsity only on average. `scope="layer"` is the way to
    ERK's densities, or with `distribution=uniform()` to the same density in every layer.

    Args:
      key: of the draw; a leaf's scores depend on its path too.
      params: arrays or their shapes.
      sparsity: as in `masks_from_scores`.
      **options: as in `masks_from_scores`.

    Raises:
      ValueError: as `masks_from_scores`.
    """
    leaves = prunable_leaves(params, options.get("prunable"))
    draw = lambda path, x: jax.random.uniform(fold_key(key, path), jnp.shape(x), jnp.float32)
    scores = with_leaves(params, {path: draw(path, x) for path, x in leaves.items()})
    return masks_from_scores(scores, sparsity, **options)
