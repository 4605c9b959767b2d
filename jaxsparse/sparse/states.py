"""Compresses train states to their active weights, and expands them: params, masks, slots.

Between mask updates a train state can be *compressed*. Then every prunable leaf with few active
weights is the vector of these, in params and in every slot of the optimizer; its mask is True up to
their number and False in the unused capacity. The result is a train state like any other: the same
step function takes it, and its memory falls with the number of active weights. Events need all
weights, so expand the state first:

    positions = find_positions(state.masks, state.method.prunable)
    state = compress(state, positions)
    ...                                   # steps, under nn.sparse_execution(positions)
    state = expand(state, positions)
    state = state.apply_gradients(grads=dense_grads, event=True)
"""

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import optax

from jaxsparse.counting import num_true
from jaxsparse.inside_optax import is_hole
from jaxsparse.paths import (
    leaf_paths,
    leaves_by_path,
    listed,
    prunable_leaves,
    prunable_paths,
    with_leaves,
)
from jaxsparse.sparse.positions import Positions, gathered, positions_of, to_dense, to_mask
from jaxsparse.types import PyTree, Rules


def count_active(masks: PyTree, prunable: Rules | None = None) -> dict[str, int]:
    """Returns the number of active weights of every prunable leaf; waits for the device."""
    leaves = prunable_leaves(masks, prunable)
    return dict(zip(leaves, num_true(leaves.values()), strict=True))


def find_positions(
    masks: PyTree, prunable: Rules | None = None, *, capacity: Mapping[str, int] | None = None
) -> dict[str, Positions]:
    """Returns the positions of the active weights of prunable leaves, by path.

    Args:
      masks: bool, a tree like params.
      prunable: rules for the prunable leaves, as in `prunable_paths`.
      capacity: by path, for the leaves to take. None takes every leaf that has an inactive weight,
        with the number of its active weights as capacity; this does not work under `jit`.

    Raises:
      ValueError: a leaf has more active weights than its capacity, or a path of `capacity` is no
        prunable leaf.
    """
    leaves = prunable_leaves(masks, prunable)
    if capacity is None:
        active = count_active(masks, prunable)
        capacity = {path: num for path, num in active.items() if num < np.size(leaves[path])}
    if unknown := next((path for path in capacity if path not in leaves), None):
        raise ValueError(f"capacity for {unknown}, which is no prunable leaf")
    return {path: positions_of(leaves[path], n) for path, n in capacity.items()}


def compress(state: Any, positions: Mapping[str, Positions]) -> Any:
    """Returns the state with the leaves at `positions` as vectors of their active weights.

    The optimizer then sees vectors in place of kernels. Optimizers that look at ranks or shapes at
    every step compute something else for vectors: Adafactor, Muon, or a mask such as `lambda
    params: jax.tree.map(lambda x: x.ndim > 1, params)`. In place of such a mask give a tree of
    booleans or a mask by path. A box around a leaf (`nn.Partitioned`) stays, with the names of the
    kernel's axes. They do not apply to the vector, which must be replicated on all devices.

    Args:
      state: a `TrainState`, or another with params, masks, opt_state, tx, observe_state and method.
      positions: those of the masks, from `find_positions`. Weights elsewhere are lost. Keep them
        with the state: its steps and `expand` need the same positions.

    Raises:
      ValueError: positions of a leaf that params do not have, or of another shape; or the method
        reads the gradient of all weights at every step (SNFS).
    """
    if state.method.dense_gradient == "always":
        raise ValueError(
            f"{state.method.name} reads the gradient of all weights at every step; a compressed "
            "state has the active weights alone, so train it on dense kernels, with masks"
        )
    leaves = leaves_by_path(state.params)
    for path, where in positions.items():
        if path not in leaves or np.shape(leaves[path]) != where.shape:
            found = np.shape(leaves[path]) if path in leaves else "missing"
            raise ValueError(f"{path} is {found} in params, its positions are of {where.shape}")

    def shorten(leaf: Any, where: Positions) -> Any:
        return gathered(leaf, where) if np.shape(leaf) == where.shape else leaf

    masks = {path: where.is_active for path, where in positions.items()}
    return _changed(state, positions, shorten, masks)


