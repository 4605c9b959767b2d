"""Runs a function on numbers that carry an exponent of their own, so that depth overflows nothing.

A product of a hundred layers of positive weights leaves the range of float32, and soon that of
float64. Here every array that depends on the inputs is a mantissa, an array whose largest entry is
in [0.5, 1), times a power of two, which is one integer for the whole array. A product multiplies
mantissas and adds exponents; a sum first brings its terms to one exponent. For example, 2^100 times
2^100 is the mantissa 0.5 times 2^201.

Powers of two cost no rounding. The exponents count as constants of the derivative, so that
`jax.grad` of the mantissa is the gradient of the value divided by one power of two.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jax.extend import core

from jaxsparse.tracing.equations import bound
from jaxsparse.tracing.jaxprs import CallAnalysis, walk
from jaxsparse.tracing.primitives import SEPARATE


class Scaled(NamedTuple):
    """The array `mantissa * 2.0**exponent`.

    Attributes:
      mantissa: float[shape].
      exponent: int32[]; that of zeros is far below any other.
      drift: how many operations have moved the mantissa since its largest entry was in [0.5, 1).
    """

    mantissa: jax.Array
    exponent: jax.Array
    drift: int = 0


Value = Scaled | Any
"""A scaled array; or an array as it is, if it is not float or depends on no input."""

# Linear operations of one array, which leave the exponent as it is.
_LINEAR = frozenset(
    """abs broadcast_in_dim convert_element_type copy copy_p cummax cumsum dynamic_slice expand_dims
    gather name neg real reduce_max reduce_min reduce_precision reduce_sum reduce_window_max
    reduce_window_sum reshape rev sharding_constraint slice split squeeze stop_gradient tile
    transpose unstack""".split()
)
_PRODUCTS = frozenset("conv_general_dilated dot_general mul".split())
# Operations of several arrays that have to have one exponent: how many of the operands are such.
_ALIGNED: dict[str, Callable[[int], slice]] = {
    **dict.fromkeys(
        "add add_any clamp concatenate max min pad stack sub".split(), lambda num: slice(num)
    ),
    "select_n": lambda num: slice(1, num),
    "dynamic_update_slice": lambda num: slice(2),
}
_COMPARISONS = frozenset("eq ge gt le lt ne".split())

_OF_ZEROS = -(2**24)
"""The exponent of an array of zeros, which fits beside any other."""

_MOST_DRIFT = 8
"""Operations on entries, such as those of a norm, between two passes that look for the largest."""


def run_scaled(closed: core.ClosedJaxpr, inputs: Sequence[jax.Array]) -> list[Scaled]:
    """Runs a jaxpr on its inputs in scaled form, and returns its outputs so.

    Products, sums, ReLUs, pooling, norms with given statistics and all that moves entries are exact
    at any magnitude. Other functions, such as exponentials, and loops get their operands as they
    are, at most the largest float; what they put out may overflow.

    An entry that is below 2^-126 of the largest in its array may count as 0.

    Args:
      closed: of a function of arrays to arrays, from `jax.make_jaxpr`.
      inputs: one array for each input.

    >>> deep = jax.make_jaxpr(lambda w: jnp.prod(w) if w.ndim else w * w * w * w)(1.0)
    >>> (found,) = run_scaled(deep, [jnp.float32(2.0**100)])
    >>> float(found.mantissa), int(found.exponent)
    (0.5, 401)
    """
    outputs = walk(closed, [_scaled(x) for x in inputs], _Scaling())
    return [_settled(x) for x in outputs]


class _Scaling(CallAnalysis[Value]):
    """Computes every value; a loop is an operation here."""

    def constant(self, atom: Any, value: Any) -> Value:
        del atom
        return value

    def operation(self, eqn: Any, operands: list[Value]) -> Sequence[Value]:
        name = eqn.primitive.name
        if name in SEPARATE and name != "optimization_barrier":
            return [_scaled(_plain(x)) for x in bound(eqn, map(_plain, operands))]
        if not any(isinstance(x, Scaled) for x in operands):
            return bound(eqn, operands)
        rule = _rule(eqn, operands)
        if rule is None:
            return bound(eqn, map(_plain, operands))
        return rule(eqn, operands)


Rule = Callable[[Any, list[Value]], Sequence[Value]]


def _rule(eqn: Any, operands: list[Value]) -> Rule | None:
    """Returns how to compute an equation in scaled form; None if it takes values as they are."""
    name = eqn.primitive.name
    if name in _LINEAR and jnp.issubdtype(eqn.outvars[0].aval.dtype, jnp.floating):
        return _linear
    if name in _PRODUCTS:
        return _product
    if name in _ALIGNED:
        return _aligned
    if name in _COMPARISONS:
        return _compared
    if name == "optimization_barrier":
        return lambda eqn, operands: operands
    return {"div": _quotient, "integer_pow": _power, "square": _power, "sign": _sign}.get(
        name, {"sqrt": _root, "rsqrt": _root}.get(name)
    )


def _linear(eqn: Any, operands: list[Value]) -> list[Value]:
    first, *others = operands
    if not isinstance(first, Scaled) or any(isinstance(x, Scaled) for x in others):
        return bound(eqn, map(_plain, operands))
    adds_up = eqn.primitive.name in ("reduce_sum", "reduce_window_sum", "cumsum")
    found = bound(eqn, [first.mantissa, *others])
    if adds_up:
        return [_normal(x, first.exponent) for x in found]
    return [first._replace(mantissa=x) for x in found]


def _product(eqn: Any, operands: list[Value]) -> list[Value]:
    (product,) = bound(eqn, map(_mantissa, operands))
    exponent = functools.reduce(lax.add, map(_exponent, operands))
    drift = sum(x.drift for x in operands if isinstance(x, Scaled)) + 1
    if eqn.primitive.name != "mul" or drift > _MOST_DRIFT:
        return [_normal(product, exponent)]
    return [Scaled(product, lax.max(exponent, np.int32(_OF_ZEROS)), drift)]


def _quotient(eqn: Any, operands: list[Value]) -> list[Value]:
    above, below = map(_exponent, operands)
    (quotient,) = bound(eqn, map(_mantissa, operands))
    return [_normal(quotient, above - below)]


def _power(eqn: Any, operands: list[Value]) -> list[Value]:
    x, times = _settled(operands[0]), eqn.params.get("y", 2)
    (power,) = bound(eqn, [x.mantissa])
    return [_normal(power, x.exponent * times)]


def _root(eqn: Any, operands: list[Value]) -> list[Value]:
    x, sign = _settled(operands[0]), -1 if eqn.primitive.name == "rsqrt" else 1
    odd = x.exponent & 1
    (root,) = bound(eqn, [x.mantissa * _power_of_two(odd, x.mantissa.dtype)])
    return [_normal(root, sign * ((x.exponent - odd) // 2))]


def _sign(eqn: Any, operands: list[Value]) -> list[Value]:
    return [_scaled(x) for x in bound(eqn, map(_mantissa, operands))]


def _aligned(eqn: Any, operands: list[Value]) -> list[Value]:
    where = _ALIGNED[eqn.primitive.name](len(operands))
    arrays, exponent, drift = _to_one_exponent(operands[where])
    given = list(operands)
    given[where] = arrays
    found = bound(eqn, map(_plain, given))
    return [
        _normal(x, exponent) if drift > _MOST_DRIFT else Scaled(x, exponent, drift) for x in found
    ]


def _compared(eqn: Any, operands: list[Value]) -> list[Value]:
    return bound(eqn, _to_one_exponent(operands)[0])


def _to_one_exponent(operands: Sequence[Value]) -> tuple[list[jax.Array], jax.Array, int]:
    """Returns the arrays divided by one power of two, its exponent, and their drift.

    Zeros and infinities have no say: max(x, 0) of a tiny x stays as precise as x is.
    """
    have_a_say = [x for x in operands if not _is_zero_or_infinite(x)]
    if len(have_a_say) == 1 and isinstance(have_a_say[0], Scaled):
        return [_mantissa(x) for x in operands], have_a_say[0].exponent, have_a_say[0].drift
    settled = [x if _is_zero_or_infinite(x) or _drifts_little(x) else _settled(x) for x in operands]
    own = [x.exponent if isinstance(x, Scaled) else jnp.int32(_OF_ZEROS) for x in settled]
    exponent = functools.reduce(lax.max, own)
    arrays = [
        x.mantissa * _power_of_two(e - exponent, x.mantissa.dtype)
        if isinstance(x, Scaled)
        else _mantissa(x)
        for x, e in zip(settled, own, strict=True)
    ]
    drift = max(x.drift for x in settled if isinstance(x, Scaled))
    return arrays, exponent, drift + 1


def _is_zero_or_infinite(x: Value) -> bool:
    """Whether a number that is known beforehand is the same at any exponent."""
    if isinstance(x, Scaled | Tracer) or np.ndim(x):
        return False
    return float(x) == 0.0 or not np.isfinite(float(x))


def _drifts_little(x: Value) -> bool:
    return isinstance(x, Scaled) and x.drift <= _MOST_DRIFT


def _scaled(x: Any) -> Value:
    """An array in scaled form; one that is not float stays as it is."""
    return _normal(x, jnp.int32(0)) if jnp.issubdtype(jnp.result_type(x), jnp.floating) else x


def _settled(x: Value) -> Scaled:
    """A value in scaled form without drift."""
    if not isinstance(x, Scaled):
        return _normal(x, jnp.int32(0))
    return _normal(x.mantissa, x.exponent) if x.drift else x


def _normal(x: Any, exponent: jax.Array) -> Scaled:
    """The array x * 2^exponent with its largest entry brought to [0.5, 1), unless that is 0."""
    x = jnp.asarray(x)
    info, bits = jnp.finfo(x.dtype), _bits(x.dtype)
    largest = jnp.max(lax.abs(lax.stop_gradient(x)), initial=0.0)
    # The exponent of a float is in its bits: 0 for zeros, the highest one for NaN and infinities.
    biased = lax.bitcast_convert_type(largest, bits) >> np.asarray(info.nmant, bits)
    own = lax.convert_element_type(biased, np.int32) - np.int32(info.maxexp - 2)
    is_zero, is_finite = biased == 0, own < np.int32(info.maxexp + 1)
    own = lax.select(is_finite & ~is_zero, own, np.int32(0) * own)
    total = lax.max(exponent + own, np.int32(_OF_ZEROS))
    total = lax.select(is_zero, np.int32(0) * total + np.int32(_OF_ZEROS), total)
    return Scaled(x * _power_of_two(-own, x.dtype), total)


def _power_of_two(exponent: jax.Array, dtype: Any) -> jax.Array:
    """Returns 2^exponent, made of its bits; 0 below the smallest normal float of the dtype."""
    info, bits = jnp.finfo(dtype), _bits(dtype)
    biased = lax.clamp(
        np.int32(0), exponent + np.int32(info.maxexp - 1), np.int32(2 * info.maxexp - 2)
    )
    biased = lax.convert_element_type(biased, bits) << np.asarray(info.nmant, bits)
    return lax.bitcast_convert_type(biased, dtype)


def _bits(dtype: Any) -> Any:
    """The integers of as many bits as a float has."""
    return jnp.dtype(f"int{jnp.finfo(dtype).bits}")


def _plain(x: Value) -> jax.Array:
    """The array itself, at most the largest float and without a gradient beyond it."""
    if not isinstance(x, Scaled):
        return x
    x = _settled(x)
    exponent = lax.min(x.exponent, np.int32(jnp.finfo(x.mantissa.dtype).maxexp))
    # In two factors: the largest float is below 1 * 2^maxexp, and that is no float itself.
    half = exponent // 2
    for part in (half, exponent - half):
        x = x._replace(mantissa=x.mantissa * _power_of_two(part, x.mantissa.dtype))
    return x.mantissa


def _mantissa(x: Value) -> jax.Array:
    return x.mantissa if isinstance(x, Scaled) else jnp.asarray(x)


def _exponent(x: Value) -> jax.Array:
    return x.exponent if isinstance(x, Scaled) else jnp.int32(0)
