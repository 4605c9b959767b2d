"""ResRep's optimizer: compactors whose rows forget the loss, one after another, and shrink to 0.

A compactor is a square matrix Q behind a convolution and its norm, the identity at the start. Row j
of the paper is the column `Q[:, j]` here: it makes channel j of the output. Its gradient is

    G_j = m_j dL/dQ_j + lambda Q_j / ||Q_j||,

where m_j = 0 is "gradient resetting": the loss no longer speaks, and the penalty (a group lasso)
brings the row to 0. The penalty acts on all rows from the first step. All other weights are trained
as ever:

    tx = resrep_optimizer(optax.cosine_decay_schedule(0.01, total_steps))
    ...
    if is_mask_step(step, start_step=5 * steps_per_epoch):
        norms, masks = row_norms(params), row_masks(opt_state)
        masks = choose_row_masks(norms, masks, costs, target=0.5)
        opt_state = with_row_masks(opt_state, masks)

Reference: Ding et al., "ResRep: Lossless CNN Pruning via Decoupling Remembering and Forgetting",
ICCV 2021.
"""

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxsparse.checks import check_in
from jaxsparse.paths import leaves_by_path, listed, with_leaves
from jaxsparse.processes import whole
from jaxsparse.structured.gradient_reset import (
    CompactorState,
    ResetState,
    compactor_sgd,
    norms_of_rows,
)
from jaxsparse.types import PyTree

COMPACTOR = r"(?i)(^|/)compactor\w*/matrix$"
"""A regex that finds the paths of compactors: those of `jaxsparse.nn.Compactor` under a name that
starts with "compactor"."""


def resrep_optimizer(
    learning_rate: float | optax.Schedule,
    *,
    lasso: float = 1e-4,
    momentum: float = 0.9,
    compactor_momentum: float = 0.99,
    weight_decay: float = 1e-4,
    bias_rate: float = 2.0,
    snap: bool = False,
    compactors: str = COMPACTOR,
) -> optax.GradientTransformation:
    """The published optimizer of a network with compactors: SGD in four parts.

        leaves                             momentum   weight decay   learning rate
        compactors, as in `compactor_sgd`    0.99           0              lr
        biases, those of norms too           0.9            0             2 lr
        other vectors: scales of norms       0.9            0              lr
        everything else: kernels             0.9          1e-4             lr

    The published runs start from a trained network, with a learning rate that falls from 0.01 to 0
    as a cosine: 180 epochs with batches of 256 for ResNet-50, 480 with 64 for ResNet-56.

    Args:
      learning_rate: number or schedule over steps.
      lasso: lambda, the strength of the penalty on the rows of compactors, in (0, inf).
      momentum: of everything but compactors, in [0, 1). Without Nesterov's form.
      compactor_momentum: in [0, 1).
      weight_decay: of kernels, in [0, inf).
      bias_rate: the factor on the learning rate of biases, in (0, inf).
      snap: as in `compactor_sgd`.
      compactors: a regex that is found in the paths of compactors and of nothing else.

    Returns:
      A transformation whose `update` needs params. `row_masks` and `with_row_masks` read and set
      the masks in its state.

    Raises:
      ValueError: a number out of its range, or no leaf that is a compactor.
    """
    momentum = check_in("momentum", momentum, "[0, 1)")
    weight_decay = check_in("weight_decay", weight_decay, "[0, inf)")
    bias_rate = check_in("bias_rate", bias_rate, "(0, inf)")
    options = {"lasso": lasso, "momentum": compactor_momentum, "snap": snap}
    decayed = optax.add_decayed_weights(weight_decay)
    parts: dict[Any, Any] = {
        "compactor": compactor_sgd(learning_rate, **options),
        "bias": optax.sgd(_times(bias_rate, learning_rate), momentum=momentum),
        "vector": optax.sgd(learning_rate, momentum=momentum),
        "kernel": optax.chain(decayed, optax.sgd(learning_rate, momentum=momentum)),
    }
    return optax.partition(parts, lambda params: _parts(params, compactors))


def _parts(params: PyTree, compactors: str) -> PyTree:
    """The part of `resrep_optimizer` that each leaf belongs to."""

    def part(path: str, rank: int) -> str:
        if re.search(compactors, path):
            return "compactor"
        if path.rpartition("/")[2] == "bias":
            return "bias"
        return "kernel" if rank > 1 else "vector"

    found: dict[str, Any] = {
        path: part(path, np.ndim(leaf)) for path, leaf in leaves_by_path(params).items()
    }
    # optax looks for slots with a placeholder in place of params, which has no leaves.
    if found and "compactor" not in found.values():
        raise ValueError(f"no leaf has a path like {compactors}; there are {listed(found)}")
    return with_leaves(params, found)


