"""Flax linen models executed by their active weights, without a line of them rewritten."""

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
    """Executes the layers whose positions are given by their active weights.

        @jax.jit
        def apply(variables, positions, images):
            with sparse_execution(positions):
                return model.apply(variables, images)

    Inside the context, where the params of an `nn.Conv` or `nn.Dense` hold the vector of its active
    weights in place of its kernel, the layer is executed by these. All others are as they were. The
    vector may be in a box, such as `nn.Partitioned`, whose names say nothing of it.

    Args:
      positions: by the path of the kernel, such as "Conv_0/kernel". Under `jit` make them an
        argument, as above: what is closed over is a constant of the compiled program, which after
        a mask update would take the new weights to the old positions.

    Raises:
      ValueError: in the call, a layer that has no sparse form: a dtype other than float32, more or
        fewer than two spatial axes, circular padding, dilation of the input, a mask or a product of
        its own, a subclass of `nn.Conv` or `nn.Dense`, a kernel that is a stack (`nn.scan`,
        `nn.vmap`) or changed on the way to the layer (`nn.map_variables`, `nn.SpectralNorm`,
        `nn.WeightNorm`), an `nn.jit` within the model; or that is given something else than float32
        images. Names its kernel's path. `layer_shapes` and `choose_forms` leave all of these out.
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
        # A module that shares its scope with a layer has that layer's kernel, too.
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
    """Calls a whole model. Where that fails, a layer without a sparse form is the likely reason.

    A kernel that is a stack, say, is cut up by Flax before any layer sees it.
    """
    try:
        return call(*args, **kwargs)
    except Exception as error:
        if any(str(error).startswith(path) for path in positions):  # it says so itself
            raise
        looking.append(True)
        try:
            reasons = _reasons(context, positions, args, kwargs)
        except Exception:  # the model fails with dense params, too
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
    """Why layers of a model have no sparse form, found by a call with dense params."""
    model, variables = context.module.unbind()
    scope: Any = context.module.scope
    rngs = {name: rng.as_jax_rng() for name, rng in scope.rngs.items()}
    kernels: Any = {p: jax.ShapeDtypeStruct(x.shape, jnp.float32) for p, x in positions.items()}
    dense: Any = {**variables, "params": with_leaves(variables["params"], kernels)}
    options = {"method": context.method_name, "rngs": rngs, "mutable": True}
    apply = lambda variables: model.apply(variables, *args, **kwargs, **options)
    return look_at_layers(apply, dense)[1]


def positions_of_layer(layer: nn.Module) -> Positions | None:
    """Returns the positions of a layer's kernel in the `sparse_execution` that is in force."""
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
            return sparse_conv(inputs, values, positions, window, layout="CHWN")
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
      ValueError: params hold another number of them, or the kernel.
    """
    # `param` would compare the shape with the dense kernel's, and a box would lay the vector out
    # by the names of the kernel's axes.
    leaves = jax.tree.leaves(layer.get_variable("params", "kernel"))
    shape = jnp.shape(leaves[0]) if len(leaves) == 1 else "none"
    if shape != (positions.capacity,):
        hint = "; a stack (nn.scan, nn.vmap) has no sparse form" if is_stacked(layer) else ""
        num = positions.capacity
        raise ValueError(
            f"{path} has shape {shape} in params, its positions have capacity for {num}{hint}"
        )
    values = jnp.asarray(leaves[0])
    return values if scale is None else values * scale


def variable_of(layer: nn.Module, collection: str, name: str) -> jax.Array:
    """Returns a variable of a layer as it is used, out of its box."""
    return jnp.asarray(nn.meta.unbox(layer.get_variable(collection, name)))


def _with_bias(layer: nn.Conv | nn.Dense, outputs: jax.Array) -> jax.Array:
    if not layer.use_bias:
        return outputs
    bias = variable_of(layer, "params", "bias")
    return outputs + bias.reshape((1,) * (outputs.ndim - 1) + bias.shape)
