"""Operations on every number: with constants, between arrays of the forward pass, and functions."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxsparse.engine.network import Network
from jaxsparse.engine.operations import ONE_PIXEL, Activation, Planes
from jaxsparse.engine.values import Unsupported, Value

_OF_ONE = "abs erf erfc exp expm1 log logistic rsqrt sqrt tanh"


class Comparison(NamedTuple):
    """An array of bools: where the numbers of `above` are above 0, or 0 or more; not where NaN is.

    Attributes:
      above: an array of numbers.
      or_zero: whether 0 counts.
      source: the equation with its number and operands, should another part of the network need
        the bools.
    """

    above: Value
    or_zero: bool
    source: Any = None


def by_plane(value: Value, constant: Any, batch: int) -> tuple[np.ndarray, bool]:
    """Returns a constant in the order of a value's planes.

    Returns:
      float64, in the shape of the planes, and False; or, if it differs between pixels, with two
      axes more for rows and columns, and True.

    Raises:
      Unsupported: it differs between images.
    """
    array = np.broadcast_to(np.asarray(constant), value.shape(batch)).astype(np.float64, copy=False)
    for axis, letter in enumerate(value.axes):
        if letter == "n":
            array = _first_of_equal(array, axis)
            if array is None:
                raise Unsupported("a constant differs between images")
    order = [i for i, a in enumerate(value.axes) if a == "c"]
    order += [value.axes.index(a) for a in "yx" if a in value.axes]
    order += [i for i, a in enumerate(value.axes) if a == "n"]
    array = np.transpose(array, order)[..., 0]
    if value.planes.ndim == array.ndim:
        return array, False
    rows = array
    for _ in range(array.ndim - value.planes.ndim):
        rows = None if rows is None else _first_of_equal(rows, rows.ndim - 1)
        rows = None if rows is None else rows[..., 0]
    if rows is not None:
        return rows, False
    return array.reshape(*value.planes.shape, *value.size), True


def _first_of_equal(array: np.ndarray, axis: int) -> np.ndarray | None:
    """Returns the first entry along an axis, which stays, if all are equal; else None."""
    first = array.take([0], axis)
    if array.strides[axis] == 0 or array.shape[axis] == 1 or (array == first).all():
        return first
    return None


class Elementwise:
    """The rules for one network.

    Args:
      net: gets the operations.
      batch: of the arrays.
    """

    def __init__(self, net: Network, batch: int) -> None:
        self.net, self.batch = net, batch

    def planes_of(self, like: Value, operand: Any) -> Planes:
        """Returns a constant, or an array, as planes like those of a value."""
        if isinstance(operand, Value):
            return self.aligned(like, operand)[1].planes
        array, by_pixel = by_plane(like, operand, self.batch)
        if not by_pixel:
            numbers, where = np.unique(array, return_inverse=True)
            pixels = np.broadcast_to(numbers[:, None, None], (len(numbers), *like.size))
            return self.net.constant(like.size, pixels)[where.reshape(like.planes.shape)]
        pixels = array.reshape(-1, *like.size)
        return self.net.constant(like.size, pixels).reshape(like.planes.shape)

    def aligned(self, a: Value, b: Value) -> tuple[Value, Value]:
        """Returns two arrays with the same planes' shape; axes of length 1 are repeated.

        Raises:
          Unsupported: their numbers lie in planes in different ways.
        """
        if len(a.axes) == len(b.axes):
            a, b = self._spread(a, b), self._spread(b, a)
        if (a.axes, a.size) != (b.axes, b.size):
            raise Unsupported(f"it takes arrays of axes {a.axes} and {b.axes}")
        planes = np.broadcast_arrays(a.planes, b.planes)
        return a.with_planes(planes[0]), b.with_planes(planes[1])

    def _spread(self, x: Value, like: Value) -> Value:
        """Returns single pixels as images, if those of another array stand on axes of length 1."""
        planes = self._pixels_of(x, like)
        if planes is None:
            return x
        made = self.net.copy(like.size, planes.ravel(), (0, 0), 0, 0)
        return Value(like.axes, made.reshape(planes.shape), like.size)

    def _pixels_of(self, x: Value, like: Value) -> Planes | None:
        """Returns single pixels, one for each image that `like` has in their place, or None."""
        if x.size != ONE_PIXEL or like.size == ONE_PIXEL or len(x.axes) != len(like.axes):
            return None
        where = [x.place(i) for i, a in enumerate(like.axes) if a in "yx" and x.axes[i] == "c"]
        if any(x.planes.shape[i] != 1 for i in where):
            return None
        return x.planes.squeeze(tuple(where))

    def grown(self, x: Value, *constants: Any) -> Value:
        """Returns an array whose axes of length 1 are as long as those of constants."""
        shapes = [np.shape(c) for c in constants if np.ndim(c) == len(x.axes)]
        shape = np.broadcast_shapes(x.shape(self.batch), *shapes)
        lengths = [n for n, letter in zip(shape, x.axes, strict=True) if letter == "c"]
        grown = x.with_planes(np.broadcast_to(x.planes, lengths))
        if grown.shape(self.batch) != shape:
            raise Unsupported("it repeats rows or columns")
        return grown

    def affine(self, x: Value, weight: Any = 1.0, bias: Any = 0.0) -> Value:
        """Returns weight * x + bias for constants."""
        x = self.grown(x, weight, bias)
        (weights, weights_by_pixel), (biases, biases_by_pixel) = (
            by_plane(x, c, self.batch) for c in (weight, bias)
        )
        if weights_by_pixel:
            factors = self.net.constant(x.size, weights.reshape(-1, *x.size))
            x = x.with_planes(self.net.product(x.planes, factors.reshape(x.planes.shape)))
            weights = np.float64(1.0)
        if biases_by_pixel:
            shifts = self.planes_of(x, bias)
            return x.with_planes(self.net.sum_of([x.planes, shifts], [1.0, 1.0]))
        return x.with_planes(self.net.each(x.planes, weights, biases))

    def function(self, x: Value, name: str) -> Value:
        """Applies a function of the engine."""
        return x.with_planes(self.net.each(x.planes, activation=Activation(name)))

    def clamp(self, x: Value, low: Any, high: Any) -> Value:
        """Clamps to numbers that are the same everywhere."""
        limits = [np.unique(np.asarray(limit)) for limit in (low, high)]
        if any(limit.size != 1 for limit in limits):
            raise Unsupported("it clamps to different numbers")
        low, high = (float(limit[0]) for limit in limits)
        return x.with_planes(self.net.each(x.planes, activation=Activation("clamp", low, high)))

    def add(self, a: Any, b: Any, sign: float = 1.0) -> Value:
        """Returns a + sign * b."""
        if isinstance(a, Value) and isinstance(b, Value):
            a, b = self.aligned(a, b)
            return a.with_planes(self.net.sum_of([a.planes, b.planes], [1.0, sign]))
        if isinstance(a, Value):
            return self.affine(a, 1.0, sign * np.asarray(b, np.float64))
        return self.affine(b, sign, a)

    def multiply(self, a: Any, b: Any) -> Value:
        """Returns a * b."""
        if isinstance(a, Value) and isinstance(b, Value):
            if a.size == ONE_PIXEL != b.size:
                a, b = b, a
            factors = self._pixels_of(b, a)
            if factors is not None:
                shape = np.broadcast_shapes(a.planes.shape, factors.shape)
                a = a.with_planes(np.broadcast_to(a.planes, shape))
                return a.with_planes(self.net.product(a.planes, np.broadcast_to(factors, shape)))
            a, b = self.aligned(a, b)
            return a.with_planes(self.net.product(a.planes, b.planes))
        return self.affine(a, b) if isinstance(a, Value) else self.affine(b, a)

    def divide(self, a: Any, b: Any) -> Value:
        """Returns a / b."""
        if isinstance(b, Value):
            return self.multiply(a, self.function(b, "reciprocal"))
        with np.errstate(divide="ignore"):
            return self.affine(a, 1.0 / np.asarray(b, np.float64))

    def larger(self, a: Any, b: Any, sign: float = 1.0) -> Value:
        """Returns max(a, b), or min(a, b) for sign -1."""
        if not isinstance(a, Value):
            a, b = b, a
        if not isinstance(b, Value) and np.isnan(np.asarray(b, np.float64)).any():
            raise Unsupported("it compares with NaN")
        if not isinstance(b, Value) and np.unique(np.asarray(b)).size == 1:
            return self.clamp(a, *((b, np.inf) if sign > 0 else (-np.inf, b)))
        if isinstance(b, Value):
            a, b = self.aligned(a, b)
        else:
            a = self.grown(a, b)
        pair = [a.planes, self.planes_of(a, b)]
        if sign < 0:
            pair = [self.net.each(p, -1.0) for p in pair]
        found = self.net.largest(np.stack(pair, -1))
        return a.with_planes(found if sign > 0 else self.net.each(found, -1.0))

    def power(self, x: Value, exponent: int) -> Value:
        """Returns x to a whole power from -4 to 4."""
        if not 1 <= abs(exponent) <= 4:
            raise Unsupported(f"it takes the power {exponent}")
        found = x
        for _ in range(abs(exponent) - 1):
            found = self.multiply(found, x)
        return self.function(found, "reciprocal") if exponent < 0 else found

    def compare(self, a: Any, b: Any, *, or_equal: bool) -> Comparison:
        """Returns where a > b, or where a >= b."""
        return Comparison(self.add(a, b, -1.0), or_equal)

    def select(self, where: Any, cases: Sequence[Any]) -> Value:
        """Returns cases[1] where a comparison holds, cases[0] elsewhere."""
        if not isinstance(where, Comparison) or len(cases) != 2:
            raise Unsupported("it selects by something else than a comparison")
        like = self.grown(where.above, *(c for c in cases if not isinstance(c, Value)))
        no, yes = (self.planes_of(like, case) for case in cases)
        return like.with_planes(self.net.select(like.planes, yes, no, or_zero=where.or_zero))


def rules(at: Elementwise) -> dict[str, Callable[[Any, list[Any]], Any]]:
    """Returns the rules by the name of a primitive: functions of (equation, operands)."""
    function = lambda name: lambda eqn, xs: at.function(xs[0], name)
    same = lambda eqn, xs: xs[0]
    return {
        "add": lambda eqn, xs: at.add(*xs),
        "add_any": lambda eqn, xs: at.add(*xs),
        "sub": lambda eqn, xs: at.add(xs[0], xs[1], -1.0),
        "mul": lambda eqn, xs: at.multiply(*xs),
        "div": lambda eqn, xs: at.divide(*xs),
        "neg": lambda eqn, xs: at.affine(xs[0], -1.0),
        "max": lambda eqn, xs: at.larger(*xs),
        "min": lambda eqn, xs: at.larger(xs[0], xs[1], -1.0),
        "clamp": lambda eqn, xs: at.clamp(xs[1], xs[0], xs[2]),
        "square": lambda eqn, xs: at.power(xs[0], 2),
        "integer_pow": lambda eqn, xs: at.power(xs[0], eqn.params["y"]),
        "gt": lambda eqn, xs: at.compare(xs[0], xs[1], or_equal=False),
        "lt": lambda eqn, xs: at.compare(xs[1], xs[0], or_equal=False),
        "ge": lambda eqn, xs: at.compare(xs[0], xs[1], or_equal=True),
        "le": lambda eqn, xs: at.compare(xs[1], xs[0], or_equal=True),
        "select_n": lambda eqn, xs: at.select(xs[0], xs[1:]),
        **{name: function(name) for name in _OF_ONE.split()},
        **dict.fromkeys("copy copy_p stop_gradient name reduce_precision".split(), same),
        "convert_element_type": lambda eqn, xs: _converted(at, eqn.params["new_dtype"], xs[0]),
    }


def _converted(at: Elementwise, dtype: Any, x: Any) -> Any:
    if not jnp.issubdtype(dtype, jnp.floating):
        raise Unsupported(f"it converts to {dtype}")
    return at.select(x, (0.0, 1.0)) if isinstance(x, Comparison) else x
