"""SynFlow: the weights that carry the most flow through a network of |w|, without data or loss."""

from collections.abc import Callable
from typing import Any, Unpack

import jax
import jax.numpy as jnp
import numpy as np

from jaxsparse.at_init.rounds import ScoreLeft, prune_in_rounds, warn_if_cut
from jaxsparse.at_init.subject import Subject, check_scores, subject_of
from jaxsparse.masks import apply_mask, check_masks
from jaxsparse.meshes import constrained, placed_by
from jaxsparse.one_shot import ScoreOptions
from jaxsparse.paths import leaves_by_path
from jaxsparse.tracing.scaled import run_scaled
from jaxsparse.types import Leaves, PyTree, Rules

Forward = Callable[..., Any]


def synflow_scores(
    apply_fn: Forward,
    params: PyTree,
    inputs: Any,
    *,
    collections: PyTree | None = None,
    masks: PyTree | None = None,
    prunable: Rules | None = None,
) -> PyTree:
    """Returns |w| dR/d|w|, R being the sum of outputs of the network of |params| on an input of 1.

    In a chain of layers without biases the scores of every layer add up to R, which is the product
    1' |W_L| ... |W_1| 1. R grows with the power of the depth, beyond the range of float32 in a
    ResNet-50. So the scores are those of R / 2^n, for one n that brings R to [0.5, 1). They rank as
    those of R do, and are exact at any depth: see `jaxsparse.tracing.scaled`. In a layer, a score
    below 2^-126 of R counts as 0.

    Args:
      apply_fn: (params, inputs) -> outputs, or (params, inputs, collections) if collections are
        given, with batch norms in evaluation mode and without dropout.
      params: any pytree of arrays. All floating-point leaves are replaced by their absolute values,
        16 bits by float32.
      inputs: shape of one example with its batch axis, such as (1, 32, 32, 3), for an input of
        float32 ones; or the inputs themselves, such as token ids.
      collections: other variables whose absolute values are taken too, such as {"batch_stats":
        ...}; None if there are none, or if `apply_fn` holds them: at initialisation the statistics
        of norms are 0 and 1.
      masks: bool, like params: the weights that are left. None if all are.
      prunable: as in `prunable_paths`; the scores of other leaves are 0.

    Returns:
      A tree like params, float32 or float64, at least 0: what `masks_from_scores` takes. On a mesh
      scores lie as their params do.

    Raises:
      ValueError: masks do not fit; a score is NaN or infinite; all scores are 0, because the
        network is cut. Names the leaf. (Scores are not looked at under `jit`.)

    Reference: Tanaka et al., "Pruning neural networks without any data by iteratively conserving
    synaptic flow", NeurIPS 2020, equation 2 and algorithm 1.

    >>> apply_fn = lambda params, x: x @ params["a"]["kernel"] @ params["b"]["kernel"]
    >>> kernels = {"a": jnp.array([[1.0, -1.0]]), "b": jnp.array([[-3.0], [5.0]])}
    >>> params = {name: {"kernel": kernel} for name, kernel in kernels.items()}
    >>> scores = synflow_scores(apply_fn, params, (1, 1))  # R = 3 + 5, here divided by 16
    >>> [16 * scores[name]["kernel"].ravel() for name in "ab"]
    [Array([3., 5.], dtype=float32), Array([3., 5.], dtype=float32)]
    """
    subject = subject_of(params, prunable)
    weights = subject.weights
    if masks is not None:
        by_path = leaves_by_path(check_masks(masks, params))
        weights = {path: apply_mask(w, by_path[path]) for path, w in weights.items()}
    scores = scorer(apply_fn, subject, _inputs(inputs), collections)(weights, None)
    check_scores(scores, None if masks is None else weights)
    return subject.tree(scores)


