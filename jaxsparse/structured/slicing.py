"""Trees of a narrower network: the indices that go are taken out of all leaves that have them.

The leaves of a train state are known by the ends of their paths: "opt_state/0/trace/fc/kernel" and
"masks/fc/kernel" are sliced as "params/fc/kernel" is.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxsparse.paths import leaf_paths, listed
from jaxsparse.types import PyTree, Shapes

Removed = Mapping[tuple[str, int], np.ndarray]
"""The indices that go, by path and axis."""


def narrowed(tree: PyTree, shapes: Shapes, removed: Removed) -> PyTree:
    """Returns the tree with indices removed; see `WidthPlan.apply`."""

    def cut(leaf: Any, axes: Mapping[int, np.ndarray]) -> Any:
        kept = {
            axis: np.setdiff1d(np.arange(np.shape(leaf)[axis]), gone) for axis, gone in axes.items()
        }
        if isinstance(leaf, jax.ShapeDtypeStruct):
            shape = tuple(
                len(kept[axis]) if axis in kept else n for axis, n in enumerate(leaf.shape)
            )
            place = _place_after(leaf.sharding, shape, kept)
            return jax.ShapeDtypeStruct(shape, leaf.dtype, sharding=place)
        if isinstance(leaf, np.ndarray):
            return _taken(leaf, kept, np.take)
        place = jax.typeof(leaf).sharding
        if AxisType.Explicit not in place.mesh.axis_types:
            return _taken(leaf, kept, jnp.take)
        # JAX's types cannot say where the indices left lie: gather the axis, cut, and reshard.
        whole = [
            None if axis in kept else name for axis, name in enumerate(_names(place, leaf.ndim))
        ]
        leaf = jax.sharding.reshard(leaf, NamedSharding(place.mesh, PartitionSpec(*whole)))
        leaf = _taken(leaf, kept, jnp.take)
        return jax.sharding.reshard(leaf, _place_after(place, leaf.shape, kept))

    return _changed(tree, shapes, removed, cut)


def zeroed(tree: PyTree, shapes: Shapes, removed: Removed) -> PyTree:
    """Returns the tree with zeros at the indices that go; see `WidthPlan.zero`."""

    def zero(leaf: Any, axes: Mapping[int, np.ndarray]) -> Any:
        leaf = jnp.asarray(leaf)
        stays = np.ones((1,) * leaf.ndim, bool)
        for axis, gone in axes.items():
            of_axis = ~np.isin(np.arange(leaf.shape[axis]), gone)
            stays = stays & np.expand_dims(of_axis, [i for i in range(leaf.ndim) if i != axis])
        return jnp.where(stays, leaf, jnp.zeros((), leaf.dtype))

    return _changed(tree, shapes, removed, zero)


def _taken(leaf: Any, kept: Mapping[int, np.ndarray], take: Callable[..., Any]) -> Any:
    for axis, indices in kept.items():
        leaf = take(leaf, indices, axis=axis)
    return leaf


def _place_after(place: Any, shape: tuple[int, ...], changed: Collection[int]) -> Any:
    """Returns a sharding for a leaf's new shape: without axes that its devices no longer divide."""
    if not isinstance(place, NamedSharding):
        return None
    names = _names(place, len(shape))
    for axis in changed:
        each = names[axis] if isinstance(names[axis], tuple) else (names[axis],)
        num = math.prod(place.mesh.shape[name] for name in each if name is not None)
        names[axis] = names[axis] if shape[axis] % num == 0 else None
    return NamedSharding(place.mesh, PartitionSpec(*names))


def _names(place: NamedSharding, rank: int) -> list[Any]:
    """Returns the names of mesh axes that each axis of an array lies on."""
    return [*place.spec, *[None] * (rank - len(place.spec))]


def _changed(
    tree: PyTree,
    shapes: Shapes,
    removed: Removed,
    change: Callable[[Any, Mapping[int, np.ndarray]], Any],
) -> PyTree:
    """Returns the tree with its known leaves changed, those of which indices go.

    Raises:
      ValueError: a known leaf has another shape, a leaf lies below the path of one, or none is
        known.
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
        if not known and np.size(leaf) > 1:
            _check_not_below(path, np.shape(leaf), ends, by_leaf)
        found.append(leaf)
    if not num_known:
        raise ValueError(
            f"no leaf of the tree ({listed(leaf_paths(tree))}) has the path of one of the "
            f"network ({listed(shapes)})"
        )
    return jax.tree.unflatten(treedef, found)


def _check_not_below(
    path: str, shape: tuple[int, ...], ends: "_Ends", by_leaf: Collection[str]
) -> None:
    """Refuses parts of a slot, such as SM3's vectors "mu/fc/kernel/0" and "mu/fc/kernel/1"."""
    parts = path.split("/")
    for end in range(len(parts) - 1, 0, -1):
        for name in _known("/".join(parts[:end]), ends):
            if name in by_leaf:
                raise ValueError(
                    f"leaf {path} of shape {shape} is a part of a slot of {name}, which would lose "
                    "indices: slots of another form than their weight cannot be sliced (SM3 has "
                    "one vector for each axis); start the optimizer's state afresh"
                )


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
