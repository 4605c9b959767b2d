"""Trees of a narrower network: the indices that go are taken out of all leaves that have them.

The leaves of a train state are known by the ends of their paths: "opt_state/0/trace/fc/kernel" and
"masks/fc/kernel" are sliced as "params/fc/kernel" is.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsparse.paths import leaf_paths, listed
from jaxsparse.types import PyTree, Shapes

Removed = Mapping[tuple[str, int], np.ndarray]
"""The indices that go, by path and axis."""


def narrowed(tree: PyTree, shapes: Shapes, removed: Removed) -> PyTree:
    """Returns the tree with indices removed; see `WidthPlan.apply`."""

    def cut(leaf: Any, axes: Mapping[int, np.ndarray]) -> Any:
        shape = list(np.shape(leaf))
        kept = {}
        for axis, gone in axes.items():
            kept[axis] = np.setdiff1d(np.arange(shape[axis]), gone)
            shape[axis] = len(kept[axis])
        if isinstance(leaf, jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct(tuple(shape), leaf.dtype)
        for axis, indices in kept.items():
            take = np.take if isinstance(leaf, np.ndarray) else jnp.take
            leaf = take(leaf, indices, axis=axis)
        return leaf

    return _changed(tree, shapes, removed, cut)


def zeroed(tree: PyTree, shapes: Shapes, removed: Removed) -> PyTree:
    """Returns the tree with zeros at the indices that go; see `WidthPlan.zero`."""

    def zero(leaf: Any, axes: Mapping[int, np.ndarray]) -> Any:
        leaf = jnp.asarray(leaf)
        for axis, gone in axes.items():
            where = (slice(None),) * axis + (gone,)
            leaf = leaf.at[where].set(jnp.zeros((), leaf.dtype))
        return leaf

    return _changed(tree, shapes, removed, zero)


def _changed(
    tree: PyTree,
    shapes: Shapes,
    removed: Removed,
    change: Callable[[Any, Mapping[int, np.ndarray]], Any],
) -> PyTree:
    """Returns the tree with its known leaves changed, those of which indices go.

    Raises:
      ValueError: a known leaf has another shape, or none is known.
    """
    by_leaf: dict[str, dict[int, np.ndarray]] = {}
    for (path, axis), gone in removed.items():
        by_leaf.setdefault(path, {})[axis] = gone
    find = _finder(shapes)
    leaves, treedef = jax.tree.flatten(tree)
    found, num_known = [], 0
    for path, leaf in zip(leaf_paths(tree), leaves, strict=True):
        known = find(path)
        num_known += known is not None
        if known in by_leaf and np.size(leaf) > 1:
            if np.shape(leaf) != shapes[known]:
                raise ValueError(
                    f"leaf {path} has shape {np.shape(leaf)}, and {known} of the network "
                    f"{shapes[known]}: it is of another network, or a slot unlike its weight"
                )
            leaf = change(leaf, by_leaf[known])
        found.append(leaf)
    if not num_known:
        raise ValueError(
            f"no leaf of the tree ({listed(leaf_paths(tree))}) has the path of one of the "
            f"network ({listed(shapes)})"
        )
    return jax.tree.unflatten(treedef, found)


def _finder(shapes: Shapes) -> Callable[[str], str | None]:
    """Returns the function from a path to the leaf whose path, or its end, is the longest match.

    The first part of a leaf's path, such as "params", may be missing, unless two leaves differ by
    it alone.
    """
    known: dict[tuple[str, ...], str | None] = {}
    for path in shapes:
        known[tuple(path.split("/"))] = path
    ends = [(tuple(path.split("/"))[1:], path) for path in shapes]
    for end, path in ends:
        if end and end not in known:
            known[end] = None if sum(end == other for other, _ in ends) > 1 else path

    def find(path: str) -> str | None:
        parts = tuple(path.split("/"))
        for start in range(len(parts)):
            if parts[start:] in known:
                return known[parts[start:]]
        return None

    return find
