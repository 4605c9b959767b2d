"""SynFlow: keep the weights that carry most flow from input to output; it needs no data."""

from collections.abc import Callable, Sequence
from typing import Any, Unpack

import jax
import jax.numpy as jnp

from jaxsparse.at_init.micro_batches import on_params, weights_of
from jaxsparse.at_init.rounds import prune_in_rounds
from jaxsparse.one_shot import ScoreOptions
from jaxsparse.paths import with_leaves
from jaxsparse.types import PyTree, Rules


def synflow_scores(
    apply_fn: Callable[[PyTree, jax.Array], jax.Array],
    params: PyTree,
    input_shape: Sequence[int],
    *,
    masks: PyTree | None = None,
    prunable: Rules | None = None,
) -> PyTree:
    """Returns |w| dR/d|w|, where R is the sum of outputs of the network of |w| for ones as input.

    In a chain of layers without biases the scores of each layer sum up to R, so that layers with
    many weights lose theirs first.

    R leaves the range of float32 in deep networks, so it is computed in float64, and the scores are
    divided by their maximum, which changes no ranks. A network that computes in float32 whatever
    its params are has to be made with `dtype=jnp.float64`, or the scores of a deep one are refused.

    Args:
      apply_fn: (params, inputs) to outputs, with batch norms in inference mode.
      params: any pytree of arrays; all of them are replaced by their absolute values. To have that
        of batch statistics too, pass the whole variables.
      input_shape: shape of the inputs with a batch axis, such as (1, 32, 32, 3).
      masks: weights that are left, a tree like params; others are 0 and score 0. None is all.
      prunable: as in `prunable_paths`.

    Returns:
      A tree like params with float32 scores in [0, 1] at prunable leaves, and zeros elsewhere.

    Raises:
      ValueError: outputs are no floats.

    Differs from the paper's code in: it is computed in float64.

    Reference: Tanaka et al., "Pruning neural networks without any data by iteratively conserving
    synaptic flow", NeurIPS 2020, equation 2 and algorithm 1.

    >>> params = {"a": {"kernel": jnp.array([[1.0, -2.0]])}, "b": {"kernel": jnp.ones((2, 1))}}
    >>> apply_fn = lambda p, x: x @ p["a"]["kernel"] @ p["b"]["kernel"]
    >>> synflow_scores(apply_fn, params, (1, 1))["a"]["kernel"]
    Array([[0.5, 1. ]], dtype=float32)
    """
    return _scorer(apply_fn, params, input_shape, prunable)(masks)


def synflow_masks(
    apply_fn: Callable[[PyTree, jax.Array], jax.Array],
    params: PyTree,
    input_shape: Sequence[int],
    sparsity: float | None = None,
    *,
    num_rounds: int = 100,
    **options: Unpack[ScoreOptions],
) -> PyTree:
    """Returns SynFlow's masks: in each round the highest `synflow_scores` of what is left.

    The density falls by the same factor in each round. Scores are compiled once for all rounds.

    Args:
      apply_fn: as in `synflow_scores`.
      params: as there.
      input_shape: as there.
      sparsity: as in `masks_from_scores`.
      num_rounds: at least 1; the paper takes 100. With 1 layers collapse as with other methods.
      **options: `scope`, `distribution`, `min_keep`, `pattern`, `prunable`, as in
        `masks_from_scores`.

    Raises:
      ValueError: as `synflow_scores` and `masks_from_scores`; scores that are not finite, or all 0.
    """
    score = _scorer(apply_fn, params, input_shape, options.get("prunable"))
    return prune_in_rounds(score, params, sparsity, num_rounds, **options)


def _scorer(
    apply_fn: Callable[[PyTree, jax.Array], jax.Array],
    params: PyTree,
    input_shape: Sequence[int],
    prunable: Rules | None,
) -> Callable[[PyTree | None], PyTree]:
    """Returns the function from masks to scores, compiled for all rounds."""

    @jax.jit
    def scores_of(weights: dict[str, jax.Array], params: PyTree) -> dict[str, jax.Array]:
        positive = jax.tree.map(_wide_abs, params)
        weights = jax.tree.map(_wide_abs, weights)

        def flow(weights: dict[str, jax.Array]) -> jax.Array:
            outputs = apply_fn(with_leaves(positive, weights), jnp.ones(input_shape, jnp.float64))
            if not jnp.issubdtype(jnp.result_type(outputs), jnp.floating):
                raise ValueError(f"apply_fn returned {jnp.result_type(outputs)}, not floats")
            return outputs.sum()

        scores = {path: w * g for (path, w), g in _pairs(weights, jax.grad(flow)(weights))}
        highest = jnp.max(jnp.stack([x.max() for x in scores.values()]))
        scale = jnp.where(highest > 0, highest, 1.0)
        return {path: (x / scale).astype(jnp.float32) for path, x in scores.items()}

    def score(masks: PyTree | None) -> PyTree:
        weights = weights_of(params, masks, prunable)
        with jax.enable_x64(True):
            scores = scores_of(weights, params)
        return on_params(params, scores)

    return score


def _pairs(first: dict[str, Any], second: dict[str, Any]) -> list[tuple[tuple[str, Any], Any]]:
    return [((path, x), second[path]) for path, x in first.items()]


def _wide_abs(x: jax.Array) -> jax.Array:
    """|x| in float64; arrays of other kinds, such as keys and counters, stay."""
    if not jnp.issubdtype(jnp.result_type(x), jnp.floating):
        return x
    return jnp.abs(x.astype(jnp.float64))
