"""Executes Flax linen models by their active weights, without changes to their code."""

import contextlib
import contextvars
import functools
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen.module import InterceptorContext

from jaxsparse.nn.preparing import prepare
from jaxsparse.nn.shapes import (
    check_layer,
    is_conv,
    is_stacked,
    kernel_path,
    look_at_layers,
    of_layer,
    window_of,
)
from jaxsparse.paths import with_leaves
from jaxsparse.sparse import Positions, sparse_conv, sparse_dot

_POSITIONS: contextvars.ContextVar[Mapping[str, Positions]] = contextvars.ContextVar(
    "positions", default=types.MappingProxyType({})
)


@contextlib.contextmanager
def sparse_execution(positions: Mapping[str, Positions]) -> Iterator[None]:
    """Executes the layers at `positions` by their active weights.

        @jax.jit
        def apply(variables, positions, images):
            with sparse_execution(positions):
                return model.apply(variables, images)

    Params hold the vector of active weights in place of the kernel of each `nn.Conv` or `nn.Dense`
    at `positions`. Inside the context these layers are executed sparsely; all others do not change.
    The vector may be in a box, such as `nn.Partitioned`, whose axis names are ignored.

    Args:
      positions: by the path of the kernel, such as "Conv_0/kernel". Under `jit` make them an
        argument, as above. Positions from a closure are constants of the compiled program, which
        would put new weights at the old positions after a mask update.

    Raises:
      ValueError: in the call, a layer at `positions` has no sparse form; names the path of its
        kernel. `layer_shapes` and `choose_forms` leave these layers out:
        - a dtype other than float32, of the layer or of its inputs
        - a number of spatial axes other than two, circular padding, or dilation of the input
        - a mask or a product (`conv_general_dilated`, `dot_general`) of its own
        - a subclass of `nn.Conv` or `nn.Dense`
        - a stacked kernel (`nn.scan`, `nn.vmap`), or one that is changed on the way to the layer
          (`nn.map_variables`, `nn.SpectralNorm`, `nn.WeightNorm`)
        - an `nn.jit` inside the model.
    """
    served: set[str] = set()
    looking: list[bool] = []

    def intercept(
        call: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        context: InterceptorContext,
    ) -> Any:
        layer, path = context.module, kernel_path(context.module)
        prepare(layer)
        if looking:
            return call(*args, **kwargs)
        if not layer.path:
            call = functools.partial(_explained, call, context, positions, looking)
        if context.method_name != "__call__" or path not in positions:
            return call(*args, **kwargs)
        served.add(path)
        if is_conv(layer):
            return _conv(layer, path, positions[path], *args, **kwargs)
        if type(layer) is nn.Dense:
            return _dense(layer, path, positions[path], *args, **kwargs)
        # A module may share the scope, and so the kernel, of a layer that it calls.
        served.remove(path)
        outputs = call(*args, **kwargs)
        if path not in served:
            kind = type(layer).__name__
            raise ValueError(f"{path} belongs to a {kind}, which has no sparse form")
        return outputs

    token = _POSITIONS.set(positions)
    try:
        with nn.intercept_methods(intercept):
            yield
    finally:
        _POSITIONS.reset(token)


def _explained(
    call: Callable[..., Any],
    context: InterceptorContext,
    positions: Mapping[str, Positions],
    looking: list[bool],
    *args: Any,
    **kwargs: Any,
) -> Any:
    """Calls a whole model. If that fails, names a layer without a sparse form as the reason.

    The error itself may not tell: Flax slices a stacked kernel before any layer sees it.
    """
    try:
        return call(*args, **kwargs)
    except Exception as error:
        if any(str(error).startswith(path) for path in positions):  # the error names the layer
            raise
        looking.append(True)
        try:
            reasons = _reasons(context, positions, args, kwargs)
        except Exception:  # the model fails with dense params too
            reasons = {}
        finally:
            looking.clear()
        for path in positions:
            if path in reasons:
                raise ValueError(
                    f"{path} has no sparse form, for {reasons[path]}; leave it out of capacity= in "
                    "find_positions, as layer_shapes and choose_forms do"
                ) from error
        raise


