"""JAX's primitives that move, pick, join or reduce along axes, as nodes of ONNX."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jax import lax

from jaxsparse.export.onnx_entries import Rule
from jaxsparse.export.onnx_graph import Graph, Size, Tensor, constant, is_one, rearranged

_END = np.iinfo(np.int64)


def _transpose(graph: Graph, eqn: Any, x: Tensor) -> Tensor:
    axes = eqn.params["permutation"]
    return rearranged(graph, x, axes, [x.shape[axis] for axis in axes])


def _squeeze(graph: Graph, eqn: Any, x: Tensor) -> Tensor:
    axes = [axis for axis in range(len(x.shape)) if axis not in eqn.params["dimensions"]]
    return rearranged(graph, x, axes, [x.shape[axis] for axis in axes])


def _broadcast(graph: Graph, eqn: Any, x: Tensor, *sizes: Tensor) -> Tensor:
    del sizes  # of the batch, as the shape has them
    places = {place: axis for axis, place in enumerate(eqn.params["broadcast_dimensions"])}
    shape = eqn.params["shape"]
    return rearranged(graph, x, [places.get(place) for place in range(len(shape))], shape)


def _tile(graph: Graph, eqn: Any, x: Tensor, *sizes: Tensor) -> Tensor:
    del sizes
    times, shape = eqn.params["reps"], tuple(eqn.outvars[0].aval.shape)
    if all(is_one(size) or is_one(n) for size, n in zip(x.shape, times, strict=True)):
        return x._replace(shape=shape)  # a broadcast, such as of a class token to the batch
    if not all(isinstance(n, int) for n in times):
        raise ValueError(f"tile repeats an array {times} times, which depends on the batch")
    x = graph.full(x)
    name = graph.node("Tile", graph.read(x, x.order), graph.integers(times[a] for a in x.order))
    return Tensor(name, shape, shape, x.order, x.dtype)


def _reshape(graph: Graph, eqn: Any, x: Tensor, *sizes: Tensor) -> Tensor:
    del sizes
    shape = tuple(eqn.params["new_sizes"])
    if eqn.params["dimensions"] is not None:
        raise ValueError(f"a reshape in the order {eqn.params['dimensions']} has no node")
    longer = [axis for axis, size in enumerate(x.shape) if not is_one(size)]
    if [x.shape[axis] for axis in longer] == [size for size in shape if not is_one(size)]:
        left = iter(longer)
        return rearranged(graph, x, [None if is_one(n) else next(left) for n in shape], shape)
    x = graph.full(x)
    if x.is_constant:
        return constant(x.data.reshape(shape))._replace(label=x.label)
    name = graph.reshaped(graph.read(x), shape)
    return Tensor(name, shape, shape, tuple(range(len(shape))), x.dtype)


def _iota(graph: Graph, eqn: Any, *sizes: Tensor) -> Tensor:
    del sizes
    shape, axis = eqn.params["shape"], eqn.params["dimension"]
    if not isinstance(shape[axis], int):
        raise ValueError(f"iota counts along an axis of size {shape[axis]}, which is not known")
    numbers = np.arange(shape[axis], dtype=eqn.params["dtype"])
    return rearranged(
        graph,
        constant(numbers),
        [0 if place == axis else None for place in range(len(shape))],
        shape,
    )


def _batch(graph: Graph, eqn: Any) -> Tensor:
    """The size of the batch as a number."""
    dtype = np.dtype(eqn.outvars[0].aval.dtype)
    size = graph.node("Squeeze", graph.sizes([eqn.params["dim"]]))
    return graph.apply("Cast", Tensor(size, (), (), (), np.dtype(np.int64)), dtype=dtype, to=dtype)


def _slice(graph: Graph, eqn: Any, x: Tensor) -> Tensor:
    params, shape = eqn.params, eqn.outvars[0].aval.shape
    strides = params["strides"] or [1] * len(shape)
    return _sliced(graph, x, params["start_indices"], params["limit_indices"], strides, shape)


def _dynamic_slice(graph: Graph, eqn: Any, x: Tensor, *starts: Tensor) -> Tensor:
    shape = eqn.outvars[0].aval.shape
    firsts = []
    for start, size, whole in zip(starts, shape, x.shape, strict=True):
        if size != whole and not start.is_constant:
            raise ValueError("dynamic_slice starts where the inputs say; only fixed places can")
        # A slice that would leave the array is moved into it.
        firsts.append(0 if size == whole else int(np.clip(int(start.data), 0, whole - size)))
    ends = [first + size for first, size in zip(firsts, shape, strict=True)]
    return _sliced(graph, x, firsts, ends, [1] * len(shape), shape)


def _sliced(
    graph: Graph,
    x: Tensor,
    starts: Sequence[Size],
    ends: Sequence[Size],
    strides: Sequence[int],
    shape: Sequence[Size],
) -> Tensor:
    whole = list(zip([0] * len(shape), x.shape, [1] * len(shape), strict=True))
    parts = list(zip(starts, ends, strides, strict=True))
    axes = [axis for axis, part in enumerate(parts) if part != whole[axis]]
    if not axes:
        return x
    for axis in axes:
        if not all(isinstance(size, int) for size in parts[axis][:2]):
            raise ValueError(f"a slice of axis {axis} depends on the size of the batch")
    x = graph.full(x)
    bounds = [graph.integers(parts[axis][i] for axis in axes) for i in range(2)]
    places = graph.integers(x.order.index(axis) for axis in axes)
    steps = graph.integers(strides[axis] for axis in axes)
    name = graph.node("Slice", graph.read(x, x.order), *bounds, places, steps)
    return Tensor(name, tuple(shape), tuple(shape), x.order, x.dtype)


def _reverse(graph: Graph, eqn: Any, x: Tensor) -> Tensor:
    x, axes = graph.full(x), eqn.params["dimensions"]
    bounds = [graph.integers([bound] * len(axes)) for bound in (-1, _END.min)]
    places = graph.integers(x.order.index(axis) for axis in axes)
    steps = graph.integers([-1] * len(axes))
    return x._replace(data=graph.node("Slice", graph.read(x, x.order), *bounds, places, steps))


def _concatenate(graph: Graph, eqn: Any, *parts: Tensor) -> Tensor:
    parts = tuple(graph.full(part) for part in parts)
    order = next((part.order for part in parts if not part.is_constant), parts[0].order)
    axis = order.index(eqn.params["dimension"])
    name = graph.node("Concat", *(graph.read(part, order) for part in parts), axis=axis)
    shape = eqn.outvars[0].aval.shape
    return Tensor(name, shape, shape, order, parts[0].dtype)


def _split(graph: Graph, eqn: Any, x: Tensor) -> list[Tensor]:
    x, sizes, axis = graph.full(x), eqn.params["sizes"], eqn.params["axis"]
    inputs = (graph.read(x, x.order), graph.integers(sizes))
    attributes = {"axis": x.order.index(axis)}
    names = graph.nodes_of("Split", inputs, len(sizes), attributes)
    shapes = [(*x.shape[:axis], size, *x.shape[axis + 1 :]) for size in sizes]
    return [
        Tensor(name, shape, shape, x.order, x.dtype)
        for name, shape in zip(names, shapes, strict=True)
    ]


def _pad(graph: Graph, eqn: Any, x: Tensor, value: Tensor) -> Tensor:
    widths = eqn.params["padding_config"]
    if any(inner for _, _, inner in widths):
        raise ValueError(f"pad puts entries between entries ({widths}), which has no node")
    x, shape = graph.full(x), eqn.outvars[0].aval.shape
    amounts = [widths[axis][side] for side in range(2) for axis in x.order]
    name = graph.node("Pad", graph.read(x, x.order), graph.integers(amounts), graph.read(value))
    return Tensor(name, shape, shape, x.order, x.dtype)


def _reduce(op: str) -> Rule:
    def rule(graph: Graph, eqn: Any, x: Tensor) -> Tensor:
        axes = eqn.params["axes"]
        if not axes:
            return x
        if any(x.stored[axis] != x.shape[axis] for axis in axes):
            x = graph.full(x)
        places = graph.integers(x.order.index(axis) for axis in axes)
        name = graph.node(op, graph.read(x, x.order), places, keepdims=0)
        return _without(x, axes)._replace(data=name, dtype=x.dtype)

    return rule


def _extreme(op: str) -> Rule:
    def rule(graph: Graph, eqn: Any, x: Tensor) -> Tensor:
        x, (axis,) = graph.full(x), eqn.params["axes"]
        place, dtype = x.order.index(axis), np.dtype(eqn.params["index_dtype"])
        name = graph.node(op, graph.read(x, x.order), axis=place, keepdims=0)
        found = _without(x, (axis,))._replace(data=name, dtype=np.dtype(np.int64))
        return graph.apply("Cast", found, dtype=dtype, to=dtype)

    return rule


def _without(x: Tensor, axes: Sequence[int]) -> Tensor:
    """What is stored of an array whose entries along axes were reduced to one."""
    kept = [axis for axis in range(len(x.shape)) if axis not in axes]
    return x._replace(
        shape=tuple(x.shape[axis] for axis in kept),
        stored=tuple(x.stored[axis] for axis in kept),
        order=tuple(kept.index(axis) for axis in x.order if axis in kept),
        label="",
    )


def _cumulative_sum(graph: Graph, eqn: Any, x: Tensor) -> Tensor:
    x = graph.full(x)
    place = graph.read(constant(np.asarray(x.order.index(eqn.params["axis"]), np.int64)))
    reverse = int(eqn.params["reverse"])
    return x._replace(data=graph.node("CumSum", graph.read(x, x.order), place, reverse=reverse))


def _gather(graph: Graph, eqn: Any, x: Tensor, places: Tensor) -> Tensor:
    """A slice, with entries at places along one axis: indexing by numbers and steps, embeddings.

    JAX gives NaN for a place outside of the array, or the nearest one; here it is an error of the
    runtime, except where JAX is asked for the nearest.
    """
    numbers, shape = eqn.params["dimension_numbers"], tuple(eqn.outvars[0].aval.shape)
    sizes, axes = tuple(eqn.params["slice_sizes"]), numbers.start_index_map
    rank, gone = len(places.shape) - 1, {*numbers.collapsed_slice_dims}
    starts, chosen = _starts(places, axes, gone)
    if numbers.operand_batching_dims or not chosen <= gone or len(chosen) > 1:
        raise ValueError("gather takes entries along several axes at once, which has no node")
    wanted = [
        (starts.get(axis, 0), x.shape[axis] if axis in chosen else size)
        for axis, size in enumerate(sizes)
    ]
    firsts = [
        first if size == whole else int(np.clip(first, 0, whole - size))
        for (first, size), whole in zip(wanted, x.shape, strict=True)
    ]
    ends = [first + size for first, (_, size) in zip(firsts, wanted, strict=True)]
    x = _sliced(graph, x, firsts, ends, [1] * len(sizes), [size for _, size in wanted])
    kept = [axis for axis in range(len(sizes)) if axis not in gone - chosen]
    x = rearranged(graph, x, kept, [x.shape[axis] for axis in kept])
    place = kept.index(*chosen) if chosen else len(kept)
    ends = [axis if axis < place else axis + rank for axis in range(len(shape) - rank)]
    if list(numbers.offset_dims) != ends:
        raise ValueError(f"gather has an output in the order {numbers.offset_dims}, without a node")
    if not chosen:
        return x
    (column,) = (number for number, axis in enumerate(axes) if axis in chosen)
    places = _column(graph, places, column, len(axes))
    if eqn.params["mode"] == lax.GatherScatterMode.CLIP:
        places = graph.apply("Max", graph.like(places, 0), places)
        places = graph.apply("Min", graph.like(places, x.shape[place] - 1), places)
    x = graph.full(x)
    name = graph.node("Gather", graph.read(x), graph.read(graph.full(places)), axis=place)
    return Tensor(name, shape, shape, tuple(range(len(shape))), x.dtype)


def _starts(places: Tensor, axes: Sequence[int], gone: set[int]) -> tuple[dict[int, int], set[int]]:
    """Returns the axes whose slices start at one known place, and those with several places."""
    if not (places.is_constant and places.is_full):
        return {}, {*axes}
    rows = places.data.reshape(-1, len(axes))
    several = {axis for axis, column in zip(axes, rows.T, strict=True) if len({*column}) != 1}
    if not several and len(places.shape) > 1:  # the same place again and again
        several = {next(axis for axis in axes if axis in gone)}
    first = rows[0] if len(rows) else [0] * len(axes)
    known = {axis: int(n) for axis, n in zip(axes, first, strict=True) if axis not in several}
    return known, several


def _column(graph: Graph, places: Tensor, column: int, num_columns: int) -> Tensor:
    if num_columns > 1:  # then they are constants
        return constant(np.ascontiguousarray(places.data[..., column]))
    return rearranged(graph, places, list(range(len(places.shape) - 1)), places.shape[:-1])


# Not computed even if their operands are constants: they keep the labels and stored sizes of
# constants, or depend on the batch.
KEPT: dict[str, Rule] = {
    "broadcast_in_dim": _broadcast,
    "dim_as_value": _batch,
    "iota": _iota,
    "reshape": _reshape,
    "squeeze": _squeeze,
    "tile": _tile,
    "transpose": _transpose,
}
SHAPES: dict[str, Rule] = {
    **KEPT,
    "argmax": _extreme("ArgMax"),
    "argmin": _extreme("ArgMin"),
    "concatenate": _concatenate,
    "cumsum": _cumulative_sum,
    "dynamic_slice": _dynamic_slice,
    "gather": _gather,
    "pad": _pad,
    "reduce_max": _reduce("ReduceMax"),
    "reduce_min": _reduce("ReduceMin"),
    "reduce_prod": _reduce("ReduceProd"),
    "reduce_sum": _reduce("ReduceSum"),
    "rev": _reverse,
    "slice": _slice,
    "split": _split,
}
