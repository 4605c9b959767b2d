"""Compressed sparse rows (CSR): one leaf as its active weights and their positions.

A kernel of any rank is seen as a matrix with one row per output and one column per weight that the
output sums over, both in C order. The outputs are the entries of the last axis, or of all output
axes in `jaxsparse.axes`, such as heads and their features. Rows are outputs for three reasons:
`matrix @ x` is the layer, code that computes one output at a time reads one row, and a column
number is small: 16 bits are enough for 65,536 inputs, more than any layer of a ResNet has.

The mask decides which weights are active, not the values: a weight that has just grown is 0 and is
stored. So a leaf and its mask are restored bit for bit. All of this is NumPy on the host. The
number of active weights is a shape here, and compiled functions cannot choose shapes.
"""

import dataclasses
import math
from typing import Any

import jax
import numpy as np

from jaxsparse.axes import AxesByPath, axes_of, num_places
from jaxsparse.counting import num_true
from jaxsparse.masks import check_masks
from jaxsparse.paths import leaves_by_path
from jaxsparse.processes import whole
from jaxsparse.types import KernelAxes, PyTree


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Csr:
    """A leaf in compressed sparse rows, as SciPy has them; a pytree of three arrays.

        scipy.sparse.csr_array((csr.values, csr.indices, csr.indptr), csr.matrix_shape)

    Attributes:
      values: [num_active], the dtype of the leaf: the active weights, by output and then by column.
      indices: [num_active], the column of each value, in [0, columns), rising within a row. The
        dtype is the smallest of uint8, 16, 32 and 64 that can name every column.
      indptr: [rows + 1]; row r has the values indptr[r] to indptr[r + 1] - 1. The dtype is the
        smallest unsigned one that holds num_active.
      shape: the shape of the leaf. It is static, so no part of the pytree.
      outputs: the axes of the leaf that are the rows, rising; the last axis if None. Static.
    """

    values: np.ndarray
    indices: np.ndarray
    indptr: np.ndarray
    shape: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    outputs: tuple[int, ...] | None = dataclasses.field(default=None, metadata={"static": True})

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """(rows, columns): outputs, and weights of each output; (1, 1) for a scalar."""
        return matrix_shape(self.shape, self.outputs)

    @property
    def positions(self) -> np.ndarray:
        """int64[num_active], row * columns + column, the position of each value in the matrix."""
        rows, columns = self.matrix_shape
        row = np.repeat(np.arange(rows), np.diff(np.asarray(self.indptr, np.int64)))
        return row * columns + np.asarray(self.indices, np.int64)


def to_csr(weights: Any, mask: Any, axes: KernelAxes | None = None) -> Csr:
    """Returns the active weights of one leaf and their positions; other weights are left out.

    The leaf comes to the host, whole. If several processes share it, all of them call this function
    and get the same arrays.

    Args:
      weights: array of any dtype and rank.
      mask: bool, the shape of weights.
      axes: of the leaf. The rows are its outputs, for each kernel of a batch of kernels. The rows
        are the last axis if None.

    Raises:
      ValueError: the shapes differ, the mask is not bool, or axes do not name each axis once.

    >>> kernel = np.array([[1.0, 0.0], [0.0, 0.0], [2.0, 3.0]])
    >>> csr = to_csr(kernel, np.array([[True, False], [False, True], [True, True]]))
    >>> csr.values, csr.indices, csr.indptr  # the second output has an active 0 and 3
    (array([1., 2., 0., 3.]), array([0, 2, 1, 2], dtype=uint8), array([0, 2, 4], dtype=uint8))
    """
    weights, mask = whole(weights), whole(mask)
    if weights.shape != mask.shape or mask.dtype != bool:
        raise ValueError(
            f"the mask is {mask.dtype}{mask.shape}; for these weights it must be "
            f"bool{weights.shape}"
        )
    outputs = None if axes is None else output_axes("weights", mask.shape, {"weights": axes})
    active = to_matrix(mask, outputs)
    num_by_row = np.count_nonzero(active, axis=1)
    indptr = np.concatenate([[0], np.cumsum(num_by_row)])
    return Csr(
        values=to_matrix(weights, outputs)[active],
        indices=np.nonzero(active)[1].astype(smallest_unsigned(active.shape[1] - 1)),
        indptr=indptr.astype(smallest_unsigned(indptr[-1])),
        shape=weights.shape,
        outputs=outputs,
    )


