"""Leaves cut into groups of equal size, which patterns are made of.

A group that is active as a whole is one big weight, a *unit*. Events score, count and choose units;
they turn masks of entries into masks of units at their start, and back at their end. Entries stay
where they are: a group is a set of axes of a reshaped leaf. Pooling adds slices, expanding
broadcasts, and nothing is transposed.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxsparse.types import Groups, Leaves, Shapes

GroupsByPath: TypeAlias = Mapping[str, Groups]


def group_size(groups: Groups | None) -> int:
    """Returns how many entries are one unit: 1 without groups and for N:M."""
    if groups is None or groups.num_active is not None:
        return 1
    return math.prod(groups.split[axis] for axis in groups.axes)


def n_and_m(groups: Groups) -> tuple[int, int]:
    """Returns n and m of an N:M pattern.

    Raises:
      ValueError: the groups are active as a whole.
    """
    if groups.num_active is None:
        raise ValueError(f"{groups.pattern} is no N:M pattern")
    return groups.num_active, math.prod(groups.split[axis] for axis in groups.axes)


def check_groups(groups: Groups, shape: tuple[int, ...]) -> Groups:
    """Returns the groups if they cut a leaf of this shape, raises a ValueError if not."""
    if not isinstance(groups, Groups):
        raise ValueError(f"its cut is {groups!r}, which must be jaxsparse.types.Groups")
    if math.prod(groups.split) != math.prod(shape):
        raise ValueError(f"split {groups.split} has not as many entries as the leaf")
    if list(groups.axes) != sorted({axis for axis in range(len(groups.split))} & {*groups.axes}):
        raise ValueError(f"axes {groups.axes} must be axes of split {groups.split}, rising")
    if groups.num_active is not None:
        n, m = n_and_m(groups)
        if len(groups.axes) != 1 or not 0 < n < m:
            raise ValueError(f"{n} of {m} active along axes {groups.axes}; one axis with 0 < n < m")
    return groups


def split_sides(
    shape: tuple[int, ...], sides: Sequence[tuple[Sequence[int], int]]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Splits sides of a leaf into groups of neighbours, such as the inputs of a matrix.

    Args:
      shape: of the leaf.
      sides: pairs of axes and the number of places along them that make a group. Neighbouring axes
        of a side are joined. If other axes lie between them, the last ones are split, whose places
        vary fastest.

    Returns:
      The split shape, and its axes that run within a group; a side that cannot be divided has none.

    >>> split_sides((3, 3, 8, 16), [((0, 1, 2), 4), ((3,), 2)])
    ((18, 4, 8, 2), (1, 3))
    """
    side_of = {axis: side for side, (axes, _) in enumerate(sides) for axis in axes}
    runs: list[tuple[int | None, int]] = []
    for axis, size in enumerate(shape):
        side = side_of.get(axis)
        if side is not None and runs and runs[-1][0] == side:
            runs[-1] = (side, runs[-1][1] * size)
        else:
            runs.append((side, size))
    last = {side: i for i, (side, _) in enumerate(runs)}
    split, within = [], []
    for i, (side, size) in enumerate(runs):
        part = sides[side][1] if side is not None and last[side] == i else 0
        if part and size % part == 0:
            split += [size // part, part]
            within.append(len(split) - 1)
        else:
            split.append(size)
    return tuple(split), tuple(within)


def whole(groups: GroupsByPath) -> dict[str, Groups]:
    """Returns the groups of the leaves that are counted in units."""
    return {path: g for path, g in groups.items() if g.num_active is None}


def fixed(groups: GroupsByPath) -> dict[str, Groups]:
    """Returns the groups of the leaves with an N:M pattern, which fixes how many are active."""
    return {path: g for path, g in groups.items() if g.num_active is not None}


def unit_shape(shape: tuple[int, ...], groups: Groups | None) -> tuple[int, ...]:
    """Returns the shape of a leaf's masks during an event: that of its units if it has any."""
    if groups is None or groups.num_active is not None:
        return shape
    return tuple(n for axis, n in enumerate(groups.split) if axis not in groups.axes)


def unit_shapes(shapes: Shapes, groups: GroupsByPath) -> dict[str, tuple[int, ...]]:
    """Returns `unit_shape` of every leaf."""
    return {path: unit_shape(shape, groups.get(path)) for path, shape in shapes.items()}


def to_units(masks: Leaves, groups: GroupsByPath) -> dict[str, jax.Array]:
    """Returns masks of units: a unit is active if any of its entries is."""
    units = {
        path: _fold(split_into(g, masks[path]), g.axes, jnp.logical_or)
        for path, g in whole(groups).items()
    }
    return {path: units.get(path, mask) for path, mask in masks.items()}


def full_groups(mask: jax.Array, groups: Groups) -> jax.Array:
    """Returns True for every group that has the n active entries of its N:M pattern."""
    num_active = split_into(groups, mask).sum(groups.axes, jnp.int32)
    return num_active == groups.num_active


def from_units(units: Leaves, groups: GroupsByPath, like: Leaves) -> dict[str, jax.Array]:
    """Returns masks of entries, shaped and laid out like leaves; active units are all True."""
    entries = {
        path: joined(jnp.broadcast_to(jnp.expand_dims(units[path], g.axes), g.split), like[path])
        for path, g in whole(groups).items()
    }
    return {path: entries.get(path, mask) for path, mask in units.items()}


def split_into(groups: Groups, x: jax.Array) -> jax.Array:
    """Returns a leaf in the shape `groups.split`.

    The leaf is gathered on a mesh with explicit axes, since JAX's types cannot express how the
    parts of a reshaped leaf lie on the devices. The compiler finds a way with automatic axes.
    """
    if _explicit(x):
        x = jax.sharding.reshard(x, NamedSharding(jax.typeof(x).sharding.mesh, PartitionSpec()))
    return x.reshape(groups.split)


def joined(x: jax.Array, like: jax.Array) -> jax.Array:
    """Returns a split array in the shape and the layout of its leaf."""
    x = x.reshape(like.shape)
    return jax.sharding.reshard(x, jax.typeof(like).sharding) if _explicit(like) else x


def _explicit(x: jax.Array) -> bool:
    return AxisType.Explicit in jax.typeof(x).sharding.mesh.axis_types


def pool(scores: jax.Array, groups: Groups) -> jax.Array:
    """Returns the score of every unit: the sum over its entries, in float32.

    The order of the additions is fixed, so that every layout of devices and every compiler gives
    the same bits; XLA may cut a reduction of its own at the edges of devices. This costs time and
    memory (the scores are stored on CPU), once or twice an event.

    Args:
      scores: float[leaf]; NaN makes its unit NaN.
      groups: whole ones.

    >>> import jax.numpy as jnp
    >>> rows_of_two = Groups("pairs", split=(2, 2), axes=(1,))
    >>> pool(jnp.array([1.0, 2.0, 3.0, 4.0]), rows_of_two)
    Array([3., 7.], dtype=float32)
    """
    x = split_into(groups, scores.astype(jnp.float32))
    return _fold(x, groups.axes, lax.add)


def _fold(x: jax.Array, axes: tuple[int, ...], op: Callable) -> jax.Array:
    """Reduces the axes by op, one after the other, and removes them."""
    for axis in axes:
        x = _fold_along(x, axis, op)
    return x.squeeze(axes)


def _fold_along(x: jax.Array, axis: int, op: Callable) -> jax.Array:
    """Reduces one axis: adds its four quarters to one another, until its length is 1."""
    n = x.shape[axis]
    if n < 2:  # an empty axis leaves 0 or False, the identity of both operations
        return x if n else x.sum(axis, x.dtype, keepdims=True)
    num_parts = min(n, 4)
    size = n // num_parts
    cut = lambda start, stop: lax.slice_in_dim(x, start, stop, axis=axis)
    parts = [cut(i * size, (i + 1) * size) for i in range(num_parts)]
    while len(parts) > 1:
        odd = parts[len(parts) & ~1 :]
        parts = [op(a, b) for a, b in zip(parts[::2], parts[1::2], strict=False)] + odd
    folded = _fold_along(parts[0], axis, op)
    if n % num_parts:
        return op(folded, _fold_along(cut(num_parts * size, n), axis, op))
    return folded
