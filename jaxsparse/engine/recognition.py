"""Finds the functions of the engine in a forward pass, such as a GELU, however they are written.

A function of numbers makes each number of an array from the same number of another. It is computed
at a hundred points and more, and compared there with the functions that the engine has. Its
constants are among the points, since it may change its course at one.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxsparse.engine.elementwise import Comparison
from jaxsparse.engine.evaluation import computed
from jaxsparse.engine.functions import FUNCTIONS_OF_ONE, applied
from jaxsparse.engine.operations import Activation
from jaxsparse.engine.steps import Outside
from jaxsparse.engine.values import Value
from jaxsparse.tracing.jaxprs import CallAnalysis, called, inner_equations, walk

RELATIVE = 2e-6
HALF = 0.01
"""The same for a function that was written in numbers of 16 bits; the engine's is more exact."""
_CALLS = frozenset("jit pjit closed_call core_call custom_jvp_call custom_vjp_call".split())
_SPREADS = frozenset("broadcast_in_dim reshape squeeze expand_dims".split())
_OF_NUMBERS = frozenset(
    "abs add add_any and clamp convert_element_type copy copy_p div eq erf erf_inv erfc exp exp2 "
    "expm1 ge gt integer_pow is_finite le log log1p logistic lt max min mul ne neg not or pow "
    "rsqrt select_n sign sqrt square stop_gradient sub tanh".split()
)
_LAST = frozenset("add clamp div max min mul select_n sub".split())
"""Operations that may end a function which is not a call."""


class Function(NamedTuple):
    """activation(factor * x + shift)."""

    activation: Activation
    factor: float = 1.0
    shift: float = 0.0


class Origin(NamedTuple):
    """How the numbers of an array are made from those of another.

    Attributes:
      base: the other array.
      eqn: what makes them; None for the base itself.
      operands: of the equation, with the same base, and constants.
    """

    base: Value
    eqn: Any = None
    operands: tuple["Origin | np.ndarray", ...] = ()

    def at(self, points: np.ndarray) -> Any:
        """The numbers that are made from points."""
        if self.eqn is None:
            return jnp.asarray(points)
        given = [x.at(points) if isinstance(x, Origin) else jnp.asarray(x) for x in self.operands]
        inner = called(self.eqn)
        if inner is not None:
            given = given[len(given) - len(inner.jaxpr.invars) :]
            return walk(inner, list(map(_as_float, given)), _AtPoints())[0]
        return _AtPoints().operation(self.eqn, list(map(_as_float, given)))[0]

    def constants(self) -> Iterator[Any]:
        """Yields the constants that it is made with."""
        if self.eqn is not None and called(self.eqn) is not None:
            yield from _own_constants(called(self.eqn))
        for x in self.operands:
            yield from x.constants() if isinstance(x, Origin) else (x,)


class Origins:
    """The origins of arrays in a forward pass, so far as they are functions of numbers."""

    def __init__(self) -> None:
        # By the identity of an array's planes, which are kept so that no other has it.
        self.of: dict[int, tuple[Value, Origin]] = {}

    def origin(self, x: Any) -> "Origin | np.ndarray | None":
        """The origin of an operand: its own base, if it has none. None: it is no single number."""
        if isinstance(x, Comparison):
            _, eqn, operands = x.source
            return self.made(eqn, operands)
        if isinstance(x, Value):
            return self.of[id(x.planes)][1] if id(x.planes) in self.of else Origin(x)
        if isinstance(x, Outside):  # of a comparison, which remembers what it was given
            return None
        x = np.asarray(x)
        is_one = x.size == 1 or (x.size > 1 and not any(x.strides))
        return x.reshape(-1)[0] if is_one else None

    def made(self, eqn: Any, operands: Sequence[Any]) -> Origin | None:
        """The origin of what an equation makes, or None if it is no function of one array."""
        if not (eqn.primitive.name in _OF_NUMBERS or is_function(eqn)):
            return None
        parts = [self.origin(x) for x in operands]
        bases = [x.base for x in parts if isinstance(x, Origin)]
        if any(x is None for x in parts) or len({id(x.planes) for x in bases}) != 1:
            return None
        return Origin(bases[0], eqn, tuple(parts))  # type: ignore[arg-type]

    def note(self, value: Value, origin: Origin) -> None:
        """Remembers the origin of an array."""
        self.of[id(value.planes)] = (value, origin)


def is_function(eqn: Any) -> bool:
    """Whether an equation calls a function of numbers: of each number of one array alone."""
    inner = called(eqn)
    if eqn.primitive.name not in _CALLS or inner is None or len(inner.out_avals) != 1:
        return False
    num, known = 0, _OF_NUMBERS | _SPREADS | _CALLS
    for each in inner_equations(eqn):
        num += each.primitive.name in _OF_NUMBERS
        if each.primitive.name not in known:
            return False
    return num > 1


