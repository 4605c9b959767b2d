"""JAX's products, convolutions and pooling as nodes of ONNX."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxsparse.export.onnx_entries import Rule
from jaxsparse.export.onnx_graph import Graph, Size, Tensor, is_one


def _product(graph: Graph, eqn: Any, x: Tensor, y: Tensor) -> Tensor:
    """`MatMul` of [batch, rows, inner] and [batch, inner, columns], with axes joined to get there.

    Without batch axes the rows may stay as many axes as they are, since `MatMul` broadcasts.
    """
    (x_inner, y_inner), (x_batch, y_batch) = eqn.params["dimension_numbers"]
    free = lambda z, used: [axis for axis in range(len(z.shape)) if axis not in used]
    rows, columns = free(x, {*x_inner, *x_batch}), free(y, {*y_inner, *y_batch})
    keeps_rows = not x_batch and bool(rows)
    if keeps_rows:
        left = _joined(graph, x, [[axis] for axis in rows] + [x_inner])
    else:
        left = _joined(graph, x, [*([axis] for axis in x_batch), rows, x_inner])
    right = _joined(graph, y, [*([axis] for axis in y_batch), y_inner, columns])
    shape, dtype = tuple(eqn.outvars[0].aval.shape), np.dtype(eqn.outvars[0].aval.dtype)
    name = graph.node("MatMul", left, right)
    if len(columns) != 1 or not (keeps_rows or len(rows) == 1):
        name = graph.reshaped(name, shape)
    result = Tensor(name, shape, shape, tuple(range(len(shape))), x.dtype)
    return result if dtype == x.dtype else graph.apply("Cast", result, dtype=dtype, to=dtype)


def _joined(graph: Graph, x: Tensor, groups: Sequence[Sequence[int]]) -> str:
    """The name of a tensor with one axis for each group of x's axes, the last one fastest."""
    x, order = graph.full(x), [axis for group in groups for axis in group]
    if all(len(group) == 1 for group in groups):
        return graph.read(x, order)
    sizes = [math.prod(x.shape[axis] for axis in group) for group in groups]
    if x.is_constant:
        return graph.read(_matrix(x, order, sizes))
    return graph.reshaped(graph.read(x, order), sizes)


def _matrix(x: Tensor, order: Sequence[int], sizes: Sequence[Size]) -> Tensor:
    shape = tuple(sizes)
    data = x.data.transpose(order).reshape(shape)
    return Tensor(data, shape, shape, tuple(range(len(shape))), x.dtype, x.label)


def _convolution(graph: Graph, eqn: Any, x: Tensor, kernel: Tensor) -> Tensor:
    params = eqn.params
    numbers, pads = params["dimension_numbers"], params["padding"]
    if params["batch_group_count"] != 1:
        raise ValueError("a convolution in groups of the batch has no node")
    if any(factor != 1 for factor in params["lhs_dilation"]):
        raise ValueError(f"a transposed convolution (by {params['lhs_dilation']}) has no node here")
    if any(amount < 0 for pair in pads for amount in pair):
        raise ValueError(f"a convolution with negative padding {pads} has no node")
    x, kernel = graph.full(x), graph.full(kernel)
    name = graph.node(
        "Conv",
        graph.read(x, numbers.lhs_spec),
        graph.read(kernel, numbers.rhs_spec),
        kernel_shape=[int(kernel.shape[axis]) for axis in numbers.rhs_spec[2:]],
        strides=list(params["window_strides"]),
        pads=[pair[side] for side in range(2) for pair in pads],
        dilations=list(params["rhs_dilation"]),
        group=params["feature_group_count"],
    )
    shape, dtype = tuple(eqn.outvars[0].aval.shape), np.dtype(eqn.outvars[0].aval.dtype)
    result = Tensor(name, shape, shape, tuple(numbers.out_spec), x.dtype)
    return result if dtype == x.dtype else graph.apply("Cast", result, dtype=dtype, to=dtype)


def _max_pool(graph: Graph, eqn: Any, x: Tensor) -> Tensor:
    return _pool(graph, eqn, x, "MaxPool", dilations=eqn.params["window_dilation"])


def _sum_pool(graph: Graph, eqn: Any, x: Tensor) -> Tensor:
    if any(factor != 1 for factor in eqn.params["window_dilation"]):
        raise ValueError("a sum over windows with gaps has no node")
    means = _pool(graph, eqn, x, "AveragePool", count_include_pad=1)
    return graph.apply("Mul", means, graph.like(x, math.prod(eqn.params["window_dimensions"])))


def _pool(graph: Graph, eqn: Any, x: Tensor, op: str, **attributes: Any) -> Tensor:
    params, x = eqn.params, graph.full(x)
    if any(factor != 1 for factor in params["base_dilation"]):
        raise ValueError(
            f"a window over an array with gaps ({params['base_dilation']}) has no node"
        )
    window, strides, pads = (
        params[name] for name in ("window_dimensions", "window_strides", "padding")
    )
    alone = [
        axis
        for axis in range(len(x.shape))
        if is_one(window[axis]) and is_one(strides[axis]) and tuple(pads[axis]) == (0, 0)
    ]
    if len(alone) < 2:
        raise ValueError(f"a window {window} needs two axes to itself, as batch and channels are")
    is_ready = {*x.order[:2]} <= {*alone}
    order = x.order if is_ready else (*alone, *(a for a in x.order if a not in alone))
    spatial = order[2:]
    if "dilations" in attributes:
        attributes["dilations"] = [attributes["dilations"][axis] for axis in spatial]
    name = graph.node(
        op,
        graph.read(x, order),
        kernel_shape=[window[axis] for axis in spatial],
        strides=[strides[axis] for axis in spatial],
        pads=[pads[axis][side] for side in range(2) for axis in spatial],
        **attributes,
    )
    shape = tuple(eqn.outvars[0].aval.shape)
    return Tensor(name, shape, shape, tuple(order), x.dtype)


LAYERS: dict[str, Rule] = {
    "conv_general_dilated": _convolution,
    "dot_general": _product,
    "reduce_window_max": _max_pool,
    "reduce_window_sum": _sum_pool,
}
