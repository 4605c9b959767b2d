"""Kernels of several input or output axes in PyTorch's layouts, where they are matrices.

An attention's query is (in, heads, features) in Flax and its output (heads, features, out); in
PyTorch both are Linear's (out, in), heads and features joined. `torch.nn.MultiheadAttention` has
query, key and value in one more matrix, "in_proj_weight", a third of the rows for each; their
biases likewise.
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
    """Returns a leaf as PyTorch's matrix or vector; None: it has the form of any other leaf.

    Args:
      path: of the leaf.
      x: the leaf.
      axes: what its axes are, by path, from `kernel_axes` or by hand; leaves without an entry, and
        all where it is None, go by the rules of `jaxsparse.axes`.

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
    """Returns what a leaf of some shape has in PyTorch's matrix or vector; None: it is none of it.

    Args:
      path: of the leaf.
      tensor: (out, in), or (out,) of a bias; of query, key and value all three may be in it.
      shape: of the leaf.
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
    """Returns which of query, key and value a leaf belongs to, by its module's name, or None.

    >>> part_of_three("attn/query/kernel"), part_of_three("attn/v_proj/bias")
    (0, 2)
    """
    match = _PART.search(path)
    return None if match is None else [x is not None for x in match.groups()].index(True)


def stacked(paths: Sequence[str], tensors: Sequence[np.ndarray]) -> np.ndarray | None:
    """Returns query, key and value as one tensor, in this order; None: they are not these three."""
    order = {part_of_three(path): i for i, path in enumerate(paths)}
    if len(paths) != 3 or set(order) != {0, 1, 2}:
        return None
    return np.concatenate([tensors[order[part]] for part in range(3)])


def _is_joined(path: str, shape: tuple[int, ...], axes: AxesByPath | None) -> bool:
    found = axes_of(path, shape, axes or {})
    sides = (len(found.inputs), len(found.outputs))
    return min(sides) > 0 and max(sides) > 1 and not found.window and not found.batch