def may_end(origin: Origin) -> bool:
    """Whether an array is worth a comparison with the engine's functions."""
    deep = any(isinstance(x, Origin) and x.eqn is not None for x in origin.operands)
    return is_function(origin.eqn) or (deep and origin.eqn.primitive.name in _LAST)


def recognised(origin: Origin) -> Function | None:
    """Returns the function of the engine that makes an array from its base, if there is one."""
    constants = [np.asarray(x, np.float64).ravel() for x in origin.constants()]
    if any(x.size != 1 for x in constants):
        return None
    x = _points([float(c[0]) for c in constants if np.isfinite(c[0])])
    try:
        y = np.asarray(origin.at(x), np.float64)
    except (TypeError, ValueError):  # an operation that is not so simple after all
        return None
    if y.shape != x.shape or not np.isfinite(y).all():
        return None
    is_half = origin.eqn.outvars[0].aval.dtype.itemsize < 4
    found = min(_candidates(x, y), key=lambda function: _difference(function, x, y))
    return found if _difference(found, x, y) <= (HALF if is_half else RELATIVE) else None


class _AtPoints(CallAnalysis[Any]):
    """Computes a function of numbers on a vector of them, whatever shape they were traced in."""

    def constant(self, atom: Any, value: Any) -> Any:
        del atom
        return _as_float(jnp.asarray(value))

    def operation(self, eqn: Any, operands: list[Any]) -> Sequence[Any]:
        if eqn.primitive.name in _SPREADS:
            return [operands[0]]
        if eqn.primitive.name == "convert_element_type":
            is_real = jnp.issubdtype(eqn.params["new_dtype"], jnp.floating)
            return [operands[0].astype(jnp.float32) if is_real else operands[0]]
        return computed(eqn, jnp.broadcast_arrays(*operands))


def _own_constants(closed: Any) -> Iterator[Any]:
    """Yields what is written into a function, and into those that it calls."""
    yield from closed.consts
    for eqn in closed.jaxpr.eqns:
        yield from (x.val for x in eqn.invars if hasattr(x, "val"))
        inner = called(eqn)
        if inner is not None:
            yield from _own_constants(inner)


def _as_float(x: Any) -> Any:
    x = jnp.asarray(x)
    return x.astype(jnp.float32) if jnp.issubdtype(x.dtype, jnp.floating) else x


def _points(constants: list[float]) -> np.ndarray:
    """Numbers of all sizes, and those around constants."""
    sizes = np.array([1e-4, 1e-2, 0.1, 15.0, 30.0, 80.0, 1e3, 1e4])
    near = np.outer(constants, [-1.01, -1.0, -0.99, 0.99, 1.0, 1.01]).ravel()
    near = near[np.abs(near) < 1e5]
    found = np.concatenate([np.linspace(-8, 8, 65), sizes, -sizes, near])
    found = np.unique(found.astype(np.float32))
    # One length for most functions, since JAX compiles its operations for each.
    return np.concatenate([found, np.repeat(found[-1:], -len(found) % 128)])


def _candidates(x: np.ndarray, y: np.ndarray) -> Iterator[Function]:
    """Yields functions, their numbers chosen so that they may be the one."""
    at = lambda point: float(y[np.searchsorted(x, np.float32(point))])
    yield from (Function(Activation(name)) for name in FUNCTIONS_OF_ONE)
    yield Function(Activation("leaky_relu", -at(-1.0)))
    yield Function(Activation("elu", -at(-80.0), at(1.0)))
    steps = np.diff(x)
    rise = np.where(steps > 0.05, np.diff(y) / np.maximum(steps, 0.05), 0.0)
    steepest = int(np.argmax(np.abs(rise)))
    line = y[steepest] + rise[steepest] * (x - x[steepest])
    on_it = np.flatnonzero(np.abs(y - line) < 1e-5 * (1 + np.abs(x)))
    first, last = on_it[0], on_it[-1]  # far from each other, so that the slope is exact
    factor = float(y[last] - y[first]) / max(float(x[last]) - float(x[first]), 1e-30)
    limits = sorted((float(y[0]), float(y[-1])))
    is_limit = lambda number: abs(number) < 0.9 * abs(factor * x[0])
    low, high = limits[0] if is_limit(limits[0]) else -np.inf, limits[1]
    clamp = Activation("clamp", low, high if is_limit(high) else np.inf)
    yield Function(clamp, factor, float(y[first]) - factor * float(x[first]))


def _difference(function: Function, x: np.ndarray, y: np.ndarray) -> float:
    found = applied(function.activation, function.factor * x + function.shift)
    error = np.abs(found - y) / np.maximum(np.maximum(np.abs(y), np.abs(x) * 0.1), 1e-3)
    return float("inf") if np.isnan(error).any() else float(error.max())
