"""Positions of the active weights of a leaf, which sparse execution takes beside their values.

The values are a plain float vector in params, so optimizers, averages and `jax.grad` treat them as
any other parameter. The positions are integers in a tree of their own, as masks are.

A kernel of any rank is seen as a matrix with one row per output channel (its last axis) and the
leading axes in C order as its columns, as in `jaxsparse.csr`. A position is row * columns + column.
The capacity may be larger than the number of active weights. Then a mask update changes no shape,
and nothing is compiled again.
"""

import dataclasses
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxsparse.checks import check_whole
from jaxsparse.csr import matrix_shape
from jaxsparse.integers import whole_number
from jaxsparse.processes import whole


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Positions:
    """The positions of one leaf's active weights; a pytree of two arrays of integers.

    Attributes:
      flat: int32[capacity], rising. Entries from `num` on are the size of the leaf, which is no
        position.
      num: int32[], number of active weights, in [0, capacity].
      shape: of the leaf; static.
    """

    flat: jax.Array
    num: jax.Array
    shape: tuple[int, ...] = dataclasses.field(metadata={"static": True})

    @property
    def capacity(self) -> int:
        """The number of active weights that fit without a change of shapes."""
        return self.flat.shape[0]

    @property
    def is_active(self) -> jax.Array:
        """bool[capacity], True for entries that hold an active weight."""
        return jnp.arange(self.capacity, dtype=jnp.int32) < self.num


def to_sparse(
    weights: jax.Array, mask: jax.Array, capacity: int | None = None
) -> tuple[jax.Array, Positions]:
    """Returns the active weights of a leaf, in the order of their positions, and the positions.

    Args:
      weights: [shape], any dtype, output channels last.
      mask: bool[shape].
      capacity: as in `positions_of`.

    Returns:
      The values, [capacity], which are 0 from the number of active weights on, and the positions.

    Raises:
      ValueError: as `positions_of`, or the mask has another shape than the weights.

    >>> values, positions = to_sparse(
    ...     jnp.array([[1.0, 0.0], [2.0, 3.0]]), jnp.eye(2) == 0, capacity=3
    ... )
    >>> values, positions.flat, positions.num
    (Array([2., 0., 0.], dtype=float32), Array([1, 2, 4], dtype=int32), Array(2, dtype=int32))
    """
    if np.shape(mask) != np.shape(weights):
        raise ValueError(f"the mask has shape {np.shape(mask)}, the weights {np.shape(weights)}")
    positions = positions_of(mask, capacity)
    return gathered(weights, positions), positions


def positions_of(mask: jax.Array, capacity: int | None = None) -> Positions:
    """Returns the positions of the active weights of a leaf.

    Args:
      mask: bool[shape], output channels last.
      capacity: length of the result, in [0, size of the leaf]. None takes the number of active
        weights, which is not known under `jit`.

    Returns:
      The positions. If a traced mask has more active weights than the capacity, the last ones are
      lost without an error.

    Raises:
      ValueError: the mask is not bool, the leaf has 2**31 entries or more, the capacity is too
        small, or it is missing under `jit`.
    """
    shape = tuple(np.shape(mask))
    if jnp.result_type(mask) != jnp.bool_:
        raise ValueError(f"the mask is {jnp.result_type(mask)}{shape}; it must be bool")
    size = _size(shape)
    if isinstance(mask, Tracer):
        if capacity is None:
            raise ValueError("under jit the capacity of a leaf must be given")
        capacity = check_whole("capacity", capacity, 0, size)
        (flat,) = jnp.nonzero(_by_row(mask), size=capacity, fill_value=size)
        active = jnp.minimum(mask.sum(dtype=jnp.int32), capacity)
        return Positions(flat.astype(jnp.int32), active, shape)
    rows, columns = matrix_shape(shape)
    # NumPy compiles nothing for a new capacity.
    found = np.flatnonzero(whole(mask).reshape(columns, rows).T)
    capacity = check_whole("capacity", len(found) if capacity is None else capacity, 0, size)
    if len(found) > capacity:
        raise ValueError(f"capacity {capacity} for {len(found)} active weights")
    flat = np.full(capacity, size, np.int32)
    flat[: len(found)] = found
    return Positions(jnp.asarray(flat), jnp.asarray(len(found), jnp.int32), shape)


