"""Operations on arrays made from leaves: they find the axes of a leaf, keep it or lose it.

A product says what the axes of a leaf are. Other operations keep a leaf in sight, or lose it.
"""

import enum
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from jaxsparse.tracing.axis_views import (
    MOVES,
    View,
    axes_in_product,
    covers,
    has_any,
    merged,
    resized,
    split_stack,
    with_axis,
)
from jaxsparse.tracing.primitives import ELEMENTWISE
from jaxsparse.types import KernelAxes


class Source(enum.IntEnum):
    """The kind of array; a value computed from several kinds is of the highest."""

    CONSTANTS = 0
    WEIGHTS = 1
    DATA = 2


class Value(NamedTuple):
    """The leaves in an array of the jaxpr, as far as they are known.

    Attributes:
      views: by path, for the leaves that the array is made from and that are in sight.
      source: the highest kind that it depends on; DATA is the inputs.
    """

    views: Mapping[str, View]
    source: Source


class Found(NamedTuple):
    """The record that the walk fills in.

    Attributes:
      num_axes: of every leaf.
      uses: by path, the different axes that products gave the leaf, or why one gave it none. They
        are the keys of a dict, which keeps their order.
      others: by path, why the leaf was lost from sight.
    """

    num_axes: Mapping[str, int]
    uses: dict[str, dict[KernelAxes | str, None]]
    others: dict[str, str]

    def lose(self, values: Sequence[Value], why: str) -> None:
        """Records why the leaves of these arrays are lost; each leaf's first reason is kept."""
        for value in values:
            for path in value.views:
                self.others.setdefault(path, why)


CONSTANT, _DATA = Value({}, Source.CONSTANTS), Value({}, Source.DATA)
Operation: TypeAlias = Callable[[Any, list[Value], Found], list[Value]]


def source_of(values: Sequence[Value]) -> Source:
    """Returns the kind of an array that is computed from these."""
    return max((value.source for value in values), default=Source.CONSTANTS)


# Products.


def _dot(eqn: Any, operands: list[Value], found: Found) -> list[Value]:
    contracted, batch = eqn.params["dimension_numbers"]
    return [_product(operands, [_roles(eqn, side, contracted, batch) for side in (0, 1)], found)]


def _ragged_dot(eqn: Any, operands: list[Value], found: Found) -> list[Value]:
    numbers = eqn.params["ragged_dot_dimension_numbers"]
    contracted, (left, right) = numbers.dot_dimension_numbers
    batch = (left, (*right, *numbers.rhs_group_dimensions))
    roles = [_roles(eqn, side, contracted, batch) for side in (0, 1)]
    return [_product(operands[:2], roles, found)]


def _roles(eqn: Any, side: int, contracted: Any, batch: Any) -> list[str]:
    named = dict.fromkeys(contracted[side], "inputs") | dict.fromkeys(batch[side], "batch")
    return [named.get(axis, "outputs") for axis in range(len(eqn.invars[side].aval.shape))]


def _convolution(eqn: Any, operands: list[Value], found: Found) -> list[Value]:
    image, kernel = operands
    if not kernel.views:
        found.lose([image], "used as the image of a convolution")
        return [_DATA]
    output, channel, *_ = eqn.params["dimension_numbers"].rhs_spec
    roles = ["window"] * len(eqn.invars[1].aval.shape)
    roles[output], roles[channel] = "outputs", "inputs"
    # `vmap` puts a stack of kernels into the output axis, each as a group of its own.
    groups = eqn.params["feature_group_count"]
    stacks = {p: split_stack(v, output, groups) for p, v in kernel.views.items()}
    operands = [image._replace(views={}), kernel._replace(views=stacks)]
    return [_product(operands, [[], [*roles, "batch"]], found)]


def _product(operands: Sequence[Value], roles: Sequence[Sequence[str]], found: Found) -> Value:
    """Records the axes of the weights in a product; a constant factor counts as data."""
    sides = list(zip(operands, roles, strict=True))
    if all(value.source == Source.WEIGHTS for value in operands):
        found.lose(operands, "multiplied by other weights before any data")
        return Value({}, Source.WEIGHTS)
    # A value made from both, such as masked weights, counts as data beside pure weights.
    weights = [side for side in sides if side[0].views and side[0].source == Source.WEIGHTS]
    for value, names in weights or sides:
        for path, view in value.views.items():
            axes = axes_in_product(view, names, found.num_axes[path])
            is_kernel = isinstance(axes, KernelAxes) and axes.inputs and axes.outputs
            if not weights and not is_kernel:
                found.lose([value], "looked up and compared, not multiplied")
            else:
                found.uses.setdefault(path, {})[axes] = None
    return _DATA