def compress_leaves(tree: PyTree, positions: Mapping[str, Positions]) -> PyTree:
    """Returns a tree like params with the leaves at `positions` as vectors of active weights."""
    leaves = leaves_by_path(tree)
    return with_leaves(tree, {p: gathered(leaves[p], where) for p, where in positions.items()})


def expand_leaves(tree: PyTree, positions: Mapping[str, Positions]) -> PyTree:
    """Returns a tree like compressed params, such as their gradient, with all leaves dense."""
    leaves = leaves_by_path(tree)
    return with_leaves(tree, {p: to_dense(leaves[p], where) for p, where in positions.items()})


def expand(state: Any, positions: Mapping[str, Positions]) -> Any:
    """Returns the state with all leaves dense, the inverse of `compress`.

    Args:
      state: a compressed state.
      positions: those that it was compressed with, of all its vectors. A compressed state does not
        know where its weights were: positions of other masks with equal counts would put them into
        wrong places without an error.

    Raises:
      ValueError: a leaf at `positions` is no vector of their capacity, or a vector has no positions
        (this is found if the method's `prunable` goes by ranks, as the default does).
    """
    leaves = leaves_by_path(state.params)
    for path, where in positions.items():
        if path not in leaves or np.shape(leaves[path]) != (where.capacity,):
            found = np.shape(leaves[path]) if path in leaves else "missing"
            raise ValueError(
                f"{path} is {found} in params, its positions are of ({where.capacity},)"
            )

    def lengthen(leaf: Any, where: Positions) -> Any:
        return to_dense(leaf, where) if np.shape(leaf) == (where.capacity,) else leaf

    masks = {path: to_mask(where) for path, where in positions.items()}
    full = _changed(state, positions, lengthen, masks)
    _check_in_full(full)
    return full


def _check_in_full(state: Any) -> None:
    """Raises an error if the state has fewer prunable leaves than at the start.

    Then one of them is still a vector.
    """
    if not hasattr(state, "event_metrics"):
        return
    rules, began, found = state.method.prunable, state.event_metrics.num_active.shape[0], []
    with contextlib.suppress(ValueError):  # none at all
        found = prunable_paths(state.params, rules)
    if len(found) == began:
        return
    matrix = jax.ShapeDtypeStruct((1, 1), np.float32)
    widened = jax.tree.map(lambda x: matrix if np.ndim(x) == 1 else x, state.params)
    vectors = [path for path in prunable_paths(widened, rules) if path not in found]
    raise ValueError(
        f"params have {len(found)} prunable leaves in full, at the start they had {began}; "
        f"positions lack {listed(vectors)}"
    )


def _changed(
    state: Any,
    positions: Mapping[str, Positions],
    change: Callable[[Any, Positions], Any],
    masks: Mapping[str, jax.Array],
) -> Any:
    """Returns the state with `change` applied to params and slots of the leaves at `positions`."""
    params = leaves_by_path(state.params)
    paths = jax.tree.unflatten(jax.tree.structure(state.params), leaf_paths(state.params))

    def change_slot(slot: Any, path: str) -> Any:
        return change(slot, positions[path]) if path in positions and not is_hole(slot) else slot

    def changed_slots(tx: optax.GradientTransformation, slots: PyTree) -> PyTree:
        return optax.tree.map_params(tx, change_slot, slots, paths, is_leaf=is_hole)

    return state.replace(
        params=with_leaves(
            state.params, {path: change(params[path], where) for path, where in positions.items()}
        ),
        masks=with_leaves(state.masks, masks),
        opt_state=changed_slots(state.tx, state.opt_state),
        observe_state=changed_slots(state.method.observe, state.observe_state),
    )
