"""Reads a forward pass from its jaxpr: the longest parts for the engine, and XLA in between."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsparse.engine import elementwise, products, shapes, windows
from jaxsparse.engine.evaluation import computed, is_key
from jaxsparse.engine.network import Network
from jaxsparse.engine.operations import ONE_PIXEL, Array, Size
from jaxsparse.engine.recognition import Function, Origins, is_function, may_end, recognised
from jaxsparse.engine.simplify import simplify
from jaxsparse.engine.steps import Equation, Outside, Segment, Step, Trace
from jaxsparse.engine.values import Unsupported, Value, natural_axes, transposed
from jaxsparse.tracing.jaxprs import CallAnalysis, inner_equations, walk

_MOVES = frozenset(
    "broadcast_in_dim concatenate expand_dims reshape rev slice split squeeze transpose".split()
)
_CONVERSION = "convert_element_type"
_PRODUCTS = ("conv_general_dilated", "dot_general")


def trace(function: Callable[..., Any], avals: Sequence[jax.ShapeDtypeStruct]) -> Trace:
    """Returns a function of arrays to a list of arrays in steps, its networks simplified.

    A part without any convolution or matrix product is left to XLA, unless it is the whole.

    Args:
      function: its arrays have images along their first axes.
      avals: shapes and dtypes of its arrays, with the same number of images.
    """
    closed = jax.make_jaxpr(function)(*avals)
    left_to_xla: set[int] = set()
    while True:
        made = _traced(closed, avals, left_to_xla)
        segments = [step for step in made.steps if isinstance(step, Segment)]
        small = [step for step in segments if not step.has_product]
        if not small or len(made.steps) == 1:
            break
        left_to_xla |= {number for step in small for number in step.equations}
    _put_in_order(made)
    for segment in segments:
        simplify(segment.net)
    return made


def _traced(closed: Any, avals: Sequence[Any], left_to_xla: set[int]) -> Trace:
    batch = avals[0].shape[0] if avals and avals[0].shape else 1
    tracing = _Tracing(batch, _channels_first(closed), left_to_xla)
    inputs = [tracing.new(aval) for aval in avals]
    tracing.num_inputs = len(inputs)
    outputs = walk(closed, inputs, tracing)
    found = [tracing.exported(x) for x in [tracing.passed_on(x) for x in outputs]]
    tracing.close()
    return Trace(tracing.steps, inputs, found, [aval.dtype for aval in closed.out_avals])


class _Tracing(CallAnalysis[Any]):
    """Turns equations into operations of a segment; what depends on no input is computed.

    Attributes:
      steps: so far; the segment that is open is not among them.
    """

    def __init__(self, batch: int, channels_first: bool, left_to_xla: set[int]) -> None:
        self.batch, self.channels_first, self.left_to_xla = batch, channels_first, left_to_xla
        self.steps: list[Step] = []
        self.segments: list[Segment] = []
        self.is_open = False
        self.num_arrays = self.num_inputs = self.num_equations = 0
        self.exports: dict[Any, Outside] = {}
        self.comparisons: dict[int, Outside] = {}  # by the number of the equation
        self.imports: dict[tuple[int, int], Value] = {}
        self.rules: dict[str, Callable[[Any, list[Any]], Any]] = {}
        self.functions: dict[int, Function | None] = {}
        self.origins = Origins()

    def constant(self, atom: Any, value: Any) -> Any:
        del atom
        return value if is_key(value) else np.asarray(value)

    def enters(self, eqn: Any, operands: list[Any]) -> bool:
        """Whether the equation is a call, and not of a function that the engine has."""
        if not super().enters(eqn, operands):
            return False
        self.functions[id(eqn)] = None
        inside = [x for x in operands if isinstance(x, _DEPENDENT)]
        if len(inside) == 1 and isinstance(inside[0], Value | Outside) and is_function(eqn):
            # The array may still be XLA's, so a value stands for it.
            as_base = [_ANY if isinstance(x, _DEPENDENT) else x for x in operands]
            origin = Origins().made(eqn, as_base)
            self.functions[id(eqn)] = recognised(origin) if origin else None
        return self.functions[id(eqn)] is None

    def operation(self, eqn: Any, operands: list[Any]) -> Sequence[Any]:
        if not any(isinstance(x, _DEPENDENT) for x in operands):
            return computed(eqn, operands)
        number, self.num_equations = self.num_equations, self.num_equations + 1
        try:
            if number in self.left_to_xla:
                raise Unsupported("no convolution or matrix product is near")
            return self.in_segment(eqn, operands, number)
        except Unsupported as error:
            return self.in_xla(eqn, operands, str(error))

    def in_segment(self, eqn: Any, operands: list[Any], number: int) -> Sequence[Any]:
        """Adds an equation to the open segment."""
        name, function = eqn.primitive.name, self.functions.get(id(eqn))
        compares = any(isinstance(x, elementwise.Comparison) for x in operands)
        is_known = function is not None or name in _NAMES
        if not is_known or (compares and name not in ("select_n", _CONVERSION)):
            raise Unsupported("it is not one of the engine's operations")
        made_by_xla = lambda x: isinstance(x, Outside) and x.number >= self.num_inputs
        if name in _MOVES and all(map(made_by_xla, operands)):
            raise Unsupported("it moves numbers that XLA has made")
        if not self.is_open:
            self.open()
        segment = self.segments[-1]
        given, operands = operands, [self.operand(x, eqn, i) for i, x in enumerate(operands)]
        if function is not None:
            (x,) = (x for x in operands if isinstance(x, Value))
            found = [self.applied(function, x)]
        else:
            found = self.rules[name](eqn, operands)
            found = found if eqn.primitive.multiple_results else [found]
        segment.has_product |= name in _PRODUCTS
        segment.equations.append(number)
        found = [self.at_home(x, eqn, given) for x in found]
        return [self.as_function(eqn, operands, x, function) for x in found]

    def applied(self, function: Function, x: Value) -> Value:
        """Returns a function of the engine of an array."""
        planes = self.segments[-1].net.each(
            x.planes, function.factor, function.shift, function.activation
        )
        return x.with_planes(planes)

    def as_function(self, eqn: Any, operands: list[Any], x: Any, known: Function | None) -> Any:
        """Returns an array as a function of the engine, if it is one of numbers of another array.

        The steps in between are dropped, if nobody else reads them.
        """
        origin = self.origins.made(eqn, operands) if isinstance(x, Value) else None
        if origin is None or not _lie_alike(origin.base, x):
            return x
        if known is None and may_end(origin):
            function = recognised(origin)
            if function is not None:
                x = self.at_home(self.applied(function, origin.base), eqn, [])
        self.origins.note(x, origin)
        return x

    def at_home(self, x: Any, eqn: Any, operands: list[Any]) -> Any:
        """Returns a result of the open segment that knows where it comes from."""
        home = len(self.segments) - 1
        if isinstance(x, elementwise.Comparison):
            source = (self.num_equations, eqn, operands)
            return x._replace(above=x.above._replace(home=home), source=source)
        return x._replace(home=home) if isinstance(x, Value) else x

    def in_xla(self, eqn: Any, operands: list[Any], reason: str) -> list[Outside]:
        """Adds an equation for XLA, behind the segment if it needs its arrays."""
        given = [self.exported(x) for x in operands]
        outputs = [self.new(var.aval) for var in eqn.outvars]
        self.steps.append(Equation(eqn, given, outputs, reason))
        return outputs

    def open(self) -> None:
        """Begins a segment."""
        net = Network()
        self.segments.append(Segment(net, [], []))
        self.is_open = True
        self.origins = Origins()
        self.rules = _rules(net, self.batch, self.channels_first)

    def close(self) -> None:
        """Ends the segment that is open; one that got no equation is no step."""
        if self.is_open and self.segments[-1].equations:
            self.steps.append(self.segments[-1])
        self.is_open = False

    def new(self, aval: Any) -> Outside:
        """Returns a new array of XLA."""
        self.num_arrays += 1
        return Outside(self.num_arrays - 1, tuple(aval.shape), aval.dtype)

    def operand(self, x: Any, eqn: Any, place: int) -> Any:
        """Returns operand `place` of an equation as one of the open segment."""
        if isinstance(x, elementwise.Comparison):
            return x._replace(above=self.operand(x.above, eqn, place))
        home = len(self.segments) - 1
        if isinstance(x, Value):
            if x.home == home:
                return x
            x = self.exported(x)
        if not isinstance(x, Outside):
            return x
        key = (home, x.number)
        is_whole = x.dtype == np.bool_ or (
            jnp.issubdtype(x.dtype, jnp.integer) and x.dtype.itemsize <= 2
        )  # and exact as float32
        becomes_real = is_whole and eqn is not None and eqn.primitive.name == _CONVERSION
        if not (jnp.issubdtype(x.dtype, jnp.floating) or becomes_real):
            raise Unsupported(f"it takes {x.dtype} numbers")
        if key not in self.imports:
            axes = _axes_that_follow(eqn, place, len(x.shape))
            axes = axes or natural_axes(len(x.shape), self.channels_first)
            self.imports[key] = self.imported(x, axes, home)
        return self.imports[key]

    def imported(self, x: Outside, axes: str, home: int) -> Value:
        """Makes an array of XLA an input of the open segment."""
        if not x.shape or x.shape[0] != self.batch or 0 in x.shape:
            raise Unsupported(f"it takes an array of shape {x.shape}, without images")
        segment = self.segments[home]
        length = dict(zip(axes, x.shape, strict=True))
        size = Size(length.get("y", 1), length.get("x", 1))
        of_planes = [n for n, letter in zip(x.shape, axes, strict=True) if letter == "c"]
        planes = segment.net.new(size, math.prod(of_planes)).reshape(of_planes)
        value = products.settled(Value(axes, planes, size, home))._replace(home=home)
        segment.inputs.append(x)
        segment.net.inputs.append(_array(value))
        return value

    def exported(self, x: Any) -> Any:
        """Returns a value as an array of XLA; constants stay."""
        if isinstance(x, elementwise.Comparison):
            number, eqn, operands = x.source
            if number not in self.comparisons:
                (self.comparisons[number],) = self.in_xla(eqn, operands, "it leaves its segment")
            return self.comparisons[number]
        if not isinstance(x, Value):
            return x
        if self.is_open and x.home == len(self.segments) - 1:
            self.close()
        if x.axes[0] != "n":
            return self.transposed_by_xla(x)
        key = (x.home, x.axes, x.planes.shape, x.planes.tobytes())
        if key not in self.exports:
            shape = x.shape(self.batch)
            self.exports[key] = self.new(jax.ShapeDtypeStruct(shape, np.float32))
            self.segments[x.home].outputs.append(self.exports[key])
            self.segments[x.home].net.outputs.append(_array(x))
        return self.exports[key]

    def passed_on(self, x: Any) -> Any:
        """Returns an input that is an output too as a value of the first segment, if open."""
        is_input = isinstance(x, Outside) and x.number < self.num_inputs
        if not is_input or not self.is_open or self.steps:
            return x
        try:
            return self.operand(x, None, 0)
        except Unsupported:
            return x

    def transposed_by_xla(self, x: Value) -> Outside:
        """Returns a value, whose images are not along the first axis, as an array of XLA."""
        at = x.axes.index("n")
        first = transposed(x, (at, *(i for i in range(len(x.axes)) if i != at)))
        given = self.exported(first)
        back = [i + 1 for i in range(at)] + [0] + list(range(at + 1, len(x.axes)))
        aval = jax.ShapeDtypeStruct(given.shape, given.dtype)
        (eqn,) = jax.make_jaxpr(lambda array: array.transpose(back))(aval).jaxpr.eqns
        return self.in_xla(eqn, [given], "images are not along its first axis")[0]


def _lie_alike(a: Value, b: Value) -> bool:
    """Whether two arrays have the same axes, and planes of the same size and number."""
    return (a.axes, a.size, a.planes.shape) == (b.axes, b.size, b.planes.shape)


_DEPENDENT = (Value, Outside, elementwise.Comparison)
_ANY = Value("n", np.zeros((), np.int32), ONE_PIXEL)


def _rules(
    net: Network, batch: int, channels_first: bool
) -> dict[str, Callable[[Any, list[Any]], Any]]:
    return {
        **elementwise.rules(elementwise.Elementwise(net, batch)),
        **products.rules(net),
        **windows.rules(net),
        **shapes.Shapes(net, batch, channels_first).rules(),
        "optimization_barrier": lambda eqn, xs: xs,
    }


_NAMES = frozenset(_rules(Network(), 1, False))


def _axes_that_follow(eqn: Any, place: int, rank: int) -> str | None:
    """Returns the meaning that an operation gives the axes of an operand, or None.

    What a matrix product adds up is planes, and so is what becomes the axis of a vector.
    """
    if eqn is None:
        return None
    if eqn.primitive.name == "reshape" and len(eqn.outvars[0].aval.shape) == 2:
        return "n" + "c" * (rank - 1)
    if eqn.primitive.name != "dot_general" or place > 1:
        return None
    inner = eqn.params["dimension_numbers"][0][place]
    others = [axis for axis in range(1, rank) if axis not in inner]
    if len(others) > 2 or 0 in inner:
        return None
    letters = dict(zip(others, "yx"[2 - len(others) :], strict=True))
    return "n" + "".join(letters.get(axis, "c") for axis in range(1, rank))


def _channels_first(closed: Any) -> bool:
    """Whether the first convolution takes channels before rows."""
    for outer in closed.jaxpr.eqns:
        for eqn in (outer, *inner_equations(outer)):
            if eqn.primitive.name == "conv_general_dilated":
                return eqn.params["dimension_numbers"].lhs_spec[1] == 1
    return False


def _array(value: Value) -> Array:
    """How the planes of an array lie in it."""
    shape = value.shape(1)
    strides = np.cumprod([1, *shape[:0:-1]])[::-1]
    stride = lambda a: int(strides[value.axes.index(a)]) if a in value.axes else 0
    first = np.zeros(value.planes.shape, np.int64)
    for axis, letter in enumerate(value.axes):
        if letter == "c":
            at = value.place(axis)
            along = np.arange(shape[axis]) * strides[axis]
            first += along.reshape([-1 if i == at else 1 for i in range(first.ndim)])
    return Array(value.planes.ravel(), first.ravel(), stride("y"), stride("x"), shape[1:])


def _put_in_order(made: Trace) -> None:
    """Gives the only part of a forward pass all inputs and outputs, in the order of the function.

    So a file has them as the function does. An input may be unread, and an output repeated.
    """
    segment = made.segment
    if segment is None:
        return
    net = segment.net
    inputs = {x.number: array for x, array in zip(segment.inputs, net.inputs, strict=True)}
    outputs = {x.number: array for x, array in zip(segment.outputs, net.outputs, strict=True)}
    unread = lambda x: Array(np.zeros(0, np.int32), np.zeros(0, np.int64), 0, 0, x.shape[1:])
    net.inputs = [inputs.get(x.number) or unread(x) for x in made.inputs]
    net.outputs = [dataclasses.replace(outputs[x.number]) for x in made.outputs]
    segment.inputs, segment.outputs = list(made.inputs), list(made.outputs)
