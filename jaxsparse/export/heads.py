"""Kernels with several input or output axes, which are matrices in PyTorch.

In Flax an attention's query is (in, heads, features), and its output (heads, features, out). In
PyTorch both are matrices (out, in), with heads and features joined. `torch.nn.MultiheadAttention`
joins query, key and value into one matrix "in_proj_weight", each a third of the rows, and their
biases into one vector in the same way.
"""

import re
from collections.abc import Sequence

import numpy as np

from jaxsparse.axes import AxesByPath, axes_of
from jaxsparse.csr import from_matrix, matrix_shape, output_axes, to_matrix

_PART = re.compile(
    r"(?:^|/)(?:\w+_)?(?:(q|query)|(k|key)|(v|value))(?:_?proj)?/[^/]+$", re.IGNORECASE
)


def as_tensor(path: str, x: np.ndarray, axes: AxesByPath | None = None) -> np.ndarray | None:
    """Returns a leaf as PyTorch's matrix or vector, or None if it needs no such change.

    Args:
      path: path of the leaf.
      x: the leaf.
      axes: axes by path, from `kernel_axes` or by hand. Leaves without an entry follow the rules of
        `jaxsparse.axes`; so do all leaves if None.

    >>> as_tensor("attn/query/kernel", np.zeros((768, 12, 64))).shape
    (768, 768)
    >>> as_tensor("attn/query/bias", np.zeros((12, 64))).shape
    (768,)
    """
    if path.rpartition("/")[2] == "bias":
        return x.ravel() if x.ndim > 1 else None
    if not _is_joined(path, x.shape, axes):
        return None
    return to_matrix(x, output_axes(path, x.shape, axes))


def as_leaf(
    path: str, tensor: np.ndarray, shape: tuple[int, ...], axes: AxesByPath | None = None
) -> np.ndarray | None:
    """Returns the leaf inside PyTorch's matrix or vector, or None if the shapes do not fit.

    Args:
      path: path of the leaf.
      tensor: (out, in), or (out,) for a bias. It may hold query, key and value together.
      shape: shape of the leaf.
      axes: as in `as_tensor`.

    >>> as_leaf("attn/key/kernel", np.zeros((3 * 768, 768)), (768, 12, 64)).shape
    (768, 12, 64)
    """
    is_bias = path.rpartition("/")[2] == "bias"
    if is_bias and tensor.ndim == 1:
        rows = int(np.prod(shape))
    elif not is_bias and tensor.ndim == 2 and not axes_of(path, shape, axes or {}).window:
        rows, _ = matrix_shape(shape, output_axes(path, shape, axes))
    else:
        return None
    part = part_of_three(path)
    if part is not None and len(tensor) == 3 * rows:
        tensor = tensor[part * rows : (part + 1) * rows]
    if len(tensor) != rows or tensor.size != np.prod(shape):
        return None
    return (
        tensor.reshape(shape)
        if is_bias
        else from_matrix(tensor, shape, output_axes(path, shape, axes))
    )


def part_of_three(path: str) -> int | None:
    """Returns 0, 1 or 2 for a leaf of query, key or value, by its module's name; else None.

    >>> part_of_three("attn/query/kernel"), part_of_three("attn/v_proj/bias")
    (0, 2)
    """
    match = _PART.search(path)
    return None if match is None else [x is not None for x in match.groups()].index(True)


def stacked(paths: Sequence[str], tensors: Sequence[np.ndarray]) -> np.ndarray | None:
    """Returns query, key and value as one tensor, in this order, or None for other leaves."""
    order = {part_of_three(path): i for i, path in enumerate(paths)}
    if len(paths) != 3 or set(order) != {0, 1, 2}:
        return None
    return np.concatenate([tensors[order[part]] for part in range(3)])


def _is_joined(path: str, shape: tuple[int, ...], axes: AxesByPath | None) -> bool:
    found = axes_of(path, shape, axes or {})
    sides = (len(found.inputs), len(found.outputs))
    return min(sides) > 0 and max(sides) > 1 and not found.window and not found.batch
