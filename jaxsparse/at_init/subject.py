"""The subject of scores: the prunable weights in float32 at least, and the leaves around them."""

import inspect
import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxsparse.at_init.losses import Loss
from jaxsparse.meshes import placed_by
from jaxsparse.paths import leaves_by_path, listed, prunable_paths, with_leaves
from jaxsparse.tracing.jaxprs import inner_equations
from jaxsparse.types import Leaves, PyTree, Rules


class Subject(NamedTuple):
    """Params, taken apart.

    Attributes:
      weights: the prunable leaves by path, in float32, or float64 if they were so.
      params: the tree, whose floating-point leaves are float32 at least.
    """

    weights: dict[str, jax.Array]
    params: PyTree

    def with_weights(self, weights: Leaves) -> PyTree:
        """Returns params with these prunable leaves."""
        return with_leaves(self.params, weights)

    def tree(self, scores: Leaves) -> PyTree:
        """Returns scores as a tree like params; leaves that are not prunable are all 0."""
        zeros = jax.tree.map(lambda x: jnp.zeros_like(x, jnp.float32), self.params)
        return with_leaves(zeros, scores)


def subject_of(params: PyTree, prunable: Rules | None) -> Subject:
    """Takes params apart.

    Raises:
      ValueError: a prunable leaf is not floating point, or as `prunable_paths`.
    """
    paths = prunable_paths(params, prunable)
    leaves = {path: _wide(x) for path, x in leaves_by_path(params).items()}
    for path in paths:
        if not jnp.issubdtype(jnp.result_type(leaves[path]), jnp.floating):
            kind = jnp.result_type(leaves[path])
            raise ValueError(f"leaf {path} has dtype {kind}; scores need floating point")
    return Subject({path: leaves[path] for path in paths}, with_leaves(params, leaves))


def _wide(x: Any) -> jax.Array:
    dtype = jnp.result_type(x)
    if not jnp.issubdtype(dtype, jnp.floating):
        return jnp.asarray(x)
    place = placed_by(x)
    wide = jnp.asarray(x, jnp.promote_types(dtype, jnp.float32))
    return wide if place is None else jax.device_put(wide, place)


def check_loss(loss_fn: Loss, params: PyTree, batch: Any) -> None:
    """Checks what a loss returns; warns if it computes in 16 bits.

    Raises:
      ValueError: it is no floating-point scalar.
    """
    closed, found = jax.make_jaxpr(loss_fn, return_shape=True)(params, batch)
    leaves = jax.tree.leaves(found)
    said = ", ".join(f"{x.dtype}{list(x.shape)}" for x in leaves) or "nothing"
    if jax.tree.structure(found) != jax.tree.structure(0) or leaves[0].shape:
        raise ValueError(
            f"the loss returns {said}; it must return one number, such as the mean over the batch"
        )
    if not jnp.issubdtype(leaves[0].dtype, jnp.floating):
        raise ValueError(f"the loss returns {said}; it must be floating point")
    _warn_of_16_bits(closed)


def _warn_of_16_bits(closed: Any) -> None:
    equations = (inner for eqn in closed.jaxpr.eqns for inner in (eqn, *inner_equations(eqn)))
    kinds = {str(getattr(v.aval, "dtype", "")) for eqn in equations for v in eqn.outvars}
    if short := kinds & {"bfloat16", "float16"}:
        warnings.warn(
            f"the function computes in {' and '.join(sorted(short))}, in which small scores drown; "
            f"score with the same network in float32 (such as model.clone(dtype=jnp.float32))",
            stacklevel=5,
        )


def with_temperature(loss_fn: Loss, temperature: float | None) -> Loss:
    """Returns the loss at a temperature.

    Raises:
      ValueError: the loss takes none, so that logits would be taken as they are.
    """
    if temperature is None:
        return loss_fn
    try:
        takes = inspect.signature(loss_fn).parameters.values()
    except (TypeError, ValueError):  # a callable without a signature
        takes = ()
    if takes and not any(p.name == "temperature" or p.kind == p.VAR_KEYWORD for p in takes):
        raise ValueError(
            f"the loss takes no temperature, by which GraSP divides the logits ({temperature:g}); "
            f"take cross_entropy(logits_fn), or a loss of (params, batch, temperature); or say "
            f"temperature=None to score the loss as it is"
        )
    return lambda params, batch: loss_fn(params, batch, temperature=temperature)


def check_scores(scores: Leaves, masks: Leaves | None, when: str = "") -> None:
    """Refuses scores that say nothing; warns of a leaf whose scores are all 0.

    Under `jit` there is nothing to look at, and nothing is checked.

    Args:
      scores: by path.
      masks: the weights that are still active, by path; None if all are.
      when: the words after "scores", such as " of round 3".

    Raises:
      ValueError: a score is NaN or infinite (names the leaf), or all of them are 0.
    """
    if any(isinstance(x, Tracer) for x in scores.values()):
        return
    found = jax.device_get(_look(dict(scores)))
    for path, (num_bad, _) in found.items():
        if num_bad:
            raise ValueError(
                f"{num_bad} of the {scores[path].size} scores of {path}{when} are NaN or infinite; "
                f"look for the same in the params, the loss and its gradient there"
            )
    zero = [path for path, (_, is_zero) in found.items() if is_zero and scores[path].size]
    if len(zero) == len(found):
        why = "no weight has an effect"
        why += "" if masks is None else ", because the network is cut"
        raise ValueError(f"all scores{when} are 0: {why}; the leaves are {listed(zero)}")
    if zero and masks is None:
        warnings.warn(
            f"all scores of {listed(zero)} are 0, as of a layer at or behind one that starts at 0; "
            f"they will be pruned first",
            stacklevel=5,
        )


@jax.jit
def _look(scores: dict[str, jax.Array]) -> dict[str, tuple[jax.Array, jax.Array]]:
    return {path: ((~jnp.isfinite(x)).sum(), ~(x != 0).any()) for path, x in scores.items()}


def shape_of_one(inputs: Any) -> Any:
    """Returns the shapes of inputs with one example."""
    one = lambda x: jax.ShapeDtypeStruct((1, *np.shape(x)[1:]), jnp.result_type(x))
    return jax.tree.map(one, inputs)
