"""NNX models with fewer channels: their arrays sliced, and the widths that their layers keep.

graph, state = nnx.split(model)
groups = channel_groups(lambda state, x: nnx.merge(graph, state)(x), state, images)
plan = plan_widths(groups, importance, costs, target=0.5)
model = narrow_nnx(model, plan)
"""

from typing import Any

import numpy as np
from flax import nnx

from jaxsparse.nn.narrow import Change, changes_of
from jaxsparse.nn.narrow_checks import check_cell, check_group_norm, shapes_of
from jaxsparse.structured.narrowing import WidthPlan


def narrow_nnx(model: nnx.Module, plan: WidthPlan) -> Any:
    """Returns a narrower copy of a model; the model stays as it is.

    Linear layers, `nnx.Einsum`, convolutions, embeddings, norms and attention get the numbers that
    they keep (`in_features`, `num_heads` and the like) from the shapes of their new arrays. A
    module that keeps a width elsewhere keeps the old one; compare outputs by `check_narrow`.

    Args:
      model: at full width.
      plan: of `nnx.split(model)`'s state, or of a part of it such as its `nnx.Param`.

    Raises:
      ValueError: the plan is of another model, or narrows a layer that keeps its width: the carry
        of a recurrent cell, or groups of a norm without scale and bias, whose channels have no leaf
        that says which groups are left.
    """
    _check(model, plan)
    graph, state = nnx.split(model)
    narrow = nnx.merge(graph, plan.apply(state))
    for path, module in nnx.iter_modules(narrow):
        prefix = "/".join(map(str, path))
        for name, value in _fields(module, prefix, plan).items():
            setattr(module, name, value)
    return narrow


def _check(model: nnx.Module, plan: WidthPlan) -> None:
    changed = shapes_of(changes_of(plan, has_collections=False))
    for keys, module in nnx.iter_modules(model) if changed else ():
        path = "/".join(map(str, keys))
        if isinstance(module, nnx.RNNCellBase):
            check_cell(path, changed)
        if isinstance(module, nnx.GroupNorm) and not module.use_scale and not module.use_bias:
            check_group_norm(path, module.num_groups)


def _fields(module: Any, path: str, plan: WidthPlan) -> dict[str, Any]:
    """Returns the numbers that a module keeps, from its arrays."""
    shape = lambda name: np.shape(getattr(module, name)[...])
    if isinstance(module, nnx.Linear):
        return dict(zip(("in_features", "out_features"), shape("kernel"), strict=True))
    if isinstance(module, nnx.LinearGeneral):
        start = len(module.batch_axis)
        cut = start + len(module.in_features)
        return {"in_features": shape("kernel")[start:cut], "out_features": shape("kernel")[cut:]}
    if isinstance(module, nnx.Einsum):
        bias = {} if module.bias is None else {"bias_shape": shape("bias")}
        return {"kernel_shape": shape("kernel"), **bias}
    if isinstance(module, nnx.Conv):
        after, groups = shape("kernel"), module.feature_group_count
        if groups > 1:
            groups = _num_groups(plan, path, "kernel", after[-1], groups)
        return {
            "kernel_shape": after,
            "in_features": after[-2] * groups,
            "out_features": after[-1],
            "feature_group_count": groups,
        }
    if isinstance(module, nnx.Embed):
        return dict(zip(("num_embeddings", "features"), shape("embedding"), strict=True))
    if isinstance(module, nnx.GroupNorm):
        return _of_group_norm(module, path, plan)
    if isinstance(module, nnx.BatchNorm | nnx.LayerNorm | nnx.RMSNorm):
        held = [n for n in ("scale", "bias", "mean") if getattr(module, n, None) is not None]
        return {"num_features": shape(held[0])[0]} if held else {}
    if isinstance(module, nnx.MultiHeadAttention):
        return _of_attention(module)
    return {}


def _of_group_norm(module: Any, path: str, plan: WidthPlan) -> dict[str, Any]:
    for name in ("scale", "bias"):
        if getattr(module, name, None) is not None:
            (after,) = np.shape(getattr(module, name)[...])
            groups = _num_groups(plan, path, name, after, module.num_groups)
            return {"num_groups": groups, "group_size": after // groups}
    return {}


def _num_groups(plan: WidthPlan, path: str, name: str, after: int, before: int) -> int:
    """Returns how many groups of a leaf's channels are left of so many."""
    leaf = f"{path}/{name}" if path else name
    if leaf not in plan.groups.shapes:
        return before
    block = max((member.block for member in plan.groups.members(leaf, -1)), default=0)
    return Change(plan.groups.shapes[leaf], (after,), block).num_groups(before)


def _of_attention(module: Any) -> dict[str, Any]:
    width, heads, depth = np.shape(module.query.kernel[...])
    inputs, kv_heads, _ = np.shape(module.key.kernel[...])
    found = {
        "num_heads": heads,
        "head_dim": depth,
        "in_features": width,
        "in_kv_features": inputs,
        "num_kv_heads": kv_heads,
        "qkv_features": heads * depth,
        "out_features": np.shape(module.out.kernel[...])[-1],
    }
    return {name: value for name, value in found.items() if hasattr(module, name)}
