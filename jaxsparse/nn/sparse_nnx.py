"""Executes Flax NNX models by their active weights: swaps layers for sparse ones, and back.

    positions = find_positions(masks)                      # of jaxsparse.sparse.states
    model = sparse_modules(model, positions)
    optimizer = nnx.Optimizer(model, optax.adam(1e-3), wrt=nnx.Param)
    ...                                                    # nnx.jit, nnx.grad, optimizer.update

The `nnx.Param`s of a sparse layer are the vector of its active weights and its bias, so gradients
and slots have the length of that vector. Its positions are no Params. Events need all weights, so
swap back for them:

    full = dense_modules(model)
    full_optimizer = move_optimizer(optimizer, model, full)
    ...                                                    # the event: new masks
    model = sparse_modules(full, find_positions(masks))
    optimizer = move_optimizer(full_optimizer, full, model)
"""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import lax

from jaxsparse.inside_optax import is_hole
from jaxsparse.nn.shapes import of_layer, window_of
from jaxsparse.paths import leaf_paths
from jaxsparse.sparse import Positions, sparse_conv, sparse_dot, to_dense
from jaxsparse.sparse.positions import gathered

_CONV_OPTIONS = (
    "in_features",
    "out_features",
    "kernel_size",
    "strides",
    "padding",
    "input_dilation",
    "kernel_dilation",
    "feature_group_count",
    "use_bias",
    "mask",
    "dtype",
    "param_dtype",
    "precision",
    "conv_general_dilated",
    "promote_dtype",
    "preferred_element_type",
)
_LINEAR_OPTIONS = (
    "in_features",
    "out_features",
    "use_bias",
    "dtype",
    "param_dtype",
    "precision",
    "dot_general",
    "promote_dtype",
    "preferred_element_type",
)


class Position(nnx.Variable):
    """Positions of active weights, integers; not a parameter."""


class _SparseLayer(nnx.Module):
    """A layer with active weights, their positions, and the options of the dense layer.

    Attributes:
      kernel: Param, float32[capacity], the active weights.
      bias: as in the dense layer.
      flat: Position, int32[capacity].
      num: Position, int32[].
      shape: of the dense kernel.
      path: of the kernel in the model, for messages.
    """

    _options: tuple[str, ...] = ()
    _num_axes: int

    def __init__(self, layer: Any, positions: Positions, path: str):
        kernel = layer.kernel[...]
        if kernel.shape != positions.shape:
            raise ValueError(f"{path} is {kernel.shape}, its positions are of {positions.shape}")
        if kernel.ndim > self._num_axes:
            raise ValueError(
                f"{path} is {kernel.shape}, a stack of layers (nnx.vmap), which has no sparse "
                "form; it stays dense"
            )
        if kernel.dtype != jnp.float32 or layer.preferred_element_type not in (None, jnp.float32):
            dtypes = f"{kernel.dtype} and preferred_element_type={layer.preferred_element_type}"
            raise ValueError(f"{path} is {dtypes}; it cannot be executed sparsely")
        self.kernel = nnx.Param(gathered(kernel, positions))
        self.bias = layer.bias
        self.flat = Position(positions.flat)
        self.num = Position(positions.num)
        self.shape = positions.shape
        self.path = path
        for name in self._options:
            setattr(self, name, getattr(layer, name))

    @property
    def positions(self) -> Positions:
        """The positions of the active weights."""
        return Positions(self.flat[...], self.num[...], self.shape)

    def _dense(self, kind: Any) -> Any:
        kernel = to_dense(self.kernel[...], self.positions)
        options = {name: getattr(self, name) for name in self._options}
        layer = kind(**options, kernel_init=lambda *_: kernel, rngs=nnx.Rngs(0))
        layer.bias = self.bias
        return layer

    def _with_bias(self, outputs: jax.Array) -> jax.Array:
        if self.bias is None:
            return outputs
        return outputs + self.bias[...].reshape((1,) * (outputs.ndim - 1) + (-1,))


class SparseConv(_SparseLayer):
    """A two-dimensional `nnx.Conv` by its active weights. Called like `nnx.Conv`; float32 only."""

    _options = _CONV_OPTIONS
    _num_axes = 4

    def __init__(self, layer: nnx.Conv, positions: Positions, path: str = "kernel"):
        window_of(_as_linen(layer), path, (1, 1))
        if layer.conv_general_dilated is not lax.conv_general_dilated:
            raise ValueError(f"{path} has a conv_general_dilated of its own; it stays dense")
        super().__init__(layer, positions, path)

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Maps float32[..., height, width, channels] to float32[..., out y, out x, outputs]."""
        *batch, height, width, channels = inputs.shape
        window = window_of(_as_linen(self), self.path, (height, width))
        images = inputs.reshape(-1, height, width, channels)
        with of_layer(self.path):
            outputs = sparse_conv(images, self.kernel[...], self.positions, window)
        return self._with_bias(outputs.reshape(*batch, *outputs.shape[1:]))

    def dense(self) -> nnx.Conv:
        """Returns the dense layer, with 0 for inactive weights and the same Param as bias."""
        return self._dense(nnx.Conv)


class SparseLinear(_SparseLayer):
    """An `nnx.Linear` by its active weights. Called like `nnx.Linear`; float32 only."""

    _options = _LINEAR_OPTIONS
    _num_axes = 2

    def __init__(self, layer: nnx.Linear, positions: Positions, path: str = "kernel"):
        if layer.dtype not in (None, jnp.float32):
            raise ValueError(f"{path} has dtype={layer.dtype}; it cannot be executed sparsely")
        if layer.dot_general is not lax.dot_general:
            raise ValueError(f"{path} has a dot_general of its own; it stays dense")
        super().__init__(layer, positions, path)

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Maps float32[..., inputs] to float32[..., outputs]."""
        with of_layer(self.path):
            outputs = sparse_dot(inputs, self.kernel[...], self.positions)
        return self._with_bias(outputs)

    def dense(self) -> nnx.Linear:
        """Returns the dense layer, with 0 for inactive weights and the same Param as bias."""
        return self._dense(nnx.Linear)