def gathered(leaf: jax.Array, positions: Positions) -> jax.Array:
    """Returns the entries of a leaf at positions, [capacity]; 0 or False from `num` on."""
    return _by_row(leaf).at[positions.flat].get(mode="fill", fill_value=0)


def to_dense(values: jax.Array, positions: Positions) -> jax.Array:
    """Returns the leaf with 0 for inactive weights; with `to_mask` the inverse of `to_sparse`."""
    rows, columns = matrix_shape(positions.shape)
    empty = jnp.zeros(rows * columns, values.dtype)
    flat = jnp.where(positions.is_active, positions.flat, rows * columns)
    matrix = empty.at[flat].set(values, mode="drop", unique_indices=False)
    return matrix.reshape(rows, columns).T.reshape(positions.shape)


def to_mask(positions: Positions) -> jax.Array:
    """Returns the mask, bool[shape], True for active weights."""
    return to_dense(jnp.ones(positions.capacity, bool), positions)


def check_arrays(positions: Positions) -> None:
    """Checks shapes and dtypes of positions, which are known under `jit` too.

    Raises:
      ValueError: `flat` or `num` has a wrong dtype or rank, or the leaf has 2**31 entries or more.
    """
    for name, ndim in {"flat": 1, "num": 0}.items():
        array = getattr(positions, name)
        dtype, shape = jnp.result_type(array), np.shape(array)
        if dtype != jnp.int32 or len(shape) != ndim:
            raise ValueError(f"{name} is {dtype}{shape}; it must be int32 and have {ndim} axes")
    _size(positions.shape)


def check_known(positions: Positions) -> None:
    """Checks positions as `check_arrays`, and also their values unless they are traced.

    Raises:
      ValueError: as `check_arrays`; there are more active weights than the capacity; or a position
        is outside of the leaf.
    """
    check_arrays(positions)
    if all(_is_known(array) for array in (positions.flat, positions.num)):
        _checked(positions)


def check_positions(positions: Positions) -> None:
    """Checks positions that this library has not made; waits for the device.

    Raises:
      ValueError: as `check_arrays`; there are more active weights than the capacity; or positions
        do not rise, or are outside of the leaf; names the first of these.
    """
    check_arrays(positions)
    flat = _checked(positions)
    if len(wrong := np.flatnonzero(np.diff(flat) <= 0)):
        at = int(wrong[0])
        raise ValueError(f"positions must rise; {flat[at]} comes before {flat[at + 1]}")


def _checked(positions: Positions) -> np.ndarray:
    """Returns the positions of the active weights, int64[num], all of them inside the leaf."""
    num, size = int(positions.num), math.prod(positions.shape)
    if not 0 <= num <= positions.capacity:
        raise ValueError(
            f"{num} active weights; they must be in [0, {positions.capacity}], the capacity"
        )
    flat = np.asarray(positions.flat)[:num].astype(np.int64)
    if len(outside := flat[(flat < 0) | (flat >= size)]):
        raise ValueError(f"position {outside[0]} is not in [0, {size})")
    return flat


def _is_known(array: jax.Array) -> bool:
    return not isinstance(array, Tracer) and getattr(array, "is_fully_addressable", True)


def _size(shape: tuple[int, ...]) -> int:
    sizes = [whole_number(n) for n in shape] if isinstance(shape, Sequence) else [None]
    if not all(n is not None and n >= 0 for n in sizes):
        raise ValueError(f"shape {shape!r} must be whole numbers, at least 0")
    size = math.prod(shape)
    if size >= 2**31:
        raise ValueError(f"a leaf of {size} entries; at most {2**31 - 1} have positions")
    return size


def _by_row(leaf: jax.Array) -> jax.Array:
    rows, columns = matrix_shape(np.shape(leaf))
    return jnp.asarray(leaf).reshape(columns, rows).T.ravel()
