"""Flax linen models executed by their active weights, without a line of them rewritten."""

import contextlib
import contextvars
import math
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.linen.module import InterceptorContext
from jax import lax

from jaxsparse.sparse import LayerShape, Layout, Positions, Window, sparse_conv, sparse_dot
from jaxsparse.sparse.window import concrete

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
    weights in place of its kernel, the layer is executed by these. All others are as they were.

    Args:
      positions: by the path of the kernel, such as "Conv_0/kernel". Under `jit` make them an
        argument, as above: what is closed over is a constant of the compiled program, which after
        a mask update would take the new weights to the old positions.

    Raises:
      ValueError: in the call, a layer that has no sparse form: a dtype other than float32, more or
        fewer than two spatial axes, circular padding, dilation of the input, a mask or a product of
        its own, a subclass of `nn.Conv` or `nn.Dense`; or that is given something else than
        float32 images. Names its kernel's path.
    """

    def intercept(
        call: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        context: InterceptorContext,
    ) -> Any:
        layer = context.module
        if context.method_name != "__call__":
            return call(*args, **kwargs)
        path = "/".join([*layer.path, "kernel"])
        if path not in positions:
            return call(*args, **kwargs)
        if _is_conv(layer):
            return _conv(layer, path, positions[path], *args, **kwargs)
        if type(layer) is nn.Dense:
            return _dense(layer, path, positions[path], *args, **kwargs)
        raise ValueError(f"{path} belongs to a {type(layer).__name__}, which has no sparse form")

    token = _POSITIONS.set(positions)
    try:
        with nn.intercept_methods(intercept):
            yield
    finally:
        _POSITIONS.reset(token)


@contextlib.contextmanager
def of_layer(path: str) -> Iterator[None]:
    """Gives the errors of a kernel, which knows of no layers, the path of the layer's."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def positions_of_layer(layer: nn.Module) -> Positions | None:
    """Returns the positions of a layer's kernel in the `sparse_execution` that is in force."""
    return _POSITIONS.get().get("/".join([*layer.path, "kernel"]))


def layer_shapes(apply: Callable[..., Any], *args: Any) -> dict[str, LayerShape]:
    """Returns the layers that have a sparse form as `apply(*args)` calls them, by kernel path.

    Nothing is computed. Of a layer that is called several times the first call counts. Layers
    inside `nn.scan` or `nn.vmap`, whose kernels are stacked, have no sparse form: leave them out of
    what you choose from.

    Args:
      apply: calls a linen model, such as `model.apply`.
      *args: its arguments, arrays or `jax.ShapeDtypeStruct`.
    """
    return look_at_layers(apply, *args)[0]


def look_at_layers(
    apply: Callable[..., Any], *args: Any
) -> tuple[dict[str, LayerShape], dict[str, str]]:
    """Returns what `layer_shapes` does, and of modules without a sparse form why they have none."""
    found: dict[str, LayerShape] = {}
    others: dict[str, str] = {}

    def intercept(
        call: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        context: InterceptorContext,
    ) -> Any:
        layer = context.module
        path = "/".join([*layer.path, "kernel"])
        if context.method_name != "__call__" or path in found:
            return call(*args, **kwargs)
        if not _is_conv(layer) and type(layer) is not nn.Dense:
            others[path] = f"a {type(layer).__name__}"
        elif problem := _problem(layer):
            others[path] = problem
        else:
            found[path] = _shape_of(layer, path, *args, **kwargs)
        return call(*args, **kwargs)

    with nn.intercept_methods(intercept):
        jax.eval_shape(apply, *args)
    return found, others


def _is_conv(layer: Any) -> TypeGuard[nn.Conv]:
    """Whether it is a convolution that computes what linen's does: not any subclass, but ours."""
    return isinstance(layer, nn.Conv) and (type(layer) is nn.Conv or hasattr(layer, "layout"))


