"""Trees of a narrower network: the indices that go are taken out of all leaves that have them.

The leaves of a train state are known by the ends of their paths: "opt_state/0/trace/fc/kernel" and
"masks/fc/kernel" are sliced as "params/fc/kernel" is.
"""

from collections.abc import Callable, Mapping, Sequence
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
    ends = _ends(shapes)
    leaves, treedef = jax.tree.flatten(tree)
    found, num_known = [], 0
    for path, leaf in zip(leaf_paths(tree), leaves, strict=True):
        known = _known(path, ends)
        num_known += bool(known)
        cut = [name for name in known if name in by_leaf]
        if cut and np.size(leaf) > 1:
            if len(known) > 1:
                raise ValueError(f"leaf {path} may be {' or '.join(known)}; give the whole tree")
            if np.shape(leaf) != shapes[cut[0]]:
                raise ValueError(
                    f"leaf {path} has shape {np.shape(leaf)}, and {cut[0]} of the network "
                    f"{shapes[cut[0]]}: it is of another network, or a slot unlike its weight"
                )
            leaf = change(leaf, by_leaf[cut[0]])
        found.append(leaf)
    if not num_known:
        raise ValueError(
            f"no leaf of the tree ({listed(leaf_paths(tree))}) has the path of one of the "
            f"network ({listed(shapes)})"
        )
    return jax.tree.unflatten(treedef, found)


_Ends = Mapping[tuple[str, ...], Sequence[str]]


def _ends(shapes: Shapes) -> _Ends:
    """Returns the leaves by their paths, and by these without the collection of a linen model."""
    ends = {tuple(path.split("/")): [path] for path in shapes}
    if any(path.startswith("params/") for path in shapes):
        whole = set(ends)
        for path in shapes:
            end = tuple(path.split("/"))[1:]
            if end and end not in whole:
                ends.setdefault(end, []).append(path)
    return ends


def _known(path: str, ends: _Ends) -> Sequence[str]:
    """Returns the leaves whose path, or its end, is the longest end of this one."""
    parts = tuple(path.split("/"))
    for start in range(len(parts)):
        if parts[start:] in ends:
            return ends[parts[start:]]
    return ()
