"""Chooses for each layer of a network whether it is executed by its active weights or dense."""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxsparse.nn.shapes import look_at_layers
from jaxsparse.paths import listed
from jaxsparse.sparse import BreakEven, LayerShape, break_even, choose_capacity, is_mostly_sparse
from jaxsparse.text_table import text_table


class LayerForm(NamedTuple):
    """How one layer is executed.

    Attributes:
      path: of the kernel.
      num_active: number of active weights.
      size: number of weights.
      break_even: density below which sparse execution is faster, in [0, 1].
      is_sparse: whether the layer is executed by its active weights.
    """

    path: str
    num_active: int
    size: int
    break_even: float
    is_sparse: bool


_HEADING = ("layer", "active", "density", "break-even", "executed")


def _row(layer: LayerForm) -> tuple[str, ...]:
    density = layer.num_active / layer.size
    form = "sparse" if layer.is_sparse else "dense"
    return (layer.path, f"{layer.num_active:,}", f"{density:.4f}", f"{layer.break_even:.2f}", form)


class Forms(NamedTuple):
    """How a network is executed with some masks. `print` shows a table.

    Attributes:
      model: the network in the faster layout.
      capacity: by path, for the leaves that are executed by their active weights; `find_positions`
        takes it.
      layers: all prunable layers that have a sparse form.
      others: why each other prunable layer has no sparse form, such as dtype=bfloat16, by path.
    """

    model: nn.Module
    capacity: dict[str, int]
    layers: tuple[LayerForm, ...]
    others: dict[str, str]

    def __str__(self) -> str:
        """The table of layers, and a line for every reason to have no sparse form."""
        layout = getattr(self.model, "layout", "NHWC")
        lines = [
            f"{len(self.capacity)} of {len(self.layers) + len(self.others)} layers are executed by "
            f"their active weights, images lie as {layout}",
            *text_table([_HEADING, *map(_row, self.layers)], "<>>><"),
        ]
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
    """Chooses the faster form of each prunable layer by its density, shape and batch.

    Layers without a sparse form stay dense, such as those of another dtype than float32; `others`
    of the result has the reasons.

    If layers executed sparsely do most of the work, a network with a field `layout` gets "CHWN".
    Its variables are the same. For a model that takes more than images use the two parts of this
    function, `layer_shapes` and `jaxsparse.sparse.choose_capacity`.

    Args:
      model: called as `jaxsparse.nn` says; hashable.
      images: a batch as the model takes it, or its `jax.ShapeDtypeStruct`.
      active: number of active weights of the prunable leaves, from `jaxsparse.sparse.count_active`.
      previous: the capacity chosen before the last mask update. It stays as long as it serves, see
        `choose_capacity`.
      train: whether the network is trained or only applied.
      exact: makes each capacity the number of active weights, as in `choose_capacity`.
      break_even: the decision, see `choose_capacity`.
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
