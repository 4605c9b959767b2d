"""A graph of ONNX nodes under construction, without the package onnx.

JAX's arrays are tensors of the graph with two liberties, so that few nodes only move data:

    order   A tensor may store the axes in another order. A convolution of ONNX wants and gives
            [batch, channels, height, width]; the norm, shortcut and ReLU after it take that order
            as it is, and the next convolution finds it. `transpose` costs nothing.
    stored  An axis that an array is broadcast along may be stored with size 1, since ONNX
            broadcasts by itself. A bias for images is [1, 1, 1, channels], whatever their number.

Both end where an operation needs the array as JAX has it (`read` and `full`).
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np

Size: TypeAlias = Any
"""Of an axis: an int, or the symbolic size of a batch."""


class Tensor(NamedTuple):
    """What is known of an array of the function.

    Attributes:
      data: a constant, with the sizes `stored` and its axes in JAX's order; or the name of the
        tensor in the graph.
      shape: sizes of the array in JAX.
      stored: sizes that are stored, by axis of `shape`: its sizes, or 1.
      order: axis of `shape` that each stored axis is; for a constant always (0, 1, ...).
      dtype: of the array.
      label: path of the variable that a constant is, in this or in another shape; or empty.
    """

    data: Any
    shape: tuple[Size, ...]
    stored: tuple[Size, ...]
    order: tuple[int, ...]
    dtype: np.dtype
    label: str = ""

    @property
    def is_constant(self) -> bool:
        """Whether the array does not depend on the inputs."""
        return not isinstance(self.data, str)

    @property
    def is_full(self) -> bool:
        """Whether every axis is stored with its size."""
        return self.stored == self.shape


class Node(NamedTuple):
    """A node: operator, names of its inputs and outputs, attributes (dtypes as NumPy's)."""

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any]


def constant(value: Any, label: str = "") -> Tensor:
    """Returns a constant with its own shape."""
    shape = tuple(value.shape)
    return Tensor(value, shape, shape, tuple(range(len(shape))), value.dtype, label)


def is_one(size: Size) -> bool:
    """Whether a size is 1; that of a batch is not."""
    return isinstance(size, int) and size == 1


