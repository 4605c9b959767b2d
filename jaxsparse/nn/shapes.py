"""What the layers of a linen model look like, and why some of them have no sparse form."""

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

from jaxsparse.paths import leaves_by_path
from jaxsparse.sparse import LayerShape, Layout, Window
from jaxsparse.sparse.window import concrete

# Lifted transformations as Flax writes them into the debug path of a scope, "scan(Block_0)".
_LIFTED = {
    "map_variables(": "params that nn.map_variables, nn.SpectralNorm or nn.WeightNorm changes",
    # It is compiled once, with the positions as constants.
    "jit(": "an nn.jit around it, which would keep its first positions: compile the whole instead",
}
_STACK = "a stack of layers, by nn.scan or nn.vmap"


@contextlib.contextmanager
def of_layer(path: str) -> Iterator[None]:
    """Prefixes a kernel's errors with the path of its layer."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def layer_shapes(apply: Callable[..., Any], *args: Any) -> dict[str, LayerShape]:
    """Returns the layers that have a sparse form as `apply(*args)` calls them, by kernel path.

    Nothing is computed. The first call of a layer counts. Layers without a sparse form are left
    out: those inside `nn.scan` or `nn.vmap` whose kernels are stacked, inside `nn.jit`, or whose
    params are changed on the way to them (`nn.SpectralNorm`); see also `sparse_execution`.

    Args:
      apply: calls a linen model, such as `model.apply`.
      *args: its arguments, arrays or `jax.ShapeDtypeStruct`; dense params.
    """
    return look_at_layers(apply, *args)[0]


def look_at_layers(
    apply: Callable[..., Any], *args: Any
) -> tuple[dict[str, LayerShape], dict[str, str]]:
    """Returns what `layer_shapes` does, and of modules without a sparse form why they have none."""
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
        # A function of its own: JAX may answer for one that it has traced, and would not call it.
        jax.eval_shape(lambda *args: apply(*args), *args)
    return found, {path: why for path, why in others.items() if path not in found}


def kernel_path(layer: nn.Module) -> str:
    """Returns the path that a layer's kernel has in params."""
    return "/".join([*layer.path, "kernel"])


def _form_of(
    layer: nn.Module, path: str, stored: Any, *args: Any, **kwargs: Any
) -> LayerShape | str:
    """The shape of a layer, or why it has no sparse form; `stored` is its kernel in params."""
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
    del scale  # of the kernel
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
    """Returns the window of a layer for images of some height and width.

    Raises:
      ValueError: the layer has no sparse form; says why, with its path.
    """
    check_layer(layer, path)
    strides, dilation = _or_one(layer.strides), _or_one(layer.kernel_dilation)
    padding: Any = layer.padding  # as Flax's layers take it, so does a window
    window = Window(layer.kernel_size, strides, padding, dilation, layer.feature_group_count)
    with of_layer(path):
        return Window(*concrete(window, size))


def is_conv(layer: Any) -> TypeGuard[nn.Conv]:
    """Whether it is a convolution that computes what linen's does: not any subclass, but ours."""
    return isinstance(layer, nn.Conv) and (type(layer) is nn.Conv or hasattr(layer, "layout"))


def is_stacked(layer: nn.Module) -> bool:
    """Whether it is called by `nn.scan` or `nn.vmap`, which may cut its params from stacks."""
    return any(name in part for part in _debug_path(layer) for name in ("scan(", "vmap("))


def check_layer(layer: nn.Conv | nn.Dense, path: str) -> None:
    """Raises a ValueError where a convolution or dense layer has no sparse form."""
    if why := problem(layer):
        raise ValueError(f"{path} has {why}; it cannot be executed sparsely")


def problem(layer: nn.Conv | nn.Dense) -> str | None:
    """Returns why a convolution or dense layer has no sparse form; None where it has one."""
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
    """The path of a linen layer with the lifted transformations around it; () of an NNX layer."""
    return tuple(getattr(getattr(layer, "scope", None), "debug_path", ()))


def _has_product(layer: Any) -> bool:
    plain = (None, lax.conv_general_dilated, lax.dot_general)  # linen's and NNX's own
    names = ("conv_general_dilated", "dot_general")
    given = [getattr(layer, name + end, None) for name in names for end in ("", "_cls")]
    return any(product not in plain for product in given)


def _or_one(given: int | Sequence[int] | None) -> int | Sequence[int]:
    """What linen makes of nothing."""
    return 1 if given is None else given
