"""Random masks over all layers together: the control of every score."""

from typing import Unpack

import jax

from jaxsparse.keys import fold_key
from jaxsparse.meshes import constrained, placed_by
from jaxsparse.one_shot import ScoreOptions, masks_from_scores
from jaxsparse.paths import prunable_leaves, with_leaves
from jaxsparse.scores import random
from jaxsparse.types import PyTree


def random_masks(
    key: jax.Array, params: PyTree, sparsity: float | None = None, **options: Unpack[ScoreOptions]
) -> PyTree:
    """Returns masks that keep weights at random, with an exact count.

    With scope "global", the default, every set of so many weights is equally likely, so that all
    layers have about the same density. With scope "layer" and no distribution, layers have the
    densities of ERK, as in `static`.

    Args:
      key: of the draw.
      params: any pytree of arrays.
      sparsity: as in `masks_from_scores`.
      **options: `scope`, `distribution`, `min_keep`, `pattern`, `prunable`, as in
        `masks_from_scores`.

    Raises:
      ValueError: as `masks_from_scores`.

    >>> import jax.numpy as jnp
    >>> masks = random_masks(jax.random.key(0), {"kernel": jnp.ones((10, 10))}, sparsity=0.75)
    >>> int(masks["kernel"].sum())
    25
    """
    leaves = prunable_leaves(params, options.get("prunable"))
    own = fold_key(key, "random_masks")
    scores = {path: random(w, w, fold_key(own, path)) for path, w in leaves.items()}
    scores = {path: constrained(x, placed_by(leaves[path])) for path, x in scores.items()}
    return masks_from_scores(with_leaves(params, scores), sparsity, **options)
