"""Gradient flow of a run: the norm of the gradient that the active weights receive.

The norm is the square root of `jaxsparse.gradient_flow`, ||m * grad L||^2, which Evci et al. 2022
compare masks by. Records hold the norm, figures show its square.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

import jaxsparse
from experiments.training.execution import compressed
from experiments.training.run import DROPOUT, Run, RunState
from jaxsparse.nn import sparse_execution
from jaxsparse.paths import check_rules
from jaxsparse.sparse import Positions, expand_leaves
from jaxsparse.types import Rules


def gradient_flow(run: Run, state: RunState) -> dict[str, Any]:
    """Measures the masked gradient of the training loss, always on the same images.

    The images are the first of the training set, as many as a step takes at once, without
    augmentation and with the same dropout at every call. A call costs about a training step. The
    function is compiled once; under sparse execution again whenever a training step would be.

    Returns:
      "grad_norm", the L2 norm over all parameters; "layer_grad_norm", that of each prunable layer
      in the order of `prunable_paths`.
    """
    num_images = run.batch_size // run.accumulate
    model, params, positions = compressed(run, state)
    total, layers = _norms(
        (model, run.normalise, check_rules(run.method.prunable)),
        {**state.variables, "params": params},
        state.masks,
        positions,
        run.dataset.train.images[:num_images],
        run.dataset.train.labels[:num_images],
        run.key(DROPOUT),
    )
    return {"grad_norm": float(total), "layer_grad_norm": np.asarray(layers).tolist()}


@functools.partial(jax.jit, static_argnums=0)
def _norms(
    of_run: tuple[nn.Module, Callable[[jax.Array], jax.Array], Rules | None],
    variables: dict[str, Any],
    masks: Any,
    positions: Mapping[str, Positions],
    images: jax.Array,
    labels: jax.Array,
    key: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    model, normalise, rules = of_run
    collections = {name: values for name, values in variables.items() if name != "params"}

    def mean_loss(params: Any) -> jax.Array:
        with sparse_execution(positions):
            logits, _ = model.apply(
                {"params": params, **collections},
                normalise(images),
                train=True,
                mutable=list(collections),
                rngs={"dropout": key},
            )
        return optax.softmax_cross_entropy_with_integer_labels(jnp.asarray(logits), labels).mean()

    grads = jax.grad(mean_loss)(variables["params"])
    grads = expand_leaves(grads, positions)
    flow = jaxsparse.gradient_flow(grads, masks, prunable=rules)
    return jnp.sqrt(flow.total), jnp.sqrt(flow.layers)