def synflow_masks(
    apply_fn: Forward,
    params: PyTree,
    inputs: Any,
    sparsity: float | None = None,
    *,
    collections: PyTree | None = None,
    num_rounds: int = 100,
    **options: Unpack[ScoreOptions],
) -> PyTree:
    """Returns SynFlow's masks: the lowest scores are pruned in 100 rounds, each time scored anew.

        masks = jaxsparse.synflow_masks(apply_fn, params, (1, 32, 32, 3), sparsity=0.99)
        method = jaxsparse.static(masks=masks, total_steps=10_000)

    Round k of n prunes to the density rho^(-k/n), over all layers together. A chain of layers loses
    none of them, down to a single weight each, where other scores empty a layer much earlier. All
    rounds are one compiled program. A warning says if no path is left from input to output.

    Args:
      apply_fn: as in `synflow_scores`.
      params: as in `synflow_scores`.
      inputs: as in `synflow_scores`.
      sparsity: as in `masks_from_scores`.
      collections: as in `synflow_scores`.
      num_rounds: at least 1; 100 as published.
      **options: `scope`, `distribution`, `min_keep`, `pattern`, `prunable`, as in
        `masks_from_scores`.

    Returns:
      A tree of bool like params, with exact counts.

    Raises:
      ValueError: as `synflow_scores` and `masks_from_scores`.

    Reference: Tanaka et al. 2020, algorithm 1.

    Differs from the official code in: counts are exact, where that code removes all ties at its
    threshold, so all weights that lie on no path at once; here those are the first to go.

    >>> apply_fn = lambda params, x: x @ params["a"]["kernel"] @ params["b"]["kernel"]
    >>> kernels = {"a": jnp.array([[1.0, -1.0]]), "b": jnp.array([[-3.0], [5.0]])}
    >>> params = {name: {"kernel": kernel} for name, kernel in kernels.items()}
    >>> masks = synflow_masks(apply_fn, params, (1, 1), sparsity=0.5)
    >>> [masks[name]["kernel"].ravel().tolist() for name in "ab"]
    [[False, True], [False, True]]
    """
    subject, given = subject_of(params, options.get("prunable")), _inputs(inputs)
    score = scorer(apply_fn, subject, given, collections)
    masks = prune_in_rounds(score, subject, sparsity, options, num_rounds=num_rounds)
    forward = apply_fn if collections is None else _closed(apply_fn, collections)
    warn_if_cut(subject, masks, forward, given)
    return masks


def scorer(
    apply_fn: Forward, subject: Subject, inputs: Any, collections: PyTree | None
) -> ScoreLeft:
    """Returns the function from the weights that are left to their scores, compiled once."""
    places = {path: placed_by(w) for path, w in subject.weights.items()}
    others = () if collections is None else (collections,)

    @jax.jit
    def score(left: Leaves, params: PyTree, inputs: Any, others: Any) -> dict[str, jax.Array]:
        absolute = lambda tree: jax.tree.map(_absolute, tree)
        params, others, left = absolute(params), absolute(others), absolute(dict(left))

        def flow(left: Leaves) -> jax.Array:
            total = lambda left, params, inputs, others: sum_of(
                apply_fn(subject._replace(params=params).with_weights(left), inputs, *others)
            )
            args = (left, params, inputs, others)
            (found,) = run_scaled(jax.make_jaxpr(total)(*args), jax.tree.leaves(args))
            return found.mantissa

        grads = jax.grad(flow)(left)
        found = {path: jnp.abs(w * grads[path]) for path, w in left.items()}
        return {path: constrained(x, places[path]) for path, x in found.items()}

    return lambda left, masks: score(left, subject.params, inputs, others)


def sum_of(outputs: Any) -> jax.Array:
    """Returns the sum of all outputs, in float32 at least."""
    wide = lambda x: x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return sum((wide(x).sum() for x in jax.tree.leaves(outputs)), jnp.zeros(()))


def _absolute(x: jax.Array) -> jax.Array:
    return jnp.abs(x) if jnp.issubdtype(jnp.result_type(x), jnp.floating) else x


def _closed(apply_fn: Forward, collections: PyTree) -> Forward:
    return lambda params, inputs: apply_fn(params, inputs, collections)


def _inputs(inputs: Any) -> Any:
    """Ones of a shape, or the inputs as they are.

    Raises:
      ValueError: the shape has no axis of examples, or one that is empty.
    """
    is_number = lambda n: isinstance(n, int | np.integer) and not isinstance(n, bool)
    if not isinstance(inputs, tuple | list) or not all(map(is_number, inputs)):
        return inputs
    if not inputs or min(inputs) < 1:
        raise ValueError(f"inputs {inputs} must be a shape with an axis of examples, all above 0")
    return jnp.ones(tuple(inputs), jnp.float32)
