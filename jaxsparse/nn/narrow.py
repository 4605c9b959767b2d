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

from flax import linen as nn

from jaxsparse.nn.resnet import ResNet
from jaxsparse.structured.narrowing import WidthPlan


class Change(NamedTuple):
    """How a leaf of a layer becomes smaller.

    Attributes:
      before: its shape at full width.
      after: its shape.
      each: indices that a removed unit has along the last axis; 0 if that axis stays.
    """

    before: tuple[int, ...]
    after: tuple[int, ...]
    each: int


@dataclasses.dataclass(frozen=True)
class Narrowed:
    """A linen model whose layers have other widths; it has `init` and `apply`.

    Known layers are convolutions, dense layers (`nn.DenseGeneral` too), attention, embeddings and
    group norms, and all modules whose parameters follow the shape of their inputs, such as batch
    and layer norms.

    Attributes:
      model: at full width.
      changes: by the path of a layer, such as "stage1_block1/conv1", and the name of a leaf.
    """

    model: nn.Module
    changes: Mapping[str, Mapping[str, Change]]

    def init(self, *args: Any, **kwargs: Any) -> Any:
        """Returns initial variables at the new widths; as `nn.Module.init`."""
        with self._narrow():
            return self.model.init(*args, **kwargs)

    def apply(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the model at the new widths; as `nn.Module.apply`.

        Raises:
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
                    leaf: Change(tuple(map(int, before)), tuple(map(int, after)), int(each))
                    for leaf, (before, after, each) in leaves.items()
                }
                for layer, leaves in json.loads(text).items()
            }
        except (AttributeError, TypeError, ValueError) as error:
            raise ValueError(f"the text is not that of widths: {error}") from None
        return cls(model, changes)

    @contextlib.contextmanager
    def _narrow(self) -> Iterator[None]:
        seen: dict[int, nn.Module] = {}  # holds them, so that no other module gets their id

        def run(method: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
            module = context.module
            if module.scope is not None and id(module) not in seen:
                seen[id(module)] = module
                for name, value in self._fields(module).items():
                    object.__setattr__(module, name, value)  # a bound copy, not the user's module
            return method(*args, **kwargs)

        with nn.intercept_methods(run):
            yield

    def _fields(self, module: nn.Module) -> dict[str, Any]:
        """Returns the fields of a module that have new values."""
        path = "/".join(module.path)
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


def narrow_module(model: nn.Module, plan: WidthPlan) -> nn.Module | Narrowed:
    """Returns a linen model at the widths of a plan: a `ResNet` with `widths`, or a `Narrowed`.

    Args:
      model: at full width.
      plan: of the whole variables, {"params": ..., ...}, or of the params alone.
    """
    shapes = plan.groups.shapes
    has_collections = any(path.startswith("params/") for path in shapes)
    changes: dict[str, dict[str, Change]] = {}
    for path, gone in _by_leaf(plan).items():
        inside = path.partition("/")[2] if has_collections else path
        layer, _, leaf = inside.rpartition("/")
        before, last = shapes[path], len(shapes[path]) - 1
        after = tuple(size - gone.get(axis, 0) for axis, size in enumerate(before))
        each = [
            member.indices.shape[1]
            for group in plan.groups.of(path, last)
            for member in group.members
            if (member.path, member.axis) == (path, last)
        ]
        changes.setdefault(layer, {})[leaf] = Change(before, after, max(each, default=0))
    if isinstance(model, ResNet):  # which asks for a shortcut where two widths differ
        widths = {
            layer: leaves["kernel"].after[-1]
            for layer, leaves in changes.items()
            if "kernel" in leaves and layer in model.conv_widths()
        }
        return model.clone(widths={**(model.widths or {}), **widths})
    return Narrowed(model, changes)


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
        groups = getattr(module, "feature_group_count", 1)
        if groups > 1 and kernel.before[-2] == kernel.after[-2]:  # whole groups go
            found["feature_group_count"] = groups * kernel.after[-1] // kernel.before[-1]
    if (table := changes.get("embedding")) is not None and hasattr(module, "num_embeddings"):
        found |= {"num_embeddings": table.after[0], "features": table.after[1]}
    scale = changes.get("scale", changes.get("bias"))
    if isinstance(module, nn.GroupNorm) and scale is not None and module.num_groups:
        if module.num_groups * scale.each == scale.before[-1]:  # whole groups go
            found["num_groups"] = scale.after[-1] // scale.each
    return found
