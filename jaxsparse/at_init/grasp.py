"""GraSP: the weights whose removal would cost the most gradient flow."""

import functools
from typing import Literal, Unpack, get_args

import jax
import jax.numpy as jnp

from jaxsparse.at_init.losses import Loss
from jaxsparse.at_init.micro_batches import Batches, weighted_mean
from jaxsparse.at_init.rounds import ScoreLeft, masked, prune_in_rounds, warn_if_cut
from jaxsparse.at_init.snip import gradient
from jaxsparse.at_init.subject import Subject, check_scores, subject_of, with_temperature
from jaxsparse.at_init.watched import Watched, classifier_of
from jaxsparse.checks import check_in
from jaxsparse.one_shot import ScoreOptions
from jaxsparse.types import Leaves, OptionError, PyTree, Rules

Criterion = Literal["signed", "abs"]


def grasp_scores(
    loss_fn: Loss,
    params: PyTree,
    batches: Batches,
    *,
    temperature: float | None = 200.0,
    criterion: Criterion = "signed",
    prunable: Rules | None = None,
) -> PyTree:
    """Returns w * (H g), the negative of the paper's score: higher means keep, as everywhere here.

    g is the gradient of the loss with respect to the prunable weights and H its Hessian there. The
    squared norm of g changes by -2 w * (H g), to first order, if the weight is taken out. The paper
    computes S = -w * (H g) and removes the largest S, whose removal raises that norm the most. So
    it keeps the lowest S, which are the highest of these scores. (Summaries that say the reverse
    are wrong.)

    Args:
      loss_fn: (params, batch, temperature) -> float[], the mean over the examples of a batch of the
        loss of logits / temperature: `cross_entropy(logits_fn)` is one. GraSP's code has batch
        norms in training mode; `logits_fn` drops the statistics that they update.
      params: any pytree of arrays. Leaves of 16 bits are scored in float32.
      batches: as in `snip_scores`, but read twice: first for g, then for H g along all of g. The
        result equals that of one batch, to rounding, unless a norm uses the statistics of the
        batch.
      temperature: above 0. It is no matter of taste: at 1 the ranks are quite others. None scores a
        loss of (params, batch) as it is, for networks without logits.
      criterion: "signed", or "abs" to keep the highest |w * (H g)| (GraSP Magnitude).
      prunable: as in `prunable_paths`; the scores of other leaves are 0, and g and H leave them
        out.

    Returns:
      A tree like params, float32 or float64, of both signs: what `masks_from_scores` takes. On a
      mesh scores lie as their params do.

    Raises:
      ValueError: the loss takes no temperature, and otherwise as `snip_scores`.

    Reference: Wang, Zhang and Grosse, "Picking winning tickets before training by preserving
    gradient flow", ICLR 2020, equation 8 and algorithm 1. Frankle et al., "Pruning neural networks
    at initialization: Why are we missing the mark?", ICLR 2021, for "abs".

    Differs from the official code in: unequal micro-batches count by their size, which that code
    ignores; classifiers are scored as they are, that code draws them anew for scoring; scores are
    not divided by their sum, which changes no mask.

    >>> loss_fn = lambda params, x: jnp.mean((x @ params["kernel"]) ** 2) / 2  # H is x x'
    >>> params = {"kernel": jnp.array([[1.0], [2.0]])}  # g = x (x' w) = (5, 10), H g = (25, 50)
    >>> x = jnp.array([[1.0, 2.0]])
    >>> grasp_scores(loss_fn, params, [x], temperature=None)["kernel"].ravel()
    Array([ 25., 100.], dtype=float32)
    """
    subject = subject_of(params, prunable)
    loss = with_temperature(loss_fn, _checked(temperature))
    watched = Watched(loss, subject, batches, 2, classifier_of(loss_fn))
    scores = scorer(loss, subject, watched, criterion)(subject.weights, None)
    check_scores(scores, None)
    return subject.tree(scores)


def grasp_masks(
    loss_fn: Loss,
    params: PyTree,
    batches: Batches,
    sparsity: float | None = None,
    *,
    temperature: float | None = 200.0,
    criterion: Criterion = "signed",
    num_rounds: int = 1,
    **options: Unpack[ScoreOptions],
) -> PyTree:
    """Returns the masks that GraSP keeps: one threshold over all layers, in one shot.

        loss_fn = jaxsparse.cross_entropy(logits_fn)
        masks = jaxsparse.grasp_masks(loss_fn, params, [(images, labels)], sparsity=0.9)
        method = jaxsparse.static(masks=masks, total_steps=10_000)

    A warning says which layers come out empty, or, if the loss is a `cross_entropy`, that no path
    is left from input to output.

    Args:
      loss_fn: as in `grasp_scores`.
      params: as in `grasp_scores`.
      batches: as in `grasp_scores`; they are read twice a round.
      sparsity: as in `masks_from_scores`.
      temperature: as in `grasp_scores`.
      criterion: as in `grasp_scores`.
      num_rounds: at least 1; 1 is GraSP. In several rounds, the density falls as in `snip_masks`
        and g and H are those of the weights that are left.
      **options: `scope`, `distribution`, `min_keep`, `pattern`, `prunable`, as in
        `masks_from_scores`.

    Returns:
      A tree of bool like params, with exact counts. (The official code removes one weight fewer
      than asked.)

    Raises:
      ValueError: as `grasp_scores` and `masks_from_scores`; or the network is cut after a round.

    Reference: as `grasp_scores`.
    """
    subject, classifier = subject_of(params, options.get("prunable")), classifier_of(loss_fn)
    loss = with_temperature(loss_fn, _checked(temperature))
    watched = Watched(loss, subject, batches, 2, classifier)
    score = scorer(loss, subject, watched, criterion)
    masks = prune_in_rounds(score, subject, sparsity, options, num_rounds=num_rounds)
    warn_if_cut(subject, masks, classifier and classifier.logits_fn, watched.example)
    return masks


def scorer(loss_fn: Loss, subject: Subject, batches: Watched, criterion: Criterion) -> ScoreLeft:
    """Returns the function from the weights that are left to the scores of all weights."""
    if criterion not in get_args(Criterion):
        raise OptionError("criterion", criterion, "must be 'signed' or 'abs'")
    of_loss = functools.partial(gradient, loss_fn, subject)

    def product(
        batch: object, weights: Leaves, params: PyTree, along: Leaves
    ) -> dict[str, jax.Array]:
        of_batch = lambda weights: of_loss(batch, weights, params)
        return jax.jvp(of_batch, (dict(weights),), (dict(along),))[1]

    mean_gradient = weighted_mean(of_loss, subject.weights)
    mean_product = weighted_mean(product, subject.weights)

    def score(left: Leaves, masks: Leaves | None) -> dict[str, jax.Array]:
        g = mean_gradient(batches(), left, subject.params)
        if masks is not None:
            g = masked(g, masks)
        found = _times(left, mean_product(batches(), left, subject.params, g))
        return jax.tree.map(jnp.abs, found) if criterion == "abs" else found

    return score


@jax.jit
def _times(weights: Leaves, products: Leaves) -> dict[str, jax.Array]:
    return {path: w * products[path] for path, w in weights.items()}


def _checked(temperature: float | None) -> float | None:
    return None if temperature is None else check_in("temperature", temperature, "(0, inf)")