def _reasons(
    context: InterceptorContext,
    positions: Mapping[str, Positions],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> dict[str, str]:
    """Why layers of a model have no sparse form, by path; found by tracing it with dense params."""
    model, variables = context.module.unbind()
    scope: Any = context.module.scope
    rngs = {name: rng.as_jax_rng() for name, rng in scope.rngs.items()}
    kernels: Any = {p: jax.ShapeDtypeStruct(x.shape, jnp.float32) for p, x in positions.items()}
    dense: Any = {**variables, "params": with_leaves(variables["params"], kernels)}
    options = {"method": context.method_name, "rngs": rngs, "mutable": True}
    apply = lambda variables: model.apply(variables, *args, **kwargs, **options)
    return look_at_layers(apply, dense)[1]


def positions_of_layer(layer: nn.Module) -> Positions | None:
    """Returns the positions of a layer's kernel in the current `sparse_execution`, or None."""
    return _POSITIONS.get().get(kernel_path(layer))


def _conv(
    layer: nn.Conv,
    path: str,
    positions: Positions,
    inputs: jax.Array,
    scale: jax.Array | None = None,
) -> jax.Array:
    values = values_of(layer, path, positions, scale)
    if getattr(layer, "layout", "NHWC") == "CHWN":  # one of our own networks' layers
        window = window_of(layer, path, (inputs.shape[1], inputs.shape[2]))
        with of_layer(path):
            outputs = sparse_conv(inputs, values, positions, window, layout="CHWN")
        return _with_bias(layer, outputs, axis=0)
    *batch, height, width, channels = inputs.shape
    window = window_of(layer, path, (height, width))
    images = inputs.reshape(-1, height, width, channels)
    with of_layer(path):
        outputs = sparse_conv(images, values, positions, window)
    return _with_bias(layer, outputs.reshape(*batch, *outputs.shape[1:]))


def _dense(layer: nn.Dense, path: str, positions: Positions, inputs: jax.Array) -> jax.Array:
    check_layer(layer, path)
    values = values_of(layer, path, positions)
    with of_layer(path):
        outputs = sparse_dot(inputs, values, positions)
    return _with_bias(layer, outputs)


def values_of(
    layer: nn.Module, path: str, positions: Positions, scale: jax.Array | None = None
) -> jax.Array:
    """Returns the active weights of a layer, times `scale` if given.

    Raises:
      ValueError: params hold something else than a vector of the capacity.
    """
    # `param` would compare the shape with that of the dense kernel, and unboxing would shard the
    # vector by the names of the kernel's axes.
    leaves = jax.tree.leaves(layer.get_variable("params", "kernel"))
    shape = jnp.shape(leaves[0]) if len(leaves) == 1 else "none"
    if shape != (positions.capacity,):
        hint = "; a stack (nn.scan, nn.vmap) has no sparse form" if is_stacked(layer) else ""
        num = positions.capacity
        raise ValueError(
            f"{path} has shape {shape} in params, the capacity of its positions is {num}{hint}"
        )
    values = jnp.asarray(leaves[0])
    return values if scale is None else values * scale


def variable_of(layer: nn.Module, collection: str, name: str) -> jax.Array:
    """Returns a variable of a layer, taken out of its box."""
    return jnp.asarray(nn.meta.unbox(layer.get_variable(collection, name)))


def _with_bias(layer: nn.Conv | nn.Dense, outputs: jax.Array, axis: int = -1) -> jax.Array:
    if not layer.use_bias:
        return outputs
    bias = variable_of(layer, "params", "bias")
    others = [i for i in range(outputs.ndim) if i != axis % outputs.ndim]
    return outputs + jnp.expand_dims(bias, others)
