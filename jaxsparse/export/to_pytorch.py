"""Weights and masks as a PyTorch state dict: the inverse of `pytorch`, to the bit.

`params_from_torch` and `masks_from_torch` read what `params_to_torch` and `masks_to_torch` write,
and the reverse. PyTorch is not imported: the entries are NumPy arrays.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxsparse.axes import AxesByPath
from jaxsparse.counting import num_true
from jaxsparse.export.heads import as_tensor, stacked
from jaxsparse.export.pytorch import Layout, Rename, to_torch_layout, torch_name
from jaxsparse.masks import check_masks
from jaxsparse.paths import leaves_by_path, prunable_paths
from jaxsparse.processes import whole
from jaxsparse.types import PyTree, Rules


def params_to_torch(
    params: PyTree,
    masks: PyTree | None = None,
    *,
    rename: Rename | None = None,
    prunable: Rules | None = None,
    layout: Layout = to_torch_layout,
    axes: AxesByPath | None = None,
) -> dict[str, np.ndarray]:
    """Returns weights as a state dict for PyTorch: NumPy arrays in its names and layouts.

        state_dict = jaxsparse.params_to_torch(variables, rename=torchvision_name)
        model.load_state_dict({name: torch.from_numpy(x) for name, x in state_dict.items()})

    If masks are given, a prunable leaf "fc.weight" becomes "fc.weight_orig" and "fc.weight_mask",
    both in the weight's dtype, as in `torch.nn.utils.prune`. This form loads into modules prepared
    by `prune.identity(model.fc, "weight")`. For plain names leave out masks; params of a sparse run
    are masked already, and `apply_masks` masks others.

    Args:
      params: any pytree of arrays: params, statistics of norms, or variables that hold both.
        PyTorch also has `num_batches_tracked` in a norm, which a plain dict may lack.
      masks: bool, the structure and shapes of params; None writes no masks.
      rename: gives the PyTorch name of a leaf by its path, as in `masks_from_torch`.
      prunable: as in `prunable_paths`; these leaves get a mask.
      layout: (path, leaf) -> array in the shape of PyTorch's tensor, the inverse of the `layout` of
        `params_from_torch`. The default is for Flax; for Equinox it is `lambda path, x: x`.
      axes: axes by path, from `kernel_axes` or by hand, for leaves that the default layout turns
        into matrices, such as an attention's query. None uses the rules of `jaxsparse.axes`. Query,
        key and value are joined if `rename` gives them one name.

    Returns:
      Arrays that own their memory. PyTorch does not take bfloat16 and float8 from NumPy, so they
      become float32, which holds them exactly (int4 becomes int8). Loading converts them to the
      model's dtype.

    Raises:
      ValueError: two leaves have one name, a leaf is no array of numbers, masks do not fit params,
        or a leaf that is not prunable has a mask with zeros; names the leaf.
    """
    leaves = leaves_by_path(params)
    if masks is None:
        return _named({(path, ""): x for path, x in leaves.items()}, rename, layout, axes)
    check_masks(masks, params)
    of_leaves = leaves_by_path(masks)
    pruned = _masked_paths(masks, prunable)
    entries = {(path, "_orig" if path in pruned else ""): x for path, x in leaves.items()}
    for path in pruned:
        entries[path, "_mask"] = whole(of_leaves[path]).astype(jnp.result_type(leaves[path]))
    return _named(entries, rename, layout, axes)


def masks_to_torch(
    masks: PyTree,
    *,
    rename: Rename | None = None,
    prunable: Rules | None = None,
    layout: Layout = to_torch_layout,
    axes: AxesByPath | None = None,
) -> dict[str, np.ndarray]:
    """Returns masks for PyTorch: bool NumPy arrays in its layouts, named as there with "_mask".

        masks = jaxsparse.masks_to_torch(state.masks, rename=torchvision_name)
        prune.custom_from_mask(model.fc, "weight", torch.from_numpy(masks["fc.weight_mask"]))

    `masks_from_torch` reads them back.

    Args:
      masks: a tree of bool.
      rename: as in `params_to_torch`.
      prunable: as in `prunable_paths`; other leaves are all True and are left out.
      layout: as in `params_to_torch`.
      axes: as in `params_to_torch`.

    Raises:
      ValueError: as `params_to_torch`.
    """
    check_masks(masks, masks)
    leaves = leaves_by_path(masks)
    return _named(
        {(p, "_mask"): leaves[p] for p in _masked_paths(masks, prunable)}, rename, layout, axes
    )


def _masked_paths(masks: PyTree, prunable: Rules | None) -> list[str]:
    """The prunable paths; raises a ValueError if the mask of another leaf would be lost."""
    paths = prunable_paths(masks, prunable)
    others = {path: mask for path, mask in leaves_by_path(masks).items() if path not in paths}
    for (path, mask), active in zip(others.items(), num_true(others.values()), strict=True):
        if num_zero := np.size(mask) - active:
            raise ValueError(
                f"masks at {path}: {num_zero} of {np.size(mask)} entries are False, but the leaf "
                "is not prunable and would have no mask in PyTorch; take it into prunable"
            )
    return paths


def _named(
    entries: Mapping[tuple[str, str], Any],
    rename: Rename | None,
    layout: Layout,
    axes: AxesByPath | None,
) -> dict[str, np.ndarray]:
    """PyTorch's arrays by name, from leaves by (path, suffix of the name)."""
    named: dict[str, dict[str, np.ndarray]] = {}
    for (path, end), x in entries.items():
        array = _for_torch(path, x)
        matrix = as_tensor(path, array, axes) if layout is to_torch_layout else None
        # A copy: PyTorch accepts neither read-only memory nor negative strides.
        tensor = np.array(layout(path, array) if matrix is None else matrix, order="C")
        named.setdefault(torch_name(path, rename) + end, {})[path] = tensor
    return {name: _one(name, tensors) for name, tensors in named.items()}


def _one(name: str, tensors: dict[str, np.ndarray]) -> np.ndarray:
    if len(tensors) == 1:
        return next(iter(tensors.values()))
    together = stacked([*tensors], [*tensors.values()])
    if together is None:
        first, second, *_ = tensors
        raise ValueError(
            f"leaves {first} and {second} would both be {name}; give them names of their own in "
            "rename"
        )
    return together


def _for_torch(path: str, x: Any) -> np.ndarray:
    """The leaf as a NumPy array of a dtype that PyTorch accepts."""
    dtype = jnp.result_type(x)
    if not (jnp.issubdtype(dtype, jnp.number) or dtype == jnp.bool_):
        raise ValueError(f"leaf {path} is {dtype}{np.shape(x)}, which is no array of numbers")
    array = whole(x)
    if array.dtype.kind != "V":
        return array
    # These are bfloat16, float8 and int4, which NumPy itself does not have either.
    return array.astype(np.float32 if jnp.issubdtype(dtype, jnp.floating) else np.int8)
