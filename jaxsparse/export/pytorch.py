"""Masks and weights from a PyTorch state dict. PyTorch is not imported. See also `to_pytorch`.

Shapes are compared leaf by leaf, but some differences do not show in a shape:

    The first dense layer after a convolution. PyTorch flattens channels first, Flax channels last,
    so the rows of that kernel have another order. Permute them in `layout`.
    A transposed convolution. Its channels are swapped, and its taps reversed. For
    `flax.linen.ConvTranspose` return `np.flip(x, (2, 3)).transpose(2, 3, 0, 1)` from `layout`, and
    in the direction of PyTorch `np.flip(x.transpose(2, 3, 0, 1), (2, 3))`.
    Two layers of equal shape. Only their names tell them apart.

A kernel with heads is read from PyTorch's matrix, and its bias from a vector; see `heads`. If
PyTorch joins query, key and value, rename all three to "in_proj_weight".
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import jax.numpy as jnp
import numpy as np

from jaxsparse.axes import AxesByPath
from jaxsparse.export.heads import as_leaf
from jaxsparse.masks import dense_masks
from jaxsparse.paths import leaves_by_path, listed, prunable_paths, with_leaves
from jaxsparse.types import PyTree, Rules

Rename: TypeAlias = Callable[[str], str] | Mapping[str, str] | Sequence[tuple[str, str]]
Layout: TypeAlias = Callable[[str, np.ndarray], np.ndarray]


def to_jax_layout(path: str, x: np.ndarray) -> np.ndarray:
    """Moves PyTorch's leading (out, in) axes to the end, as (in, out).

    Linear (out, in) becomes (in, out). A convolution OIHW becomes HWIO; so do those of one and
    three dimensions, grouped and depthwise ones. Vectors and leaves named "embedding" stay.

    Args:
      path: path of the leaf in params.
      x: the tensor of the state dict.

    >>> to_jax_layout("Conv_0/kernel", np.zeros((64, 3, 7, 5))).shape
    (7, 5, 3, 64)
    """
    return x if _same_in_both(path, x) else np.moveaxis(x, (1, 0), (-2, -1))


def to_torch_layout(path: str, x: np.ndarray) -> np.ndarray:
    """The inverse of `to_jax_layout`: moves the trailing (in, out) axes to the front, as (out, in).

    Args:
      path: path of the leaf in params.
      x: the leaf.

    >>> to_torch_layout("Conv_0/kernel", np.zeros((7, 5, 3, 64))).shape
    (64, 3, 7, 5)
    """
    return x if _same_in_both(path, x) else np.moveaxis(x, (-2, -1), (1, 0))


def _same_in_both(path: str, x: np.ndarray) -> bool:
    return x.ndim < 2 or path.rpartition("/")[2] == "embedding"


def masks_from_torch(
    state_dict: Mapping[str, Any],
    params: PyTree,
    *,
    rename: Rename | None = None,
    prunable: Rules | None = None,
    layout: Layout = to_jax_layout,
    axes: AxesByPath | None = None,
) -> PyTree:
    r"""Returns masks for `params` from a PyTorch model's state dict, or from a dict of its masks.

    If a leaf is called "conv1.weight" in PyTorch, its mask is the entry "conv1.weight_mask" that
    `torch.nn.utils.prune` makes. Without such an entry, the mask is True where "conv1.weight" is
    not 0. This serves models stored masked, and dicts from names to masks of 0 and 1.

        rename = [(r"Conv_(.*)/kernel", r"conv\1.weight"), (r"Dense_0/kernel", "fc.weight")]
        masks = masks_from_torch(torch.load("model.pt"), params, rename=rename)

    Args:
      state_dict: arrays by name: torch tensors on any device, or anything NumPy accepts.
      params: the tree that the masks are for; arrays or `jax.ShapeDtypeStruct`.
      rename: gives the PyTorch name of a leaf by its path: a function, a dict, or ordered
        (regex, replacement) pairs as in `re.sub`, of which the first whose regex matches the whole
        path is used. None replaces slashes by dots, and kernel, scale and embedding by "weight".
      prunable: as in `prunable_paths`; the masks of other leaves are all True.
      layout: (path, tensor) -> array in the shape of the leaf. The default is for Flax; Equinox has
        PyTorch's layouts, `lambda path, x: x`. See the top of this module for what shapes hide.
      axes: axes by path, from `kernel_axes` or by hand, for leaves that are matrices in PyTorch and
        have more axes here. None uses the rules of `jaxsparse.axes`.

    Raises:
      ValueError: a prunable leaf has no entry or an entry of another shape (names the leaf and both
        shapes); or no leaf takes an entry that holds zeros (a matrix or a mask), so its sparsity
        would be lost (names the entry).
    """
    entries = dict(state_dict)
    masks, taken = {}, set()
    leaves = leaves_by_path(params)
    for path in prunable_paths(params, prunable):
        name = torch_name(path, rename)
        found = name + "_mask" if name + "_mask" in entries else name
        tensor = _fitted(entries, found, path, leaves[path], layout, axes)
        masks[path] = jnp.asarray(tensor != 0)
        taken |= {found, name, name + "_orig"}
    for name, tensor in entries.items():
        if name not in taken and (np.ndim(tensor) > 1 or name.endswith("_mask")):
            array = _to_numpy(tensor)
            if num_zero := int((array == 0).sum()):
                raise ValueError(
                    f"state dict: {name} {array.shape} is left over, and {num_zero} of its "
                    f"{array.size} entries are 0; name it in rename, take its leaf into prunable, "
                    "or leave it out if its leaf is to be dense"
                )
    return with_leaves(dense_masks(params), masks)


def params_from_torch(
    state_dict: Mapping[str, Any],
    params: PyTree,
    *,
    rename: Rename | None = None,
    layout: Layout = to_jax_layout,
    strict: bool = True,
    axes: AxesByPath | None = None,
) -> PyTree:
    """Returns the weights of a PyTorch model in the tree of `params`, in the dtypes of its leaves.

    A tensor pruned by `torch.nn.utils.prune` is read as "weight_orig" where "weight_mask" is not 0,
    and 0 elsewhere. Running statistics of norms are not parameters: call the function again for
    them, with their own names.

    Args:
      state_dict: arrays by name, as in `masks_from_torch`.
      params: the tree to fill; arrays or `jax.ShapeDtypeStruct`.
      rename: as in `masks_from_torch`.
      layout: as in `masks_from_torch`.
      strict: whether to refuse weights and biases (by the ends of their names) that no leaf takes,
        as happens with the state dict of a deeper network. Running statistics may always be left
        over. If `params` holds only running statistics, everything else may be left over.
      axes: as in `masks_from_torch`.

    Raises:
      ValueError: a leaf has no entry or an entry of another shape (names the leaf and both shapes),
        or entries are left over (names the first of them).
    """
    entries, filled = dict(state_dict), {}
    taken: set[str] = set()
    for path, leaf in leaves_by_path(params).items():
        name = torch_name(path, rename)
        pruned = name + "_orig" in entries and name + "_mask" in entries
        stored = name + "_orig" if pruned else name
        weights = _fitted(entries, stored, path, leaf, layout, axes)
        taken |= {name, name + "_orig"} if pruned else {name}
        if pruned:
            mask = _fitted(entries, name + "_mask", path, leaf, layout, axes)
            weights = np.where(mask != 0, weights, 0)
        # A copy: on CPU asarray may keep the memory of a model that goes on training in place.
        filled[path] = jnp.array(weights, leaf.dtype)
    if strict:
        _check_all_taken(entries, taken)
    return with_leaves(params, filled)


def _check_all_taken(entries: Mapping[str, Any], taken: set[str]) -> None:
    ends = ("weight", "bias", "weight_orig", "bias_orig")
    left = [name for name in entries if name not in taken and name.endswith(ends)]
    if left and any(name.endswith(ends) for name in taken):
        has = listed((f"{name} {tuple(np.shape(entries[name]))}" for name in left), most=3)
        raise ValueError(
            f"state dict: no leaf of params takes {has}; is it that of another network? Leave them "
            "out, or pass strict=False"
        )


def torch_name(path: str, rename: Rename | None) -> str:
    """Returns PyTorch's name of a leaf, as described in `masks_from_torch`.

    Raises:
      ValueError: `rename` gives no name; names the leaf.

    >>> torch_name("BatchNorm_0/scale", None)
    'BatchNorm_0.weight'
    """
    if rename is None:
        return re.sub(r"(^|\.)(kernel|scale|embedding)$", r"\1weight", path.replace("/", "."))
    if isinstance(rename, Mapping):
        name = rename.get(path)
    elif callable(rename):
        name = rename(path)
    else:
        matches = ((re.fullmatch(pattern, path), into) for pattern, into in rename)
        name = next((match.expand(into) for match, into in matches if match), None)
    if not isinstance(name, str):
        raise ValueError(f"rename gives no name for the leaf {path}")
    return name


def _fitted(
    entries: Mapping[str, Any],
    name: str,
    path: str,
    leaf: Any,
    layout: Layout,
    axes: AxesByPath | None,
) -> np.ndarray:
    """The entry as an array in the layout of the leaf."""
    shape = tuple(np.shape(leaf))
    if name not in entries:
        has = listed(f"{name} {tuple(np.shape(entry))}" for name, entry in entries.items())
        raise ValueError(f"state dict: no entry {name} for the leaf {path} {shape}; it has {has}")
    tensor = _to_numpy(entries[name])
    array = layout(path, tensor)
    if array.shape != shape and (found := as_leaf(path, tensor, shape, axes)) is not None:
        return found
    if array.shape != shape:
        raise ValueError(
            f"state dict: {name} has shape {tensor.shape}, {array.shape} in JAX's layout, and the "
            f"leaf {path} has {shape}"
        )
    return array


def _to_numpy(tensor: Any) -> np.ndarray:
    """A torch tensor (recognised by its methods) or anything else, as a NumPy array."""
    if hasattr(tensor, "detach"):
        tensor = tensor.detach().cpu()
        if "bfloat16" in str(tensor.dtype):  # PyTorch does not hand these to NumPy
            tensor = tensor.float()
        tensor = tensor.numpy()
    return np.asarray(tensor)
