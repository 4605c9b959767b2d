"""Finds the shapes of a linen model's layers, and why some of them have no sparse form."""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.linen.module import InterceptorContext
from jax import lax

from jaxsparse.nn.preparing import prepare
from jaxsparse.paths import leaves_by_path
from jaxsparse.sparse import LayerShape, Layout, Window
from jaxsparse.sparse.window import concrete

# Lifted transformations without a sparse form, as Flax writes them into the debug path of a scope,
# such as "scan(Block_0)".
_LIFTED = {
    "map_variables(": "params that nn.map_variables, nn.SpectralNorm or nn.WeightNorm changes",
    # Flax compiles it once, with the positions as constants.
    "jit(": "an nn.jit around it, which would keep its first positions: compile the whole instead",
}
_STACK = "a stack of layers, by nn.scan or nn.vmap"


@contextlib.contextmanager
def of_layer(path: str) -> Iterator[None]:
    """Prefixes the errors of a kernel with the path of its layer."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def layer_shapes(apply: Callable[..., Any], *args: Any) -> dict[str, LayerShape]:
    """Returns the shapes of the layers that `apply(*args)` calls, by the path of the kernel.

    Nothing is computed. If a layer is called more than once, its first call counts. Layers without
    a sparse form are left out: those with stacked kernels inside `nn.scan` or `nn.vmap`, those
    inside `nn.jit`, and those whose params are changed on the way (`nn.SpectralNorm`). The whole
    list is in `sparse_execution`.

    Args:
      apply: calls a linen model, such as `model.apply`.
      *args: its arguments, with dense params; arrays or `jax.ShapeDtypeStruct`.
    """
    return look_at_layers(apply, *args)[0]


def look_at_layers(
    apply: Callable[..., Any], *args: Any
) -> tuple[dict[str, LayerShape], dict[str, str]]:
    """Returns the result of `layer_shapes`, and why other modules have no sparse form, by path."""
    found: dict[str, LayerShape] = {}
    others: dict[str, str] = {}
    stored: dict[str, Any] = {}

    def intercept(
        call: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        context: InterceptorContext,
    ) -> Any:
        layer = context.module
        prepare(layer)
        if not layer.path:
            stored.update(leaves_by_path(layer.variables.get("params", {})))
        path = kernel_path(layer)
        if context.method_name == "__call__" and path not in found:
            form = _form_of(layer, path, stored.get(path), *args, **kwargs)
            if isinstance(form, LayerShape):
                found[path] = form
            else:
                others[path] = form
        return call(*args, **kwargs)

    with nn.intercept_methods(intercept):
        # A new function: JAX would not call one that it has traced before.
        jax.eval_shape(lambda *args: apply(*args), *args)
    return found, {path: why for path, why in others.items() if path not in found}


def kernel_path(layer: nn.Module) -> str:
    """Returns the path of a layer's kernel in params."""
    return "/".join([*layer.path, "kernel"])


def _form_of(
    layer: nn.Module, path: str, stored: Any, *args: Any, **kwargs: Any
) -> LayerShape | str:
    """The shapes of a layer, or why it has no sparse form; `stored` is its kernel in params."""
    if not is_conv(layer) and type(layer) is not nn.Dense:
        return f"a {type(layer).__name__}"
    try:
        if why := problem(layer):
            return why
        shape = _shape_of(layer, path, *args, **kwargs)
    except ValueError as error:
        return str(error).removeprefix(f"{path}: ")
    kernel = shape.kernel if is_conv(layer) else shape.kernel[2:]
    if stored is not None and stored.shape != kernel:
        return _STACK if is_stacked(layer) else f"shape {stored.shape} in params"
    if stored is not None and stored.dtype != jnp.float32:
        return f"{stored.dtype} params"
    return shape


def _shape_of(
    layer: nn.Conv | nn.Dense, path: str, inputs: jax.Array, scale: jax.Array | None = None
) -> LayerShape:
    del scale  # a factor of the kernel
    if isinstance(layer, nn.Dense):
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
    """Returns the window of a layer for images of a height and width.

    Raises:
      ValueError: the layer has no sparse form; names its path and the reason.
    """
    check_layer(layer, path)
    strides, dilation = _or_one(layer.strides), _or_one(layer.kernel_dilation)
    padding: Any = layer.padding  # a window takes the same forms as a Flax layer
    window = Window(layer.kernel_size, strides, padding, dilation, layer.feature_group_count)
    with of_layer(path):
        return Window(*concrete(window, size))


def is_conv(layer: Any) -> TypeGuard[nn.Conv]:
    """Whether a layer is linen's convolution or ours; other subclasses may compute otherwise."""
    return isinstance(layer, nn.Conv) and (type(layer) is nn.Conv or hasattr(layer, "layout"))


def is_stacked(layer: nn.Module) -> bool:
    """Whether a layer is inside `nn.scan` or `nn.vmap`, which may slice its params from stacks."""
    return any(name in part for part in _debug_path(layer) for name in ("scan(", "vmap("))


def check_layer(layer: nn.Conv | nn.Dense, path: str) -> None:
    """Raises a ValueError if a convolution or dense layer has no sparse form."""
    if why := problem(layer):
        raise ValueError(f"{path} has {why}; it cannot be executed sparsely")


def problem(layer: nn.Conv | nn.Dense) -> str | None:
    """Returns why a convolution or dense layer has no sparse form; None if it has one."""
    if layer.dtype not in (None, jnp.float32):
        return f"dtype={jnp.dtype(layer.dtype)}"
    if _has_product(layer):
        return "a product of its own"
    for transform, why in _LIFTED.items():
        if any(transform in part for part in _debug_path(layer)):
            return why
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


def _debug_path(layer: Any) -> tuple[str, ...]:
    """The path of a linen layer with the lifted transformations around it; () for an NNX layer."""
    return tuple(getattr(getattr(layer, "scope", None), "debug_path", ()))


def _has_product(layer: Any) -> bool:
    plain = (None, lax.conv_general_dilated, lax.dot_general)  # linen's and NNX's own
    names = ("conv_general_dilated", "dot_general")
    given = [getattr(layer, name + end, None) for name in names for end in ("", "_cls")]
    return any(product not in plain for product in given)


def _or_one(given: int | Sequence[int] | None) -> int | Sequence[int]:
    """The value that linen takes for None."""
    return 1 if given is None else given