def from_csr(csr: Csr) -> tuple[np.ndarray, np.ndarray]:
    """Returns (weights, mask), the inverse of `to_csr`: 0 and False for weights not stored.

    Raises:
      ValueError: the arrays do not describe a matrix of the shape.
    """
    _check(csr)
    values, positions = np.asarray(csr.values), csr.positions
    weights = np.zeros(math.prod(csr.shape), values.dtype)
    weights[positions] = values
    mask = np.zeros(weights.shape, bool)
    mask[positions] = True
    restored = lambda x: from_matrix(x, csr.shape, csr.outputs)
    return restored(weights), restored(mask)


def to_csr_tree(params: PyTree, masks: PyTree, axes: AxesByPath | None = None) -> PyTree:
    """Returns params with a `Csr` in place of every leaf that has an inactive weight.

    Leaves whose mask is all True (biases, norms, layers that are dense) stay as they are. Others
    come to the host, one whole leaf at a time; see `to_csr`.

    Args:
      params: any pytree of arrays.
      masks: bool, the structure and shapes of params.
      axes: the axes of leaves by path, from `kernel_axes` or by hand. Leaves without an entry go by
        the rules of `jaxsparse.axes`; None means no entry.

    Raises:
      ValueError: the trees differ, or axes do not fit their leaf; names the first leaf.
    """
    masks = check_masks(masks, params)
    by_path, leaves = leaves_by_path(masks), dict(leaves_by_path(params))
    for (path, mask), active in zip(by_path.items(), num_true(by_path.values()), strict=True):
        if active < np.size(mask):
            leaves[path] = to_csr(leaves[path], mask, axes_of(path, np.shape(mask), axes or {}))
    return jax.tree.unflatten(jax.tree.structure(params), list(leaves.values()))


def from_csr_tree(tree: PyTree) -> tuple[PyTree, PyTree]:
    """Returns (params, masks), the inverse of `to_csr_tree`.

    Raises:
      ValueError: a `Csr` does not describe a leaf; names it.
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


def output_axes(
    path: str, shape: tuple[int, ...], axes: AxesByPath | None = None
) -> tuple[int, ...] | None:
    """Returns the axes that are the rows of a leaf's matrix; None for the usual case, the last one.

    >>> output_axes("query/kernel", (768, 12, 64)), output_axes("out/kernel", (12, 64, 768))
    ((1, 2), None)
    """
    found = axes_of(path, shape, axes or {})
    outputs = tuple(sorted((*found.batch, *found.outputs)))
    return None if outputs == tuple(range(len(shape)))[-1:] else outputs


def matrix_shape(shape: tuple[int, ...], outputs: tuple[int, ...] | None = None) -> tuple[int, int]:
    """Returns (outputs, weights of each output) of a leaf of a shape.

    >>> matrix_shape((3, 3, 16, 32)), matrix_shape((5,)), matrix_shape(())
    ((32, 144), (5, 1), (1, 1))
    >>> matrix_shape((768, 12, 64), outputs=(1, 2))
    (768, 768)
    """
    order = _order(len(shape), outputs)
    num = 1 if outputs is None else len(outputs)
    return num_places(shape, order[:num]), num_places(shape, order[num:])


def to_matrix(x: np.ndarray, outputs: tuple[int, ...] | None = None) -> np.ndarray:
    """Returns the matrix of a leaf, [outputs, weights of each output]."""
    order = _order(x.ndim, outputs)
    return x.transpose(order).reshape(matrix_shape(x.shape, outputs))


def from_matrix(
    matrix: np.ndarray, shape: tuple[int, ...], outputs: tuple[int, ...] | None = None
) -> np.ndarray:
    """Returns the leaf of a matrix, the inverse of `to_matrix`; the matrix may be flat."""
    order = _order(len(shape), outputs)
    moved = matrix.reshape([shape[axis] for axis in order])
    return np.asarray(moved.transpose(np.argsort(order)), order="C")


def _order(ndim: int, outputs: tuple[int, ...] | None) -> list[int]:
    first = range(ndim)[-1:] if outputs is None else outputs
    return [*first, *(axis for axis in range(ndim) if axis not in first)]


def smallest_unsigned(largest: int) -> np.dtype:
    """Returns the smallest unsigned dtype that holds 0 to `largest`.

    >>> smallest_unsigned(255), smallest_unsigned(256), smallest_unsigned(-1)
    (dtype('uint8'), dtype('uint16'), dtype('uint8'))
    """
    return np.min_scalar_type(max(int(largest), 0))


def check_outputs(outputs: tuple[int, ...] | None, shape: tuple[int, ...]) -> None:
    """Raises a ValueError if `outputs` are not rising axes of a leaf of a shape."""
    if outputs is not None and list(outputs) != sorted({*outputs} & {*range(len(shape))}):
        raise ValueError(f"outputs {outputs} must be axes of {shape}, rising")


def _check(csr: Csr) -> None:
    check_outputs(csr.outputs, csr.shape)
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
