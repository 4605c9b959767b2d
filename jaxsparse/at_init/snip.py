"""SNIP: the weights whose removal would change the loss most, to first order."""

import functools
from typing import Unpack

import jax
import jax.numpy as jnp

from jaxsparse.at_init.losses import Loss
from jaxsparse.at_init.micro_batches import Batches, weighted_mean
from jaxsparse.at_init.rounds import ScoreLeft, prune_in_rounds, warn_if_cut
from jaxsparse.at_init.subject import Subject, check_scores, subject_of
from jaxsparse.at_init.watched import Watched, classifier_of
from jaxsparse.one_shot import ScoreOptions
from jaxsparse.types import Leaves, PyTree, Rules


def snip_scores(
    loss_fn: Loss, params: PyTree, batches: Batches, *, prunable: Rules | None = None
) -> PyTree:
    """Returns |w dL/dw|, to first order the change of the loss without the weight.

    It equals |dL/dc|, where c = 1 multiplies the weight. The signed gradient is averaged over all
    examples first, and the absolute value taken last.

    Args:
      loss_fn: (params, batch) -> float[], the mean over the examples of a batch, such as
        `cross_entropy(logits_fn)`. SNIP's code has batch norms in evaluation mode, where they are
        the identity at initialisation.
      params: any pytree of arrays. Leaves of 16 bits are scored in float32.
      batches: micro-batches of any sizes, each a pytree of arrays whose first axis is that of
        examples; a list, another iterable, or a function that returns one. Memory does not grow
        with their number. The result equals that of one batch, to rounding, unless a norm uses the
        statistics of the batch.
      prunable: as in `prunable_paths`; the scores of other leaves are 0.

    Returns:
      A tree like params, float32 or float64, at least 0: what `masks_from_scores` takes. On a mesh
      scores lie as their params do.

    Raises:
      ValueError: the loss is no scalar; there is no example; a score is NaN or infinite; all
        scores are 0. Names the leaf. (Scores are not looked at under `jit`.)

    Reference: Lee et al., "SNIP: Single-shot network pruning based on connection sensitivity",
    ICLR 2019, equations 4 and 5. Scores are not divided by their sum, which changes no mask.

    >>> loss_fn = lambda params, x: jnp.mean(x @ params["kernel"])
    >>> params = {"kernel": jnp.array([[1.0], [-3.0]])}
    >>> snip_scores(loss_fn, params, [jnp.array([[2.0, 1.0]])])["kernel"].ravel()
    Array([2., 3.], dtype=float32)
    """
    subject = subject_of(params, prunable)
    watched = Watched(loss_fn, subject, batches, 1, classifier_of(loss_fn))
    scores = scorer(loss_fn, subject, watched)(subject.weights, None)
    check_scores(scores, None)
    return subject.tree(scores)


def snip_masks(
    loss_fn: Loss,
    params: PyTree,
    batches: Batches,
    sparsity: float | None = None,
    *,
    num_rounds: int = 1,
    may_return: bool = False,
    **options: Unpack[ScoreOptions],
) -> PyTree:
    """Returns the masks that keep the highest SNIP scores; in several rounds, iterative SNIP.

        masks = jaxsparse.snip_masks(loss_fn, params, [batch], sparsity=0.9)
        method = jaxsparse.static(masks=masks, total_steps=10_000)

    Round k of n scores the network that round k-1 has left and prunes it to the density rho^(-k/n).
    A warning says which layers come out empty, or, if the loss is a `cross_entropy`, that no path
    is left from input to output.

    Args:
      loss_fn: as in `snip_scores`.
      params: as in `snip_scores`.
      batches: as in `snip_scores`. With several rounds they are read again in each.
      sparsity: as in `masks_from_scores`.
      num_rounds: at least 1; 1 is SNIP.
      may_return: whether a pruned weight may come back in a later round, by |w dL/dw| at the masked
        network (FORCE). False is iterative SNIP, whose masks are nested.
      **options: `scope`, `distribution`, `min_keep`, `pattern`, `prunable`, as in
        `masks_from_scores`.

    Returns:
      A tree of bool like params, with exact counts.

    Raises:
      ValueError: as `snip_scores` and `masks_from_scores`; or the network is cut after a round.

    Reference: Lee et al. 2019; de Jorge et al., "Progressive Skeletonization: Trimming more fat
    from a network at initialization", ICLR 2021, for iterative SNIP and FORCE.

    Differs from SNIP's code in: biases are not scored, that code prunes and counts them; the scored
    weights are those that are trained, that code draws others. Differs from FORCE's code in: all
    rounds score the same batches.

    >>> loss_fn = lambda params, x: jnp.mean(x @ params["kernel"])
    >>> params = {"kernel": jnp.array([[1.0], [-3.0]])}
    >>> snip_masks(loss_fn, params, [jnp.array([[2.0, 1.0]])], sparsity=0.5)["kernel"].ravel()
    Array([False,  True], dtype=bool)
    """
    subject = subject_of(params, options.get("prunable"))
    classifier = classifier_of(loss_fn)
    watched = Watched(loss_fn, subject, batches, num_rounds, classifier)
    score = scorer(loss_fn, subject, watched)
    masks = prune_in_rounds(
        score, subject, sparsity, options, num_rounds=num_rounds, may_return=may_return
    )
    warn_if_cut(subject, masks, classifier and classifier.logits_fn, watched.example)
    return masks


def scorer(loss_fn: Loss, subject: Subject, batches: Watched) -> ScoreLeft:
    """Returns the function from the weights that are left to the scores of all weights."""
    mean_gradient = weighted_mean(functools.partial(gradient, loss_fn, subject), subject.weights)

    def score(left: Leaves, masks: Leaves | None) -> dict[str, jax.Array]:
        del masks  # inactive weights are 0, and that is all
        return _saliency(subject.weights, mean_gradient(batches(), left, subject.params))

    return score


def gradient(
    loss_fn: Loss, subject: Subject, batch: object, weights: Leaves, params: PyTree
) -> dict[str, jax.Array]:
    """Returns the gradient of the loss of a batch with respect to the prunable weights alone."""
    loss = lambda weights: loss_fn(subject._replace(params=params).with_weights(weights), batch)
    return jax.grad(loss)(dict(weights))


@jax.jit
def _saliency(weights: Leaves, grads: Leaves) -> dict[str, jax.Array]:
    return {path: jnp.abs(w * grads[path]) for path, w in weights.items()}