class Graph:
    """Nodes and constants, in the order in which they were added."""

    def __init__(self, batch: Size | None = None):
        """Starts an empty graph.

        Args:
          batch: symbolic size of the batch; None if all sizes are known.
        """
        self.batch = batch
        self.inputs: list[tuple[str, Tensor]] = []
        self.outputs: list[tuple[str, Tensor]] = []
        self.nodes: list[Node] = []
        self.constants: dict[str, np.ndarray] = {}
        self._names: set[str] = set()
        self._known: dict[Any, str] = {}  # what was added already, by what it is made from
        self._alive: list[Any] = []  # the arrays that `_known` tells apart by their ids

    def add_input(self, name: str, shape: Sequence[Size], dtype: np.dtype) -> Tensor:
        """Adds an input and returns its tensor."""
        shape = tuple(shape)
        tensor = Tensor(self._unique(name), shape, shape, tuple(range(len(shape))), dtype)
        self.inputs.append((tensor.data, tensor))
        return tensor

    def add_output(self, name: str, x: Tensor) -> None:
        """Adds an output, as JAX has it."""
        source, name = self.read(self.full(x)), self._unique(name)
        self.nodes.append(Node("Identity", (source,), (name,), {}))
        self.outputs.append((name, x))

    def node(self, op: str, *inputs: str, **attributes: Any) -> str:
        """Adds a node of one output, whose name it returns; a node that is there is used again."""
        key = (op, inputs, tuple((name, str(value)) for name, value in attributes.items()))
        if key not in self._known:
            (self._known[key],) = self.nodes_of(op, inputs, 1, attributes)
        return self._known[key]

    def nodes_of(
        self, op: str, inputs: Iterable[str], num_outputs: int, attributes: dict[str, Any]
    ) -> tuple[str, ...]:
        """Adds a node of several outputs, whose names it returns."""
        outputs = tuple(self._unique(op.lower()) for _ in range(num_outputs))
        self.nodes.append(Node(op, tuple(inputs), outputs, attributes))
        return outputs

    def apply(self, op: str, *operands: Tensor, dtype: Any = None, **attributes: Any) -> Tensor:
        """Adds an operator that takes entry by entry, of operands of one shape or without axes.

        Args:
          op: name of the operator.
          *operands: its inputs.
          dtype: of the result; None for that of the last operand.
          **attributes: of the operator.
        """
        ranked = [x for x in operands if x.shape]
        # The operand that would be the most work to move keeps its order.
        moved = lambda x: (not x.is_constant, sum(not is_one(n) for n in x.stored))
        lead = max(ranked or operands, key=moved)
        stored = tuple(
            size if any(not is_one(x.stored[axis]) for x in ranked) else 1
            for axis, size in enumerate(lead.shape)
        )
        names = [self.read(x, lead.order if x.shape else ()) for x in operands]
        dtype = operands[-1].dtype if dtype is None else np.dtype(dtype)
        return Tensor(self.node(op, *names, **attributes), lead.shape, stored, lead.order, dtype)

    def read(self, x: Tensor, order: Sequence[int] | None = None) -> str:
        """Returns the name of a tensor that stores the axes in the given order, by default JAX's.

        Axes that are stored with size 1 stay so.
        """
        order = tuple(range(len(x.shape)) if order is None else order)
        if x.is_constant:
            return self._constant(np.asarray(x.data).transpose(order), x, order)
        if order == x.order:
            return x.data
        return self.node("Transpose", x.data, perm=[x.order.index(axis) for axis in order])

    def full(self, x: Tensor) -> Tensor:
        """Returns the tensor with every axis stored with its size."""
        if x.is_full:
            return x
        is_static = all(isinstance(size, int) for size in x.shape)
        if x.is_constant and is_static:
            return constant(np.broadcast_to(x.data, x.shape))
        sizes = self.sizes([x.shape[axis] for axis in x.order])
        name = self.node("Expand", self.read(x, x.order), sizes)
        return x._replace(data=name, stored=x.shape, label="")

    def reshaped(self, name: str, sizes: Sequence[Size]) -> str:
        """Adds a `Reshape` of a stored tensor to other sizes.

        Raises:
          ValueError: more than one of the sizes depends on the batch.
        """
        symbolic = [size for size in sizes if not isinstance(size, int)]
        if len(symbolic) > 1:
            raise ValueError(f"a reshape to {tuple(sizes)} has several sizes of the batch")
        known = [size if isinstance(size, int) else -1 for size in sizes]
        return self.node("Reshape", name, self.integers(known))

    def integers(self, values: Iterable[int]) -> str:
        """Returns the name of a constant int64 vector."""
        values = tuple(int(value) for value in values)
        if ("integers", values) not in self._known:
            name = self._unique("integers")
            self._known["integers", values] = name
            self.constants[name] = np.asarray(values, np.int64).reshape(len(values))
        return self._known["integers", values]

    def sizes(self, sizes: Sequence[Size]) -> str:
        """Returns the name of an int64 vector of sizes, some of which may be that of the batch.

        Raises:
          ValueError: a size depends on that of the batch in another way.
        """
        if all(isinstance(size, int) for size in sizes):
            return self.integers(sizes)
        for size in sizes:
            if not isinstance(size, int) and size != self.batch:
                raise ValueError(f"an array of shape {tuple(sizes)} depends on the batch by {size}")
        source = next(name for name, x in self.inputs if x.shape and x.shape[0] == self.batch)
        batch = self.node("Shape", source, start=0, end=1)
        parts = [self.integers([n]) if isinstance(n, int) else batch for n in sizes]
        return batch if len(parts) == 1 else self.node("Concat", *parts, axis=0)

    def like(self, x: Tensor, value: float) -> Tensor:
        """Returns a number as a constant of a tensor's dtype."""
        return constant(np.asarray(value, x.dtype))

    def finish(self) -> None:
        """Leaves out nodes and constants that no output needs."""
        needed, kept = {name for name, _ in self.outputs}, []
        for node in reversed(self.nodes):
            if needed & {*node.outputs}:
                needed |= {*node.inputs}
                kept.append(node)
        self.nodes = kept[::-1]
        self.constants = {name: x for name, x in self.constants.items() if name in needed}

    def _constant(self, stored: np.ndarray, x: Tensor, order: tuple[int, ...]) -> str:
        # Numbers are told apart by value, arrays by identity: a kernel may be read in two orders.
        one = stored.size == 1
        key = (stored.dtype, stored.shape, stored.tobytes()) if one else (id(x.data), order)
        if ("constant", key) not in self._known:
            name = self._unique(x.label or "constant")
            self._known["constant", key] = name
            self._alive.append(x.data)
            self.constants[name] = np.ascontiguousarray(stored).reshape(stored.shape)
        return self._known["constant", key]

    def _unique(self, name: str) -> str:
        found, number = name, 0
        while found in self._names:
            number += 1
            found = f"{name}_{number}"
        self._names.add(found)
        return found


def rearranged(
    graph: Graph, x: Tensor, axes: Sequence[int | None], shape: Sequence[Size]
) -> Tensor:
    """Returns the array with axes moved, left out or added.

    Args:
      graph: where nodes are added, if any are needed.
      x: the array.
      axes: for each axis of the result that of x, or None for one that is stored with size 1. Axes
        of x that are missing have size 1.
      shape: of the result.
    """
    axes, shape = list(axes), tuple(shape)
    kept = [axis for axis in axes if axis is not None]
    gone = [axis for axis in range(len(x.shape)) if axis not in kept]
    stored = tuple(1 if axis is None else x.stored[axis] for axis in axes)
    if x.is_constant:
        data = x.data.transpose(*kept, *gone).reshape(stored)
        return Tensor(data, shape, stored, tuple(range(len(shape))), x.dtype, x.label)
    name, added = x.data, [axis for axis, of in enumerate(axes) if of is None]
    order = [axes.index(axis) for axis in x.order if axis not in gone]
    if gone:
        positions = [x.order.index(axis) for axis in gone]
        name = graph.node("Squeeze", name, graph.integers(positions))
    if added:
        in_place = order == sorted(order)
        order = list(range(len(axes))) if in_place else added + order
        positions = added if in_place else range(len(added))
        name = graph.node("Unsqueeze", name, graph.integers(positions))
    return Tensor(name, shape, stored, tuple(order), x.dtype)
