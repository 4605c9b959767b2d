"""In which form each layer of a network is executed: by its active weights, or as it is."""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxsparse.nn.shapes import look_at_layers
from jaxsparse.paths import listed
from jaxsparse.sparse import BreakEven, LayerShape, break_even, choose_capacity, is_mostly_sparse


class LayerForm(NamedTuple):
    """How one layer is executed.

    Attributes:
      path: of its kernel.
      num_active: active weights.
      size: weights.
      break_even: density below which it is executed by its active weights.
      is_sparse: whether it is.
    """

    path: str
    num_active: int
    size: int
    break_even: float
    is_sparse: bool


class Forms(NamedTuple):
    """How a network is executed at some masks; print it for a table.

    Attributes:
      model: the network, in the layout that suits.
      capacity: the leaves that are executed by their active weights, with capacity for these; what
        `find_positions` takes.
      layers: all prunable ones that have a sparse form.
      others: what those that have none have instead, such as dtype=bfloat16, by path.
    """

    model: nn.Module
    capacity: dict[str, int]
    layers: tuple[LayerForm, ...]
    others: dict[str, str]

    def __str__(self) -> str:
        """The table of layers, and a line for every reason to have no sparse form."""
        width = max([5, *(len(layer.path) for layer in self.layers)])
        layout = getattr(self.model, "layout", "NHWC")
        lines = [
            f"{len(self.capacity)} of {len(self.layers) + len(self.others)} layers are executed by "
            f"their active weights, images lie as {layout}",
            f"{'layer':<{width}} {'active':>11} {'density':>8} {'break-even':>10}  executed",
        ]
        for path, num, size, limit, is_sparse in self.layers:
            form = "sparse" if is_sparse else "dense"
            lines.append(f"{path:<{width}} {num:>11,} {num / size:>8.4f} {limit:>10.2f}  {form}")
        for why in dict.fromkeys(self.others.values()):
            paths = [path for path, reason in self.others.items() if reason == why]
            lines.append(f"without a sparse form, for {why}: {listed(paths, most=3)}")
        return "\n".join(lines)


def choose_forms(
    model: nn.Module,
    images: jax.Array | jax.ShapeDtypeStruct,
    active: Mapping[str, int],
    previous: Mapping[str, int] | None = None,
    *,
    train: bool = True,
    exact: bool = False,
    break_even: BreakEven = break_even,
) -> Forms:
    """Chooses by density, shape and batch what is faster, for each prunable layer.

    What has no sparse form stays dense, layers of another dtype than float32 among it; `others` of
    the result has the reasons.

    Where most of the work is in layers executed sparsely, a network that has a field `layout` gets
    "CHWN", and has the same variables. For a model that takes more than images there are
    `layer_shapes` and `jaxsparse.sparse.choose_capacity`, of which this is made.

    Args:
      model: called as `jaxsparse.nn` says; hashable.
      images: a batch as the model takes them, or its shape.
      active: active weights of the prunable leaves, from `jaxsparse.sparse.count_active`.
      previous: the capacity chosen before the last mask update, which stay as long as they serve;
        see `choose_capacity`.
      train: whether the network is trained or only applied.
      exact: capacity for what is active now and no more, as in `choose_capacity`.
      break_even: decides, see `choose_capacity`.
    """
    options = {"train": train, "exact": exact, "break_even": break_even}
    layers, reasons = _layers(model, images.shape, images.dtype)
    capacity = choose_capacity(active, layers, previous, **options)
    if hasattr(model, "layout") and getattr(model, "dtype", jnp.float32) == jnp.float32:
        major = model.clone(layout="CHWN")
        major_layers, _ = _layers(major, images.shape, images.dtype)
        major_capacity = choose_capacity(active, major_layers, previous, **options)
        if major_capacity and is_mostly_sparse(major_layers, major_capacity):
            model, layers, capacity = major, major_layers, major_capacity
    forms = [
        LayerForm(path, num, layers[path].size, break_even(layers[path], train), path in capacity)
        for path, num in active.items()
        if path in layers
    ]
    unknown = "no module of that name, or one within nn.jit"
    others = {path: reasons.get(path, unknown) for path in active if path not in layers}
    return Forms(model, capacity, tuple(forms), others)


@functools.lru_cache(maxsize=64)
def _layers(
    model: nn.Module, shape: tuple[int, ...], dtype: Any
) -> tuple[dict[str, LayerShape], dict[str, str]]:
    images = jax.ShapeDtypeStruct(shape, dtype)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    return look_at_layers(model.apply, variables, images)