_SPARSE = {nnx.Conv: SparseConv, nnx.Linear: SparseLinear}


def sparse_modules(model: nnx.Module, positions: Mapping[str, Positions]) -> Any:
    """Returns a copy of the model whose layers with positions are swapped for sparse ones.

    Args:
      model: of any structure; it is not changed.
      positions: by the path of the kernel, such as "blocks/0/conv/kernel", from `find_positions` of
        masks like `nnx.state(model, nnx.Param)`. The copy loses all weights elsewhere.

    Raises:
      ValueError: a path is no kernel of the model; a kernel has another shape, or belongs to two
        layers; or a layer has no sparse form. That is a class other than `nnx.Conv` and
        `nnx.Linear`, a stack of layers, a kernel that `nnx.SpectralNorm` or `nnx.WeightNorm`
        changes, or as in `jaxsparse.nn.sparse.sparse_execution`. Names the path.
    """
    changed = _changed_kernels(model)
    owners: dict[int, str] = {}
    found = {}
    for path, layer, kernel in _kernels(model):
        first = owners.setdefault(id(kernel), path)
        if first != path and (tied := {first, path} & set(positions)):
            raise ValueError(f"{' and '.join(tied)} belongs to {first} and {path}; it stays dense")
        found[path] = layer
    for path in positions:
        if path not in found:
            raise ValueError(f"positions of {path}, which is no kernel of the model")
        if kind := changed.get(id(found[path])):
            raise ValueError(f"{path} is changed by an nnx.{kind} at every call; it stays dense")
        if type(found[path]) not in _SPARSE:
            kind = type(found[path]).__name__
            raise ValueError(f"{path} belongs to a {kind}, which has no sparse form")

    def swap(parts: tuple[Any, ...], node: Any) -> Any:
        path = _kernel_path(parts)
        if type(node) not in _SPARSE or path not in positions:
            return node
        return _SPARSE[type(node)](node, positions[path], path)

    return nnx.recursive_map(swap, nnx.clone(model))


def dense_modules(model: nnx.Module) -> Any:
    """Returns a copy of the model with dense layers in place of all sparse ones.

    Inactive weights are 0. The metadata of the kernels is lost; all else is as before
    `sparse_modules`.
    """
    swap = lambda _, node: node.dense() if isinstance(node, SparseConv | SparseLinear) else node
    return nnx.recursive_map(swap, nnx.clone(model))


def positions_in(model: nnx.Module) -> dict[str, Positions]:
    """Returns the positions of all sparse layers, by the path of the kernel."""
    layers = {path: layer for path, layer, _ in _kernels(model)}
    return {p: layer.positions for p, layer in layers.items() if isinstance(layer, _SparseLayer)}


def move_optimizer(optimizer: nnx.Optimizer, model: nnx.Module, to: nnx.Module) -> nnx.Optimizer:
    """Returns an optimizer for another form of a model, with the state of this optimizer.

    Slots (momentum, second moments) of active weights are kept; those of other weights are 0.

    Args:
      optimizer: of `model`; it is not changed.
      model: the model that it has updated, dense or sparse.
      to: a copy of the model from `sparse_modules` or `dense_modules`.
    """
    before, after = positions_in(model), positions_in(to)

    def move(slot: Any, path: str) -> Any:
        if path in before and np.shape(slot) == (before[path].capacity,):
            slot = to_dense(slot, before[path])
        if path in after and np.shape(slot) == after[path].shape:
            slot = gathered(slot, after[path])
        return slot

    params = nnx.as_pure(nnx.state(model, optimizer.wrt))
    paths = jax.tree.unflatten(jax.tree.structure(params), leaf_paths(params))
    skip_holes = lambda slot, path: slot if is_hole(slot) else move(slot, path)
    slots = optax.tree.map_params(
        optimizer.tx, skip_holes, nnx.as_pure(optimizer.opt_state), paths, is_leaf=is_hole
    )
    moved = nnx.Optimizer(to, optimizer.tx, wrt=optimizer.wrt)
    nnx.update(moved.opt_state, nnx.state(slots))
    moved.step[...] = optimizer.step[...]
    return moved


def _kernels(model: nnx.Module) -> Iterator[tuple[str, nnx.Module, nnx.Variable]]:
    """The path of every kernel, its module, and the kernel itself."""
    for parts, node in nnx.iter_graph(model):
        if isinstance(node, nnx.Module) and isinstance(
            kernel := getattr(node, "kernel", None), nnx.Variable
        ):
            yield _kernel_path(parts), node, kernel


def _changed_kernels(model: nnx.Module) -> dict[int, str]:
    """The name of the norm that writes into the kernel of a layer, by the id of the layer."""
    kinds = nnx.SpectralNorm | nnx.WeightNorm
    norms = [node for _, node in nnx.iter_graph(model) if isinstance(node, kinds)]
    return {
        id(layer): type(norm).__name__
        for norm in norms
        for _, layer in nnx.iter_graph(norm.layer_instance)
    }


def _kernel_path(parts: tuple[Any, ...]) -> str:
    return "/".join([*map(str, parts), "kernel"])


def _as_linen(layer: Any) -> Any:
    """Returns the layer: options of an NNX convolution have the names and meanings of linen's."""
    return layer
