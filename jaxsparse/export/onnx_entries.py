"""JAX's elementwise primitives as nodes of ONNX."""

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from jax import lax

from jaxsparse.export.onnx_graph import Graph, Tensor, constant

Rule: TypeAlias = Callable[..., Any]
"""Of (graph, equation, *operands): adds nodes, and returns the result or a list of results."""

# The operator does the same.
_SAME = {
    "abs": "Abs",
    "acos": "Acos",
    "acosh": "Acosh",
    "add": "Add",
    "add_any": "Add",
    "asin": "Asin",
    "asinh": "Asinh",
    "atan": "Atan",
    "atanh": "Atanh",
    "ceil": "Ceil",
    "cos": "Cos",
    "cosh": "Cosh",
    "div": "Div",
    "erf": "Erf",
    "exp": "Exp",
    "floor": "Floor",
    "log": "Log",
    "logistic": "Sigmoid",
    "min": "Min",
    "mul": "Mul",
    "neg": "Neg",
    "sign": "Sign",
    "sin": "Sin",
    "sinh": "Sinh",
    "sqrt": "Sqrt",
    "tan": "Tan",
    "tanh": "Tanh",
}
_COMPARED = {
    "eq": "Equal",
    "ge": "GreaterOrEqual",
    "gt": "Greater",
    "le": "LessOrEqual",
    "lt": "Less",
}
_LOGICAL = {"and": "And", "not": "Not", "or": "Or", "xor": "Xor"}
_IDENTITIES = ("copy", "copy_p", "name", "reduce_precision", "stop_gradient")


def _same(op: str) -> Rule:
    return lambda graph, eqn, *operands: graph.apply(op, *operands)


def _compared(op: str) -> Rule:
    return lambda graph, eqn, *operands: graph.apply(op, *operands, dtype=np.bool_)


def _logical(op: str) -> Rule:
    def rule(graph: Graph, eqn: Any, *operands: Tensor) -> Tensor:
        bitwise = "" if operands[0].dtype == np.bool_ else "Bitwise"
        return graph.apply(bitwise + op, *operands)

    return rule


def _identity(graph: Graph, eqn: Any, x: Tensor) -> Tensor:
    del graph, eqn
    return x


def _subtract(graph: Graph, eqn: Any, x: Tensor, y: Tensor) -> Tensor:
    # Equal to the bit, and ONNX Runtime folds a sum with a constant into the convolution before it.
    if y.is_constant and np.issubdtype(y.dtype, np.floating):
        label = f"{y.label}/negative" if y.label else ""
        return graph.apply("Add", x, y._replace(data=-y.data, label=label))
    return graph.apply("Sub", x, y)


def _maximum(graph: Graph, eqn: Any, x: Tensor, y: Tensor) -> Tensor:
    for one, other in ((x, y), (y, x)):
        if _is_zero(one) and np.issubdtype(other.dtype, np.floating):
            return graph.apply("Relu", other)  # runtimes fuse it with the layer before it
    return graph.apply("Max", x, y)


def _is_zero(x: Tensor) -> bool:
    return x.is_constant and np.size(x.data) == 1 and not np.any(x.data)


def _select(graph: Graph, eqn: Any, which: Tensor, *cases: Tensor) -> Tensor:
    if which.dtype != np.bool_ or len(cases) != 2:
        raise ValueError(
            f"select_n chooses among {len(cases)} cases by {which.dtype}; ONNX has 2 cases by bool"
        )
    return graph.apply("Where", which, cases[1], cases[0])


def _power(graph: Graph, eqn: Any, x: Tensor) -> Tensor:
    exponent = eqn.params["y"]
    if exponent not in (2, 3):
        return graph.apply("Pow", x, graph.like(x, exponent))
    squared = graph.apply("Mul", x, x)
    return squared if exponent == 2 else graph.apply("Mul", squared, x)


def _convert(graph: Graph, eqn: Any, x: Tensor) -> Tensor:
    dtype = np.dtype(eqn.params["new_dtype"])
    return x if dtype == x.dtype else graph.apply("Cast", x, dtype=dtype, to=dtype)


def _round(graph: Graph, eqn: Any, x: Tensor) -> Tensor:
    if eqn.params["rounding_method"] == lax.RoundingMethod.TO_NEAREST_EVEN:
        return graph.apply("Round", x)
    size = graph.apply("Floor", graph.apply("Add", graph.apply("Abs", x), graph.like(x, 0.5)))
    return graph.apply("Mul", graph.apply("Sign", x), size)


def _is_finite(graph: Graph, eqn: Any, x: Tensor) -> Tensor:
    largest = constant(np.asarray(np.inf, x.dtype))
    return graph.apply("Less", graph.apply("Abs", x), largest, dtype=np.bool_)


ENTRIES: dict[str, Rule] = {
    **{name: _same(op) for name, op in _SAME.items()},
    **{name: _compared(op) for name, op in _COMPARED.items()},
    **{name: _logical(op) for name, op in _LOGICAL.items()},
    **dict.fromkeys(_IDENTITIES, _identity),
    "clamp": lambda graph, eqn, low, x, high: graph.apply("Min", graph.apply("Max", x, low), high),
    "convert_element_type": _convert,
    "erfc": lambda graph, eqn, x: graph.apply("Sub", graph.like(x, 1), graph.apply("Erf", x)),
    "exp2": lambda graph, eqn, x: graph.apply("Pow", graph.like(x, 2), x),
    # Near 0 these two lose relative, not absolute precision.
    "expm1": lambda graph, eqn, x: graph.apply("Sub", graph.apply("Exp", x), graph.like(x, 1)),
    "log1p": lambda graph, eqn, x: graph.apply("Log", graph.apply("Add", x, graph.like(x, 1))),
    "integer_pow": _power,
    "is_finite": _is_finite,
    "max": _maximum,
    "ne": lambda graph, eqn, *operands: graph.apply(
        "Not", graph.apply("Equal", *operands, dtype=np.bool_)
    ),
    "pow": lambda graph, eqn, x, y: graph.apply("Pow", x, y, dtype=x.dtype),
    "rem": lambda graph, eqn, *operands: graph.apply("Mod", *operands, fmod=1),
    "round": _round,
    "rsqrt": lambda graph, eqn, x: graph.apply("Reciprocal", graph.apply("Sqrt", x)),
    "select_n": _select,
    "square": lambda graph, eqn, x: graph.apply("Mul", x, x),
    "sub": _subtract,
}
