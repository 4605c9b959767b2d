"""Compressed sparse rows: one leaf as the values of its active weights and where they are.

A kernel of any rank is seen as a matrix with one row per output channel, its last axis, and one
column per weight that the channel sums over, the leading axes in C order. Rows are output channels
since then `matrix @ x` is the layer, a kernel that computes one output at a time walks one row, and
a position in a row is small: 16 bits reach 65,536 inputs, which no layer of a ResNet exceeds. (Of
a kernel with several output axes, such as attention heads, only the last one counts as such.)

Which weights are active comes from the mask and never from the values: a weight that was just grown
is 0 and stays in. So a leaf and its mask come back bit for bit. All of this is NumPy on the host;
the number of active weights is a shape here, and shapes are what a compiled function cannot choose.
"""

import dataclasses
import math
from typing import Any

import jax
import numpy as np

from jaxsparse.masks import check_masks
from jaxsparse.types import PyTree


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Csr:
    """A leaf in compressed sparse rows, as SciPy has them; a pytree of three arrays.

        scipy.sparse.csr_array((csr.values, csr.indices, csr.indptr), csr.matrix_shape)

    Attributes:
      values: [num_active], the dtype of the leaf: the active weights by output channel and, within
        one, by column. A plain vector to train, with integers beside it.
      indices: uint8, 16, 32 or 64[num_active], the smallest that can name every column: the column
        of each value, in [0, columns), rising within a row.
      indptr: unsigned[rows + 1], the smallest dtype that reaches num_active: row r has the values
        indptr[r] to indptr[r + 1].
      shape: the shape of the leaf; static, so no part of the pytree.
    """

    values: np.ndarray
    indices: np.ndarray
    indptr: np.ndarray
    shape: tuple[int, ...] = dataclasses.field(metadata={"static": True})

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """(rows, columns): output channels and weights of each, (1, 1) for a scalar."""
        return matrix_shape(self.shape)

    @property
    def positions(self) -> np.ndarray:
        """int64[num_active], row * columns + column: where each value is in the flat matrix."""
        rows, columns = self.matrix_shape
        row = np.repeat(np.arange(rows), np.diff(np.asarray(self.indptr, np.int64)))
        return row * columns + np.asarray(self.indices, np.int64)


def to_csr(weights: Any, mask: Any) -> Csr:
    """Returns the active weights of one leaf and where they are; what is off the mask is left out.

    Args:
      weights: array of any dtype and rank, output channels last (as in Flax; move the axis of a
        kernel that has them first: `jnp.moveaxis(kernel, 0, -1)`).
      mask: bool, the shape of weights.

    Raises:
      ValueError: the shapes differ, or the mask is not bool.

    >>> kernel = np.array([[1.0, 0.0], [0.0, 0.0], [2.0, 3.0]])
    >>> csr = to_csr(kernel, np.array([[True, False], [False, True], [True, True]]))
    >>> csr.values, csr.indices, csr.indptr  # the second output has an active 0 and 3
    (array([1., 2., 0., 3.]), array([0, 2, 1, 2], dtype=uint8), array([0, 2, 4], dtype=uint8))
    """
    weights, mask = np.asarray(weights), np.asarray(mask)
    if weights.shape != mask.shape or mask.dtype != bool:
        raise ValueError(
            f"the mask is {mask.dtype}{mask.shape}; for these weights it must be "
            f"bool{weights.shape}"
        )
    active = to_matrix(mask)
    num_by_row = np.count_nonzero(active, axis=1)
    indptr = np.concatenate([[0], np.cumsum(num_by_row)])
    return Csr(
        values=to_matrix(weights)[active],
        indices=np.nonzero(active)[1].astype(smallest_unsigned(active.shape[1] - 1)),
        indptr=indptr.astype(smallest_unsigned(indptr[-1])),
        shape=weights.shape,
    )


