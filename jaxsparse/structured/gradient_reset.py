"""Gradient resetting and group lasso: the optimizer of ResRep's compactors.

The penalty has to be part of the optimizer: first the mask, then the penalty, then momentum. As a
term of the loss it would be reset together with the gradient; and masks that are applied to what
the optimizer returns would reset it too.

Reference: Ding et al., "ResRep: Lossless CNN Pruning via Decoupling Remembering and Forgetting",
ICCV 2021.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxsparse.checks import check_in
from jaxsparse.paths import leaf_paths
from jaxsparse.types import PyTree


class ResetState(NamedTuple):
    """The state of `reset_and_lasso`.

    Attributes:
      masks: a tree like params, bool[rows] at each compactor; False where the loss is reset.
    """

    masks: PyTree


class CompactorState(NamedTuple):
    """The state of `compactor_sgd`.

    Attributes:
      step: int32[], completed steps.
      masks: as in `ResetState`.
      momentum: a tree like params.
    """

    step: jax.Array
    masks: PyTree
    momentum: PyTree


def row_gradient(
    gradient: jax.Array, matrix: jax.Array, mask: jax.Array, *, lasso: float
) -> jax.Array:
    """Returns m_j dL/dQ_j + lambda Q_j / ||Q_j|| for all rows of a compactor.

    Args:
      gradient: of the loss, like `matrix`.
      matrix: float[in, rows]; row j of the paper is the column `matrix[:, j]`.
      mask: bool[rows], False where the gradient of the loss is reset.
      lasso: lambda, the strength of the penalty.

    Returns:
      An array of the gradient's dtype. A row of zeros has no direction, so its penalty is 0 (the
      official code divides 0 by 0).

    >>> matrix = jnp.array([[3.0, 0.0], [4.0, 0.0]])
    >>> row_gradient(jnp.ones((2, 2)), matrix, jnp.array([False, True]), lasso=0.5)
    Array([[0.3, 1. ],
           [0.4, 1. ]], dtype=float32)
    """
    kept = jnp.where(mask[None], gradient, 0).astype(jnp.float32)
    return (kept + lasso * _direction(matrix)).astype(gradient.dtype)


def _direction(matrix: jax.Array) -> jax.Array:
    """Unit rows. They are scaled first: the square of an entry below 1e-19 would underflow."""
    tiny = jnp.finfo(jnp.float32).tiny
    rows = matrix.astype(jnp.float32)
    rows = rows / jnp.maximum(jnp.max(jnp.abs(rows), axis=0, keepdims=True), tiny)
    return rows / jnp.maximum(jnp.linalg.norm(rows, axis=0, keepdims=True), tiny)


def reset_and_lasso(lasso: float = 1e-4) -> optax.GradientTransformation:
    """Resets the gradients of masked rows and adds the penalty to all, as `row_gradient` does.

    Put it first in the chain of the compactors, before momentum, and give it no weight decay:

        optax.chain(reset_and_lasso(), optax.trace(0.99), optax.scale_by_learning_rate(rate))

    All its params are compactors, so give it to `optax.partition` beside the optimizer of the rest;
    `resrep_optimizer` is the published whole. Masks are all True at the start; `with_row_masks`
    changes them, and nothing is compiled again.

    Args:
      lasso: lambda, in (0, inf). `lasso_preflight` says whether it brings rows to 0 in time.

    Returns:
      A transformation with the state `ResetState`. Its `update` needs params.

    Raises:
      ValueError: lasso out of its range, a leaf that is no square matrix (names it), or an update
        without params.

    >>> tx = reset_and_lasso(0.5)
    >>> params = {"matrix": jnp.eye(2)}
    >>> state = ResetState({"matrix": jnp.array([True, False])})
    >>> tx.update({"matrix": jnp.full((2, 2), 2.0)}, state, params)[0]
    {'matrix': Array([[2.5, 0. ],
           [2. , 0.5]], dtype=float32)}
    """
    lasso = check_in("lasso", lasso, "(0, inf)")

    def update(updates: PyTree, state: Any, params: PyTree | None = None) -> tuple[PyTree, Any]:
        return _gradients(updates, params, state.masks, lasso), state

    return optax.GradientTransformation(lambda params: ResetState(_all_rows(params)), update)


def compactor_sgd(
    learning_rate: float | optax.Schedule,
    *,
    lasso: float = 1e-4,
    momentum: float = 0.99,
    snap: bool = False,
) -> optax.GradientTransformation:
    """The optimizer of compactors: gradient resetting, group lasso and SGD with momentum.

        z <- mu z + G;      Q <- Q - lr z

    The penalty has a constant length, so a masked row does not come to rest at 0, for two reasons:

        It oscillates with norms up to lr * lambda / (4 (1 - mu)), 25 lr lambda for mu = 0.99.
        If it has momentum across its own direction when it is masked, it passes 0 by, and orbits
        it. Friction shrinks an orbit by exp(-2/3 (1 - mu)) a step: from 1 to 1e-5 in 1,700 steps.

    It falls below the threshold of the merge only with time, and as the learning rate anneals.
    `snap` ends this: the momentum of a masked row keeps the part along the row alone, so that it
    runs straight to 0; and a masked row below the first norm becomes 0, its momentum too, and both
    stay so as long as it is masked.

    A snapped row cannot be recalled usefully, since ReLU passes no gradient at 0.

    Args:
      learning_rate: number or schedule over steps.
      lasso: lambda, in (0, inf).
      momentum: mu, in [0, 1).
      snap: whether to bring masked rows to 0 as above. Neither half of it is in the paper.

    Returns:
      A transformation with the state `CompactorState`. Its `update` needs params. Without `snap`
      it gives the updates of the chain in `reset_and_lasso`.

    Raises:
      ValueError: as `reset_and_lasso`, or a momentum out of its range.
    """
    lasso, momentum = check_in("lasso", lasso, "(0, inf)"), check_in("momentum", momentum, "[0, 1)")

    def init(params: PyTree) -> CompactorState:
        slots = jax.tree.map(jnp.zeros_like, params)
        return CompactorState(jnp.zeros((), jnp.int32), _all_rows(params), slots)

    def update(updates: PyTree, state: Any, params: PyTree | None = None) -> tuple[PyTree, Any]:
        rate = learning_rate(state.step) if callable(learning_rate) else learning_rate
        rate = jnp.asarray(rate, jnp.float32)
        pulls = _gradients(updates, params, state.masks, lasso)
        slots = jax.tree.map(lambda g, z: g + momentum * z, pulls, state.momentum)
        if snap:
            slots = jax.tree.map(_along_masked, slots, params, state.masks)
        moves = jax.tree.map(lambda z: (-rate * z).astype(z.dtype), slots)
        if snap:
            bound = rate * lasso / (4 * (1 - momentum))
            at_rest = jax.tree.map(
                lambda q, m: ~m & (norms_of_rows(q) <= bound), params, state.masks
            )
            moves = jax.tree.map(lambda s, u, q: jnp.where(s, -q, u), at_rest, moves, params)
            slots = jax.tree.map(lambda s, z: jnp.where(s, jnp.zeros_like(z), z), at_rest, slots)
        return moves, CompactorState(state.step + 1, state.masks, slots)

    return optax.GradientTransformation(init, update)


def _along_masked(slot: jax.Array, matrix: jax.Array, mask: jax.Array) -> jax.Array:
    """The momentum, without the part of masked rows that is across the row."""
    unit = _direction(matrix)
    along = unit * jnp.sum(slot.astype(jnp.float32) * unit, axis=0, keepdims=True)
    return jnp.where(mask[None], slot, along.astype(slot.dtype))


def norms_of_rows(matrix: jax.Array) -> jax.Array:
    """Returns the norm of every row of a compactor, float32[rows]."""
    return jnp.linalg.norm(matrix.astype(jnp.float32), axis=0)


def _all_rows(params: PyTree) -> PyTree:
    for path, leaf in zip(leaf_paths(params), jax.tree.leaves(params), strict=True):
        if np.ndim(leaf) != 2 or leaf.shape[0] != leaf.shape[1]:
            raise ValueError(f"{path} {np.shape(leaf)} is no compactor, which is a square matrix")
    return jax.tree.map(lambda leaf: jnp.ones(leaf.shape[1], bool), params)


def _gradients(updates: PyTree, params: PyTree | None, masks: PyTree, lasso: float) -> PyTree:
    if params is None:
        raise ValueError("compactors need params: tx.update(grads, state, params)")
    return jax.tree.map(
        lambda g, q, mask: row_gradient(g, q, mask, lasso=lasso), updates, params, masks
    )
