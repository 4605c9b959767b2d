"""Linen models with fewer channels, without a change of their source.

    plan = plan_widths(groups, importance, costs, target=0.5)
    model = narrow_module(model, plan)
    logits = model.apply(plan.apply(variables), images)

Linen layers take the number of their inputs from what they get, and that of their outputs from
their fields. `Narrowed` sets these fields while the model runs, layer by layer, so that the model
initialises, runs and trains at the new widths.
"""

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from flax import linen as nn

from jaxsparse.nn.narrow_checks import check_cell, check_group_norm, shapes_of
from jaxsparse.nn.preparing import preparing
from jaxsparse.nn.resnet import ResNet
from jaxsparse.paths import leaves_by_path
from jaxsparse.structured.narrowing import WidthPlan


class Change(NamedTuple):
    """How a leaf of a layer becomes smaller.

    Attributes:
      before: its shape at full width.
      after: its shape.
      block: neighbours along the last axis that a removed unit is made of, such as a whole group of
        channels; 0 if that axis stays, or loses an index inside of each group.
    """

    before: tuple[int, ...]
    after: tuple[int, ...]
    block: int

    def num_groups(self, before: int) -> int:
        """Returns how many groups of channels are left of so many: units may be whole groups."""
        size = self.before[-1] // before
        is_whole = self.block > 0 and self.block % size == 0
        return self.after[-1] // size if is_whole else before


_Changes = Mapping[str, Mapping[str, Change]]