def from_csr(csr: Csr) -> tuple[np.ndarray, np.ndarray]:
    """Returns (weights, mask), the inverse of `to_csr`: 0 and False where nothing is stored.

    Raises:
      ValueError: the arrays do not describe a matrix of that shape; says what is wrong.
    """
    _check(csr)
    values, positions = np.asarray(csr.values), csr.positions
    weights = np.zeros(math.prod(csr.shape), values.dtype)
    weights[positions] = values
    mask = np.zeros(weights.shape, bool)
    mask[positions] = True
    return from_matrix(weights, csr.shape), from_matrix(mask, csr.shape)


def to_csr_tree(params: PyTree, masks: PyTree) -> PyTree:
    """Returns params with a `Csr` in place of every leaf that has an inactive weight.

    Leaves whose mask is all True (biases, norms, layers that are dense) stay as they are.

    Args:
      params: any pytree of arrays.
      masks: bool, the structure and shapes of params.

    Raises:
      ValueError: the trees differ; names the first leaf.
    """
    masks = check_masks(masks, params)
    compress = lambda x, mask: x if np.asarray(mask).all() else to_csr(x, mask)
    return jax.tree.map(compress, params, masks)


def from_csr_tree(tree: PyTree) -> tuple[PyTree, PyTree]:
    """Returns (params, masks), the inverse of `to_csr_tree`.

    Raises:
      ValueError: a `Csr` that describes no leaf; names it.
    """
    is_csr = lambda x: isinstance(x, Csr)
    leaves, structure = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_csr)
    pairs = []
    for path, leaf in leaves:
        try:
            pairs.append(from_csr(leaf) if is_csr(leaf) else (leaf, np.ones(np.shape(leaf), bool)))
        except ValueError as error:
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            raise ValueError(f"{name}: {error}") from None
    params, masks = zip(*pairs, strict=True) if pairs else ((), ())
    return structure.unflatten(params), structure.unflatten(masks)


def matrix_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """Returns (output channels, weights of each) of a leaf of that shape.

    >>> matrix_shape((3, 3, 16, 32)), matrix_shape((5,)), matrix_shape(())
    ((32, 144), (5, 1), (1, 1))
    """
    return (shape[-1] if shape else 1), math.prod(shape[:-1])


def to_matrix(x: np.ndarray) -> np.ndarray:
    """Returns the matrix that a leaf is seen as, [output channels, weights of each]."""
    rows, columns = matrix_shape(x.shape)
    return x.reshape(columns, rows).T


def from_matrix(matrix: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Returns the leaf of `shape` that `to_matrix` made `matrix` of; a flat matrix will do."""
    rows, columns = matrix_shape(shape)
    return np.asarray(matrix.reshape(rows, columns).T, order="C").reshape(shape)


def smallest_unsigned(largest: int) -> np.dtype:
    """Returns the smallest unsigned dtype that holds 0 to `largest`.

    >>> smallest_unsigned(255), smallest_unsigned(256), smallest_unsigned(-1)
    (dtype('uint8'), dtype('uint16'), dtype('uint8'))
    """
    return np.min_scalar_type(max(int(largest), 0))


def _check(csr: Csr) -> None:
    rows, columns = csr.matrix_shape
    values, indices, indptr = (np.asarray(x) for x in (csr.values, csr.indices, csr.indptr))
    if values.ndim != 1 or values.shape != indices.shape:
        raise ValueError(f"values {values.shape} and indices {indices.shape} must be equal vectors")
    if indptr.shape != (rows + 1,):
        raise ValueError(f"indptr has shape {indptr.shape}; {rows} rows need ({rows + 1},)")
    if indices.dtype.kind not in "iu" or indptr.dtype.kind not in "iu":
        raise ValueError(f"indices {indices.dtype} and indptr {indptr.dtype} must be integers")
    ends = indptr.astype(np.int64)
    if ends[0] != 0 or ends[-1] != len(values) or (np.diff(ends) < 0).any():
        raise ValueError(f"indptr must rise from 0 to {len(values)}, the number of values")
    if len(bad := indices[(indices < 0) | (indices >= columns)]):
        raise ValueError(f"index {bad[0]} is outside [0, {columns})")
    if (np.diff(csr.positions) <= 0).any():
        raise ValueError("indices must rise within every row")