def _times(factor: float, learning_rate: float | optax.Schedule) -> float | optax.Schedule:
    if callable(learning_rate):
        return lambda step: factor * learning_rate(step)
    return factor * learning_rate


def row_norms(params: PyTree, *, compactors: str = COMPACTOR) -> dict[str, np.ndarray]:
    """Returns the norm of every row of every compactor, as float32[rows] on the host by path.

    Args:
      params: any pytree of arrays.
      compactors: a regex that is found in the paths of compactors.

    Raises:
      ValueError: no leaf is a compactor.

    >>> row_norms({"compactor1": {"matrix": jnp.array([[3.0, 0.0], [4.0, 1.0]])}})
    {'compactor1/matrix': array([5., 1.], dtype=float32)}
    """
    leaves = leaves_by_path(params)
    found = {path: leaf for path, leaf in leaves.items() if re.search(compactors, path)}
    if not found:
        raise ValueError(f"no leaf has a path like {compactors}; there are {listed(leaves)}")
    return {path: whole(norms) for path, norms in jax.tree.map(norms_of_rows, found).items()}


def row_masks(opt_state: PyTree) -> dict[str, np.ndarray]:
    """Returns the masks in the state of an optimizer, as bool[rows] on the host by path.

    Args:
      opt_state: of any optimizer that holds one `reset_and_lasso` or `compactor_sgd`.

    Raises:
      ValueError: the state holds none, or more than one.
    """
    return {path: whole(mask) for path, mask in leaves_by_path(_state_in(opt_state).masks).items()}


def with_row_masks(opt_state: PyTree, masks: Mapping[str, Any]) -> PyTree:
    """Returns the state of an optimizer with new masks; shapes, dtypes and placement stay.

    Args:
      opt_state: as in `row_masks`.
      masks: bool[rows] by path, for all compactors.

    Raises:
      ValueError: the paths or shapes are others than those in the state; names the first.
    """
    old = leaves_by_path(_state_in(opt_state).masks)
    for path, mask in old.items():
        if path not in masks:
            raise ValueError(f"masks has no compactor {path}, which the optimizer has")
        if np.shape(masks[path]) != mask.shape:
            raise ValueError(
                f"the mask of {path} has shape {np.shape(masks[path])}, its compactor has "
                f"{mask.shape[0]} rows"
            )
    if others := [path for path in masks if path not in old]:
        raise ValueError(f"the optimizer has no compactor {others[0]}; it has {listed(old)}")
    new = {path: _placed(np.asarray(masks[path], bool), mask) for path, mask in old.items()}
    change = lambda node: (
        node._replace(masks=with_leaves(node.masks, new)) if _has_masks(node) else node
    )
    return jax.tree.map(change, opt_state, is_leaf=_has_masks)


def unsettled_rows(
    norms: Mapping[str, np.ndarray], masks: Mapping[str, np.ndarray], *, threshold: float = 1e-5
) -> dict[str, int]:
    """Returns how many masked rows of each compactor have not come to 0, where there are any.

    Look at it after training: the merge keeps such rows, so that the network is wider than the
    masks say and may cost more than the target.

    Args:
      norms: float[rows] by path, from `row_norms`.
      masks: bool[rows] by path, from `row_masks`.
      threshold: of the merge.

    >>> unsettled_rows({"q": np.array([1.0, 1e-4, 0.0])}, {"q": np.array([True, False, False])})
    {'q': 1}
    """
    found = {path: int(np.sum(~masks[path] & (norms[path] >= threshold))) for path in norms}
    return {path: num for path, num in found.items() if num}


def _placed(mask: np.ndarray, old: jax.Array) -> jax.Array:
    return jax.device_put(mask, old.sharding) if isinstance(old, jax.Array) else jnp.asarray(mask)


def _has_masks(node: Any) -> bool:
    return isinstance(node, ResetState | CompactorState)


def _state_in(opt_state: PyTree) -> ResetState | CompactorState:
    found = list(filter(_has_masks, jax.tree.leaves(opt_state, is_leaf=_has_masks)))
    if len(found) != 1:
        raise ValueError(
            f"the optimizer's state holds {len(found)} states of reset_and_lasso or compactor_sgd, "
            "and must hold one"
        )
    return found[0]