def _shape_of(
    layer: nn.Conv | nn.Dense, path: str, inputs: jax.Array, scale: jax.Array | None = None
) -> LayerShape:
    del scale  # of the kernel
    if isinstance(layer, nn.Dense):
        _check_layer(layer, path)
        rows, width = math.prod(inputs.shape[:-1]), inputs.shape[-1]
        return LayerShape((1, 1, rows, width), (1, 1, width, layer.features), Window((1, 1)))
    layout: Layout = getattr(layer, "layout", "NHWC")
    *batch, height, width, channels = inputs.shape
    if layout == "CHWN":
        channels, height, width, *batch = inputs.shape
    window = window_of(layer, path, (height, width))
    taps = concrete(window, (height, width)).taps
    kernel = (*taps, channels // window.groups, layer.features)
    return LayerShape((math.prod(batch), height, width, channels), kernel, window, layout)


def window_of(layer: nn.Conv, path: str, size: tuple[int, int]) -> Window:
    """Returns the window of a layer for images of some height and width.

    Raises:
      ValueError: the layer has no sparse form; says why, with its path.
    """
    _check_layer(layer, path)
    strides, dilation = _or_one(layer.strides), _or_one(layer.kernel_dilation)
    padding: Any = layer.padding  # as Flax's layers take it, so does a window
    window = Window(layer.kernel_size, strides, padding, dilation, layer.feature_group_count)
    with of_layer(path):
        return Window(*concrete(window, size))


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
    _check_layer(layer, path)
    values = values_of(layer, path, positions)
    with of_layer(path):
        outputs = sparse_dot(inputs, values, positions)
    return _with_bias(layer, outputs)


def _has_product(layer: Any) -> bool:
    plain = (None, lax.conv_general_dilated, lax.dot_general)  # linen's and NNX's own
    names = ("conv_general_dilated", "dot_general")
    given = [getattr(layer, name + end, None) for name in names for end in ("", "_cls")]
    return any(product not in plain for product in given)


def _check_layer(layer: nn.Conv | nn.Dense, path: str) -> None:
    if problem := _problem(layer):
        raise ValueError(f"{path} has {problem}; it cannot be executed sparsely")


def _problem(layer: nn.Conv | nn.Dense) -> str | None:
    """Why a convolution or dense layer has no sparse form; None where it has one."""
    if layer.dtype not in (None, jnp.float32):
        return f"dtype={jnp.dtype(layer.dtype)}"
    if _has_product(layer):
        return "a product of its own"
    if isinstance(layer, nn.Dense):
        return None
    num_axes = len(layer.kernel_size) if isinstance(layer.kernel_size, Sequence) else 1
    if num_axes != 2:
        return f"{num_axes} spatial axes, where sparse layers have two"
    if (np.asarray(_or_one(layer.input_dilation)) != 1).any():
        return f"input_dilation={layer.input_dilation}"
    if layer.padding in ("CIRCULAR", "REFLECT", "CAUSAL"):
        return f"padding={layer.padding!r}"
    return None if layer.mask is None else "a mask of its own"


def values_of(
    layer: nn.Module, path: str, positions: Positions, scale: jax.Array | None = None
) -> jax.Array:
    """Returns the active weights of a layer, times `scale` if given.

    Raises:
      ValueError: params hold another number of them, or the kernel.
    """
    # `param` would compare the shape with the dense kernel's.
    values = layer.get_variable("params", "kernel")
    if jnp.shape(values) != (positions.room,):
        raise ValueError(
            f"{path} has shape {jnp.shape(values)} in params, its positions have room for "
            f"{positions.room}"
        )
    return jnp.asarray(values) if scale is None else jnp.asarray(values) * scale


def _with_bias(layer: nn.Conv | nn.Dense, outputs: jax.Array) -> jax.Array:
    if not layer.use_bias:
        return outputs
    bias = jnp.asarray(layer.get_variable("params", "bias"))
    return outputs + bias.reshape((1,) * (outputs.ndim - 1) + bias.shape)


def _or_one(given: int | Sequence[int] | None) -> int | Sequence[int]:
    """What linen makes of nothing."""
    return 1 if given is None else given
