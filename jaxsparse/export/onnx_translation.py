"""A function's jaxpr as a graph of ONNX nodes.

What depends on variables alone is computed here and becomes a constant, such as the factor of a
norm, scale / sqrt(variance + epsilon). Every other equation is translated by the rule of its
primitive. Calls are entered; branches and loops have no rule.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from jaxsparse.export.onnx_entries import ENTRIES
from jaxsparse.export.onnx_graph import Graph, Tensor, constant, is_one
from jaxsparse.export.onnx_layers import LAYERS
from jaxsparse.export.onnx_shapes import KEPT, SHAPES
from jaxsparse.paths import leaf_paths, listed
from jaxsparse.processes import whole
from jaxsparse.tracing.jaxprs import CallAnalysis, walk
from jaxsparse.tracing.primitives import ELEMENTWISE
from jaxsparse.types import PyTree

_RULES = {**ENTRIES, **SHAPES, **LAYERS}


def translated(
    apply_fn: Callable[[PyTree, Any], Any], variables: PyTree, inputs: Any, *, symbolic_batch: bool
) -> Graph:
    """Returns the graph of a function of (variables, inputs), with the variables as constants.

    Args:
      apply_fn: the function.
      variables: any pytree of arrays; a constant is named by the path of its leaf.
      inputs: any pytree of arrays or `jax.ShapeDtypeStruct`. One without a name is "input".
      symbolic_batch: whether the first axis of every input is a batch of any size.

    Raises:
      ValueError: an operation has no node, or the function asks for the size of the batch.
    """
    (batch,) = jax.export.symbolic_shape("batch") if symbolic_batch else (None,)
    specs = jax.tree.map(lambda x: _spec(x, batch), inputs)
    closed, outputs = _traced(apply_fn, variables, specs, symbolic_batch)
    graph = Graph(batch)
    weights = [
        constant(_array(leaf), label)
        for label, leaf in zip(leaf_paths(variables), jax.tree.leaves(variables), strict=True)
    ]
    entries = [
        graph.add_input(name, spec.shape, np.dtype(spec.dtype))
        for name, spec in zip(_names("input", inputs), jax.tree.leaves(specs), strict=True)
    ]
    results = walk(closed, [*weights, *entries], _Translation(graph))
    for name, result in zip(_names("output", outputs), results, strict=True):
        graph.add_output(name, result)
    graph.finish()
    return graph


def _spec(x: Any, batch: Any) -> jax.ShapeDtypeStruct:
    shape = tuple(np.shape(x))
    if batch is not None:
        if not shape:
            raise ValueError("an input is a number, without a batch; pass symbolic_batch=False")
        shape = (batch, *shape[1:])
    return jax.ShapeDtypeStruct(shape, jax.numpy.result_type(x))


def _traced(
    apply_fn: Callable[[PyTree, Any], Any], variables: PyTree, specs: Any, symbolic_batch: bool
) -> tuple[Any, Any]:
    trace = jax.make_jaxpr(apply_fn, return_shape=True)
    try:
        return trace(variables, specs)
    except Exception as error:
        said = str(error).partition("\n")[0]
        # A symbolic size was compared, or used as a number: a TypeError of Python that names it.
        asks = isinstance(error, jax.errors.InconclusiveDimensionOperation) or "_DimExpr" in said
        if not symbolic_batch or not asks:
            raise
        raise ValueError(
            f"the function needs to know the size of the batch ({said}); write x.shape[0] for "
            "len(x), or pass symbolic_batch=False for the size that the example has"
        ) from error


def _array(leaf: Any) -> Any:
    """The leaf on the host; random keys, which only JAX has, as they are."""
    if isinstance(leaf, jax.Array) and jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return leaf
    if isinstance(leaf, bool | int | float | complex):
        return np.asarray(leaf, jax.numpy.result_type(leaf))
    return np.asarray(whole(leaf))


def _names(name: str, tree: Any) -> list[str]:
    return [f"{name}/{path}" if path else name for path in leaf_paths(tree)]


class _Translation(CallAnalysis[Tensor]):
    """Adds the nodes of each equation; what is known of an array is its tensor."""

    def __init__(self, graph: Graph):
        self._graph = graph

    def constant(self, atom: Any, value: Any) -> Tensor:
        if jax.numpy.issubdtype(atom.aval.dtype, jax.dtypes.prng_key):
            return constant(value)
        return constant(np.asarray(value, atom.aval.dtype))

    def operation(self, eqn: Any, operands: list[Tensor]) -> Sequence[Tensor]:
        name = eqn.primitive.name
        if name not in KEPT and all(x.is_constant for x in operands):
            computed = _computed(eqn, operands)
            if computed is not None:
                return computed
        rule = _RULES.get(name)
        if rule is None:
            of = listed((str(var.aval) for var in eqn.invars), most=3)
            raise ValueError(f"no ONNX node is known for the primitive {name} (of {of})")
        results = rule(self._graph, eqn, *operands)
        return results if isinstance(results, list) else [results]


def _computed(eqn: Any, operands: Sequence[Tensor]) -> list[Tensor] | None:
    """The results of an equation of constants; None if their sizes depend on the batch."""
    if eqn.primitive.name in ELEMENTWISE:
        (result,) = (var.aval for var in eqn.outvars)
        return [_entrywise(eqn, operands, tuple(result.shape))]
    sizes = [size for x in operands for size in x.shape]
    sizes += [size for var in eqn.outvars for size in var.aval.shape]
    if not all(isinstance(size, int) for size in sizes):
        return None
    return [constant(array) for array in _bound(eqn, [_whole(x) for x in operands])]


def _whole(x: Tensor) -> Any:
    """Returns the whole array of a constant."""
    return x.data if x.is_full else np.broadcast_to(x.data, x.shape)


def _entrywise(eqn: Any, operands: Sequence[Tensor], shape: tuple[Any, ...]) -> Tensor:
    """Computes what is stored, and leaves axes of size 1 to be broadcast."""
    ranked = [x for x in operands if x.shape]
    stored = tuple(
        size if any(not is_one(x.stored[axis]) for x in ranked) else 1
        for axis, size in enumerate(shape)
    )
    arrays = [np.broadcast_to(x.data, stored) if x.shape else x.data for x in operands]
    (array,) = _bound(eqn, arrays)
    order = tuple(range(len(shape)))
    return Tensor(array, shape, stored, order, array.dtype)


def _bound(eqn: Any, arrays: Sequence[Any]) -> list[Any]:
    results = eqn.primitive.bind(*map(jax.numpy.asarray, arrays), **eqn.params)
    results = results if eqn.primitive.multiple_results else [results]
    return [_array(result) for result in results]