# Operations that keep a leaf in sight.


def _elementwise(eqn: Any, operands: list[Value], found: Found) -> list[Value]:
    name, num_axes = eqn.primitive.name, len(eqn.outvars[0].aval.shape)
    views: dict[str, list[View]] = {}
    for operand in operands:
        for path, view in operand.views.items():
            if len(view) == num_axes:  # a scalar is no view of the result
                views.setdefault(path, []).append(view)
    together = {path: merged(each) for path, each in views.items()}
    source = source_of(operands)
    if source == Source.DATA and sum(x.source > Source.CONSTANTS for x in operands) > 1:
        # Weights under a mask or a scale are still a kernel; a bias or a gain is none.
        found.lose([Value(together, source)], f"joined with data by {name}")
        scaled = name in ("mul", "div", "select_n")
        together = {p: v for p, v in together.items() if scaled and covers(v)}
    return [Value(together, source)]


def _moved(eqn: Any, operands: list[Value], found: Found) -> list[Value]:
    """Moves an array's entries; the other operands are indices, or the value that fills a pad."""
    found.lose(operands[1:], f"used as an index by {eqn.primitive.name}")
    move = MOVES[eqn.primitive.name]
    outputs = []
    for var in eqn.outvars:
        moved = {p: move(v, eqn.params, var.aval.shape) for p, v in operands[0].views.items()}
        views = {p: v for p, v in moved.items() if has_any(v)}
        outputs.append(Value(views, source_of(operands)))
    return outputs


def _joined(eqn: Any, operands: list[Value], found: Found) -> list[Value]:
    """Puts arrays beside each other, which changes no leaf's axes."""
    shape, axis = eqn.outvars[0].aval.shape, eqn.params.get("axis")
    views: dict[str, list[View]] = {}
    for operand in operands:
        for path, view in operand.views.items():
            whole = view if len(view) == len(shape) else with_axis(view, axis, 1)
            views.setdefault(path, []).append(resized(whole, shape))
    together = {path: merged(each) for path, each in views.items()}
    joined = Value(together, source_of(operands))
    if joined.source < Source.DATA:
        return [joined]
    found.lose([joined], f"joined with data by {eqn.primitive.name}")
    return [_DATA]


def _updated(eqn: Any, operands: list[Value], found: Found) -> list[Value]:
    """Writes an array into another one of the same rank."""
    name, (into, *rest) = eqn.primitive.name, operands
    written = rest[1] if name == "scatter" else rest[0]
    num_axes = len(eqn.outvars[0].aval.shape)
    if name == "scatter" and len(eqn.params["dimension_numbers"].update_window_dims) < num_axes:
        return unknown(eqn, operands, found)
    return _joined(eqn, [into, written], found)


def _each(eqn: Any, operands: list[Value], found: Found) -> list[Value]:
    """Returns every operand as the output at its place."""
    del eqn, found
    return operands


def unknown(eqn: Any, operands: list[Value], found: Found) -> list[Value]:
    """Loses all leaves, because it is not known where the operation puts their entries."""
    found.lose(operands, f"goes through {eqn.primitive.name}")
    return [Value({}, source_of(operands))] * len(eqn.outvars)


OPERATIONS: dict[str, Operation] = {
    **dict.fromkeys(ELEMENTWISE, _elementwise),
    **dict.fromkeys(MOVES, _moved),
    **dict.fromkeys(
        """optimization_barrier sharding_constraint layout_constraint device_put reshard mesh_cast
        pvary psum psum_invariant pmax pmin ppermute""".split(),
        _each,
    ),
    "dot_general": _dot,
    "ragged_dot_general": _ragged_dot,
    "conv_general_dilated": _convolution,
    "concatenate": _joined,
    "stack": _joined,
    "dynamic_update_slice": _updated,
    "scatter": _updated,
}
"""By the name of the primitive."""
