"""Rewinding: params and optimizer as they were after step k, with a ticket's masks."""

from typing import Any

import jax
import numpy as np
import optax

from jaxsparse.inside_optax import is_hole
from jaxsparse.masks import apply_masks
from jaxsparse.overwritten import trained_part
from jaxsparse.paths import check_like
from jaxsparse.types import PyTree


def rewound(
    params: PyTree, masks: PyTree, tx: optax.GradientTransformation, opt_state: PyTree
) -> tuple[PyTree, PyTree]:
    """Returns the params m * theta_k and an optimizer that starts there: a lottery ticket.

        params, opt_state = jaxsparse.rewound(params_k, masks, tx, opt_state_k)

    Momentum and second moments start afresh, as in the published codes, which build a new
    optimizer. Schedules go on at step k: their counts are taken from `opt_state`. A new `tx.init`
    alone would start the learning rate at step 0. Adam's bias correction starts afresh too, since
    its moments do. Rewind everything else that training changes by hand: the statistics of batch
    norms, the position in the data, averages of weights.

    The arms of Renda et al. are the same call. Learning-rate rewinding passes trained params with
    the optimizer state of step k; fine-tuning passes trained params with that of the last step.

    Args:
      params: of step k, or for the arms those at the end; any pytree of arrays.
      masks: bool, the structure and shapes of params.
      tx: the optimizer, `masked` around it or not.
      opt_state: its state after step k, whose slots are not used.

    Returns:
      Params that are bit-equal to params where the mask is True, and +0 elsewhere; and an optimizer
      state with the structure of `opt_state`.

    Raises:
      ValueError: masks that do not fit params, or a state of another optimizer or other params
        (names the first leaf that differs).

    Reference: Frankle et al., ICML 2020, section 3; Renda, Frankle and Carbin, "Comparing Rewinding
    and Fine-tuning in Neural Network Pruning", ICLR 2020.

    >>> import jax.numpy as jnp
    >>> params, masks = {"kernel": jnp.array([1.0, 2.0])}, {"kernel": jnp.array([True, False])}
    >>> tx = optax.sgd(optax.linear_schedule(1.0, 0.0, 10), momentum=0.9)
    >>> _, late = tx.update(params, tx.init(params), params)
    >>> ticket, opt_state = rewound(params, masks, tx, late)
    >>> ticket["kernel"], opt_state[0].trace["kernel"], int(opt_state[1].count)
    (Array([1., 0.], dtype=float32), Array([0., 0.], dtype=float32), 1)
    """
    params = apply_masks(params, masks)
    trained = trained_part(params)
    fresh = tx.init(trained)
    opt_state = check_like(opt_state, fresh, name="opt_state", like="the optimizer's own init")
    return params, _with_fresh_slots(opt_state, fresh, trained)


def _with_fresh_slots(old: PyTree, fresh: PyTree, params: PyTree) -> PyTree:
    """Takes from `fresh` every part that holds slots, and from `old` those that only count.

    A part is a node of the state, such as Adam's (count, mu, nu), and holds slots if one of its
    children is a tree like params.
    """
    if isinstance(old, jax.Array | np.ndarray):
        return old
    ours, theirs = _children(old), _children(fresh)
    if not ours or is_hole(old):
        return old
    if any(_is_like(child, params) for child in (old, *ours)):
        return fresh
    parts = [_with_fresh_slots(a, b, params) for a, b in zip(ours, theirs, strict=True)]
    structure = jax.tree.structure(old, is_leaf=lambda x: x is not old)
    return jax.tree.unflatten(structure, parts)


def _children(node: Any) -> list[Any]:
    return jax.tree.leaves(node, is_leaf=lambda x: x is not node)


def _is_like(node: Any, params: PyTree) -> bool:
    """Whether a node has the structure of params, leaves that `optax.masked` leaves out included.

    Structure is enough, since factored slots have other shapes; a bare array is told by its shape.
    """
    structure = jax.tree.structure(node, is_leaf=is_hole)
    if structure != jax.tree.structure(params, is_leaf=is_hole):
        return False
    return jax.tree.structure(0) != structure or np.shape(node) == np.shape(params)