@dataclasses.dataclass(frozen=True)
class Narrowed:
    """A linen model whose layers have other widths; it has `init` and `apply`.

    It trains, exports, and runs in `sparse_execution` as the model does.

    Known layers are convolutions, dense layers (`nn.DenseGeneral` and `nn.Einsum` too), attention,
    embeddings and group norms, and all modules whose parameters follow the shape of their inputs,
    such as batch and layer norms. Recurrent cells become narrower in their inputs alone. Calls of a
    cell whose carry would become narrower are refused, and so are those of a group norm in groups
    without scale and bias, whose channels have no leaf that says which groups are left.

    Attributes:
      model: at full width.
      changes: by the path of a layer, such as "stage1_block1/conv1", and the name of a leaf.
    """

    model: nn.Module
    changes: _Changes

    def init(self, *args: Any, **kwargs: Any) -> Any:
        """Returns initial variables at the new widths; as `nn.Module.init`.

        Raises:
          ValueError: a layer is refused (see above), or was to become narrower and did not, as it
            is not known; names it.
        """
        with self._narrow():
            variables = self.model.init(*args, **kwargs)
        shapes = {path: np.shape(x) for path, x in leaves_by_path(dict(variables)).items()}
        for layer, leaves in self.changes.items():
            for leaf, change in leaves.items():
                end = f"{layer}/{leaf}" if layer else leaf
                found = [shape for path, shape in shapes.items() if path.partition("/")[2] == end]
                if change.after not in found:
                    has = " or ".join(map(str, found)) or "no such leaf"
                    raise ValueError(
                        f"{end} has shape {has} at the new widths, and must have {change.after}: "
                        "its layer is of no kind that becomes narrower, or of another model"
                    )
        return variables

    def apply(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the model at the new widths; as `nn.Module.apply`.

        Raises:
          ValueError: a layer is refused, see above; names it.
          flax.errors.ScopeParamShapeError: the variables are of other widths, or a module keeps the
            width of a parameter elsewhere than in the fields that are known.
        """
        with self._narrow():
            return self.model.apply(*args, **kwargs)

    def to_json(self) -> str:
        """Returns the widths as text, to be saved beside the arrays; see `from_json`."""
        return json.dumps(self.changes, sort_keys=True)

    @classmethod
    def from_json(cls, model: nn.Module, text: str) -> "Narrowed":
        """Returns the model with the widths that `to_json` wrote.

        Raises:
          ValueError: the text is not such.
        """
        try:
            changes = {
                layer: {
                    leaf: Change(tuple(map(int, before)), tuple(map(int, after)), int(block))
                    for leaf, (before, after, block) in leaves.items()
                }
                for layer, leaves in json.loads(text).items()
            }
        except (AttributeError, TypeError, ValueError) as error:
            raise ValueError(f"the text is not that of widths: {error}") from None
        return cls(model, changes)

    @contextlib.contextmanager
    def _narrow(self) -> Iterator[None]:
        seen: dict[int, nn.Module] = {}  # holds them, so that no other module gets their id

        def change(module: nn.Module) -> None:
            if module.scope is not None and id(module) not in seen:
                seen[id(module)] = module
                for name, value in self._fields(module).items():
                    object.__setattr__(module, name, value)  # a bound copy, not the user's module

        def run(method: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
            change(context.module)
            return method(*args, **kwargs)

        with preparing(change), nn.intercept_methods(run):
            yield

    def _fields(self, module: nn.Module) -> dict[str, Any]:
        """Returns the fields of a module that have new values."""
        path = "/".join(module.path)
        if isinstance(module, nn.RNNCellBase) and (path or isinstance(self.model, nn.RNNCellBase)):
            check_cell(path, shapes_of(self.changes))  # nn.scan first calls one that has no path
        if isinstance(module, nn.GroupNorm) and self.changes:
            if not module.use_scale and not module.use_bias:
                check_group_norm(path, module.num_groups)
        if not isinstance(module, nn.MultiHeadDotProductAttention):
            return _fields(module, self.changes.get(path, {}))
        # It derives the widths of its layers from these.
        of = lambda layer: self.changes.get(f"{path}/{layer}", {}).get("kernel")
        query, out = of("query"), of("out")
        found: dict[str, Any] = {}
        if query is not None:
            heads, depth = query.after[-2:]
            found |= {"num_heads": heads, "qkv_features": heads * depth}
        if out is not None and module.out_features is not None:
            found["out_features"] = out.after[-1]
        return found

    def __hash__(self) -> int:
        return hash((self.model, self.to_json()))


def narrow_module(model: nn.Module | Narrowed, plan: WidthPlan) -> nn.Module | Narrowed:
    """Returns a linen model at the widths of a plan: a `ResNet` with `widths`, or a `Narrowed`.

    Args:
      model: of the plan's widths before: at full width, or what an earlier plan left.
      plan: of the whole variables, {"params": ..., ...}, or of the params alone.
    """
    has_collections = any(path.startswith("params/") for path in plan.groups.shapes)
    changes = changes_of(plan, has_collections=has_collections)
    if isinstance(model, Narrowed):
        return Narrowed(model.model, _after_another(model.changes, changes))
    if isinstance(model, ResNet) and model.num_owners is not None:
        raise ValueError(
            f"blocks of the model share kernels (num_owners={model.num_owners}), which keep their "
            "widths: narrow a model without sharing"
        )
    if isinstance(model, ResNet):  # which asks for a shortcut where two widths differ
        widths = {
            layer: leaves["kernel"].after[-1]
            for layer, leaves in changes.items()
            if "kernel" in leaves and layer in model.conv_widths()
        }
        return model.clone(widths={**(model.widths or {}), **widths})
    return Narrowed(model, changes)


def changes_of(plan: WidthPlan, *, has_collections: bool) -> dict[str, dict[str, Change]]:
    """Returns how leaves become smaller, by the path of their layer and their name.

    Args:
      plan: of the network.
      has_collections: whether the first part of a path is that of a collection, to be left out.
    """
    changes: dict[str, dict[str, Change]] = {}
    for path, gone in _by_leaf(plan).items():
        inside = path.partition("/")[2] if has_collections else path
        layer, _, leaf = inside.rpartition("/")
        before = plan.groups.shapes[path]
        after = tuple(size - gone.get(axis, 0) for axis, size in enumerate(before))
        block = max((member.block for member in plan.groups.members(path, -1)), default=0)
        changes.setdefault(layer, {})[leaf] = Change(before, after, block)
    return changes


def _after_another(first: _Changes, then: _Changes) -> dict[str, dict[str, Change]]:
    """Joins the changes of two plans, of which the second began where the first ended."""
    found = {layer: dict(leaves) for layer, leaves in first.items()}
    for layer, leaves in then.items():
        for leaf, change in leaves.items():
            old = found.setdefault(layer, {}).get(leaf)
            if old is not None:
                change = Change(old.before, change.after, change.block or old.block)
            found[layer][leaf] = change
    return found


def _by_leaf(plan: WidthPlan) -> dict[str, dict[int, int]]:
    """How many indices go, by path and axis."""
    found: dict[str, dict[int, int]] = {}
    for (path, axis), gone in plan.removed().items():
        found.setdefault(path, {})[axis] = len(gone)
    return found


def _fields(module: nn.Module, changes: Mapping[str, Change]) -> dict[str, Any]:
    """Returns the fields of a module that have new values."""
    found: dict[str, Any] = {}
    if (kernel := changes.get("kernel")) is not None and hasattr(module, "features"):
        if getattr(module, "transpose_kernel", False):
            raise ValueError(f"{'/'.join(module.path)}: transpose_kernel=True is not known")
        features: Any = module.features
        is_one = isinstance(features, int)
        found["features"] = kernel.after[-1] if is_one else kernel.after[-len(features) :]
        if (groups := getattr(module, "feature_group_count", 1)) > 1:
            found["feature_group_count"] = kernel.num_groups(groups)
    if kernel is not None and isinstance(module, nn.Einsum):
        found["shape"] = kernel.after
    if (table := changes.get("embedding")) is not None and hasattr(module, "num_embeddings"):
        found |= dict(zip(("num_embeddings", "features"), table.after[-2:], strict=True))
    scale = changes.get("scale", changes.get("bias"))
    if isinstance(module, nn.GroupNorm) and scale is not None:
        groups = module.num_groups or scale.before[-1] // (module.group_size or 1)
        after = scale.num_groups(groups)
        is_number = module.num_groups is not None
        found |= {"num_groups": after} if is_number else {"group_size": scale.after[-1] // after}
    return found
