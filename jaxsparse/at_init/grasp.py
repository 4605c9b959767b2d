"""GraSP: keep the weights whose removal would lower the norm of the gradient most."""

import functools
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, TypeAlias, Unpack

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxsparse.at_init.micro_batches import (
    mean_over,
    of_weights,
    on_params,
    reread,
    weights_of,
)
from jaxsparse.at_init.rounds import prune_in_rounds
from jaxsparse.checks import check_in
from jaxsparse.one_shot import ScoreOptions
from jaxsparse.types import Leaves, OptionError, PyTree, Rules

Labelled: TypeAlias = tuple[Any, jax.Array]
Criterion: TypeAlias = Literal["signed", "abs"]


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns the mean cross-entropy of float[n, classes] logits and int[n] labels, in float32."""
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def grasp_scores(
    logits_fn: Callable[[PyTree, Any], jax.Array],
    params: PyTree,
    batches: Iterable[Labelled],
    *,
    temperature: float = 200.0,
    criterion: Criterion = "signed",
    loss: Callable[[jax.Array, jax.Array], jax.Array] = cross_entropy,
    prunable: Rules | None = None,
) -> PyTree:
    """Returns w * (H g): minus the paper's score, so that higher is kept, as everywhere here.

    g is the gradient of the loss of logits / temperature, and H its Hessian, both of the prunable
    weights alone. Removing weight q changes g'g by -2 w_q (H g)_q, to first order. A weight with a
    high score takes gradient flow away when it goes, and is kept.

    The first pass over the micro-batches sums up g, and the second one H g, which is linear in the
    images. So the scores are those of one large batch, and memory does not grow with their number.

    Args:
      logits_fn: (params, inputs) to logits. With batch norms take those of training, as the
        paper's code does, and drop the updated statistics. Then the statistics are those of each
        micro-batch, and the scores depend on how the images are cut.
      params: any pytree of arrays. Prunable leaves of half precision are scored in float32.
      batches: (inputs, labels) micro-batches, whose first axis is the images. The paper takes ten
        images of each class.
      temperature: divides the logits, above 0. At 1 the ranks are others: the paper's 200 is near
        the limit, in which the loss is that of a network whose outputs are all alike.
      criterion: "signed" keeps the highest scores; "abs" those with the highest absolute value, as
        later code does (Frankle et al. 2021, "GraSP magnitude").
      loss: (logits, labels) to a scalar, the mean over images.
      prunable: as in `prunable_paths`.

    Returns:
      A tree like params with float32 (or float64) scores at prunable leaves, and zeros elsewhere.

    Raises:
      ValueError: an option outside its range, a loss that is no scalar, no batch or image, or
        batches that can be read only once.
      UserWarning: as a warning, labels that miss a class of the logits.

    Differs from the paper's code in: micro-batches are weighted by their number of images; the
    classifier is scored as it will be trained, where that code draws another one to score; exactly
    as many weights are removed as asked for, where it removes one less.

    Reference: Wang, Zhang and Grosse, "Picking Winning Tickets Before Training by Preserving
    Gradient Flow", ICLR 2020, equation 8.
    """
    check_in("temperature", temperature, "(0, inf)")
    if criterion not in ("signed", "abs"):
        raise OptionError("criterion", criterion, "must be 'signed' or 'abs'")
    reread(batches)
    weights = weights_of(params, None, prunable)

    def of_batch(params: PyTree, batch: Labelled) -> jax.Array:
        inputs, labels = batch
        return loss(logits_fn(params, inputs) / temperature, labels)

    gradient = jax.grad(of_weights(of_batch))

    @jax.jit
    def product(weights: Leaves, g: Leaves, params: PyTree, batch: Labelled) -> dict[str, Any]:
        of = lambda weights: gradient(weights, params, batch)
        return jax.jvp(of, (weights,), (g,))[1]

    seen = _Labels()
    g = mean_over(functools.partial(jax.jit(gradient), weights, params), seen.of(batches))
    seen.check(jax.eval_shape(logits_fn, params, seen.inputs))
    h_g = mean_over(functools.partial(product, weights, g, params), batches)
    scores = {path: w * h_g[path] for path, w in weights.items()}
    if criterion == "abs":
        scores = jax.tree.map(jnp.abs, scores)
    return on_params(params, scores)


def grasp_masks(
    logits_fn: Callable[[PyTree, Any], jax.Array],
    params: PyTree,
    batches: Iterable[Labelled],
    sparsity: float | None = None,
    *,
    temperature: float = 200.0,
    criterion: Criterion = "signed",
    loss: Callable[[jax.Array, jax.Array], jax.Array] = cross_entropy,
    **options: Unpack[ScoreOptions],
) -> PyTree:
    """Returns GraSP's masks: the highest `grasp_scores` over all layers, in one round.

    Args:
      logits_fn: as in `grasp_scores`.
      params: as there.
      batches: as there.
      sparsity: as in `masks_from_scores`.
      temperature: as in `grasp_scores`.
      criterion: as there.
      loss: as there.
      **options: `scope`, `distribution`, `min_keep`, `pattern`, `prunable`, as in
        `masks_from_scores`.

    Raises:
      ValueError: as `grasp_scores` and `masks_from_scores`; scores that are not finite, or all 0.
    """

    def score(masks: PyTree) -> PyTree:
        del masks  # all of them, in the only round
        return grasp_scores(
            logits_fn,
            params,
            batches,
            temperature=temperature,
            criterion=criterion,
            loss=loss,
            prunable=options.get("prunable"),
        )

    return prune_in_rounds(score, params, sparsity, 1, **options)


class _Labels:
    """Looks at labels that go by."""

    def __init__(self) -> None:
        self.inputs: Any = None
        self._found: set[int] = set()

    def of(self, batches: Iterable[Labelled]) -> Iterator[Labelled]:
        for inputs, labels in batches:
            self.inputs = inputs
            if jnp.issubdtype(jnp.result_type(labels), jnp.integer):
                self._found |= set(np.unique(np.asarray(labels)).tolist())
            yield inputs, labels

    def check(self, logits: jax.ShapeDtypeStruct) -> None:
        """Warns if a class has no image; labels that are no whole numbers are not looked at."""
        missing = sorted(set(range(logits.shape[-1])) - self._found) if self._found else []
        if missing:
            warnings.warn(
                f"no image of {len(missing)} of {logits.shape[-1]} classes, such as "
                f"{missing[0]}: the scores say nothing about them",
                stacklevel=3,
            )
