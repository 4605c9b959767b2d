"""SNIP: keep the weights whose removal changes the loss most, to first order."""

import functools
from collections.abc import Callable, Iterable
from typing import Any, Unpack

import jax
import jax.numpy as jnp

from jaxsparse.at_init.micro_batches import (
    LossFn,
    mean_over,
    of_weights,
    on_params,
    reread,
    weights_of,
)
from jaxsparse.at_init.rounds import prune_in_rounds
from jaxsparse.one_shot import ScoreOptions
from jaxsparse.types import PyTree, Rules


def snip_scores(
    loss_fn: LossFn,
    params: PyTree,
    batches: Iterable[Any],
    *,
    masks: PyTree | None = None,
    prunable: Rules | None = None,
) -> PyTree:
    """Returns |w dL/dw|, the size of the loss's derivative with respect to a weight's mask.

    Gradients of micro-batches are averaged with their sign, each weighted by its number of images,
    and the absolute value is taken last; so the scores are those of one large batch, if the loss is
    a mean over images. Memory does not grow with the number of micro-batches.

    Args:
      loss_fn: (params, batch) to a scalar, the mean over the images of the batch. With batch norms
        take the statistics of inference, as the paper's code does.
      params: any pytree of arrays. Prunable leaves of half precision are scored in float32.
      batches: micro-batches, pytrees of arrays whose first axis is the images.
      masks: weights that are left, a tree like params; others are 0 and score 0. None is all.
      prunable: as in `prunable_paths`.

    Returns:
      A tree like params with float32 (or float64) scores at prunable leaves, and zeros elsewhere.

    Raises:
      ValueError: the loss is no scalar, or there is no batch or image.

    Differs from the paper's code in: biases are not pruned; the same initial weights are scored and
    trained, where that code draws them anew after pruning (draw your own to do so).

    Reference: Lee et al., "SNIP: Single-shot Network Pruning based on Connection Sensitivity", ICLR
    2019, equation 5, without its normalisation, which changes no ranks.

    >>> loss = lambda params, x: (x @ params["kernel"]).mean()
    >>> snip_scores(loss, {"kernel": jnp.array([[3.0], [-2.0]])}, [jnp.array([[1.0, 2.0]])])
    {'kernel': Array([[3.],
           [4.]], dtype=float32)}
    """
    return _scorer(loss_fn, params, batches, prunable)(masks)


def snip_masks(
    loss_fn: LossFn,
    params: PyTree,
    batches: Iterable[Any],
    sparsity: float | None = None,
    *,
    num_rounds: int = 1,
    **options: Unpack[ScoreOptions],
) -> PyTree:
    """Returns SNIP's masks: the highest `snip_scores` over all layers, in one round.

    More rounds score what the last one left, at densities that fall by equal factors. This keeps
    networks connected at sparsities where a single round cuts them (de Jorge et al. 2021).

    Args:
      loss_fn: as in `snip_scores`.
      params: as in `snip_scores`.
      batches: as in `snip_scores`; a list if there is more than one round.
      sparsity: as in `masks_from_scores`.
      num_rounds: at least 1.
      **options: `scope`, `distribution`, `min_keep`, `pattern`, `prunable`, as there.

    Raises:
      ValueError: as `snip_scores` and `masks_from_scores`; scores that are not finite, or all 0.

    Reference: Lee et al., "SNIP", ICLR 2019. de Jorge et al., "Progressive Skeletonization:
    Trimming more fat from a network at initialization", ICLR 2021 ("Iterative SNIP").
    """
    batches = batches if num_rounds == 1 else reread(batches)
    score = _scorer(loss_fn, params, batches, options.get("prunable"))
    return prune_in_rounds(score, params, sparsity, num_rounds, **options)


def _scorer(
    loss_fn: LossFn, params: PyTree, batches: Iterable[Any], prunable: Rules | None
) -> Callable[[PyTree | None], PyTree]:
    """Returns the function from masks to scores, compiled for all rounds."""
    gradient = jax.jit(jax.grad(of_weights(loss_fn)))

    def score(masks: PyTree | None) -> PyTree:
        weights = weights_of(params, masks, prunable)
        mean = mean_over(functools.partial(gradient, weights, params), batches)
        return on_params(params, {path: jnp.abs(w * mean[path]) for path, w in weights.items()})

    return score
