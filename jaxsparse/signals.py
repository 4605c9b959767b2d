"""Running a function on signals in place of values: what can depend on the input, and through what.

The function's jaxpr is walked. Data carry a signal, 1 where a value may depend on the input and 0
where it cannot; parameters carry their masks. A product gives 1 where it reads a 1 through a 1;
sums, activations, norms and pooling give 1 where they read one. After every operation what is above
0 becomes 1 again, and so does its gradient on the way back. The numbers are therefore small counts
at any depth and any sparsity, which neither underflow nor cancel, and the gradient of the number of
outputs reached is above 0 exactly on the paths that reach them.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import core

from jaxsparse.jaxprs import called


class Signal(NamedTuple):
    """What stands for a value that depends on the input or on parameters.

    Attributes:
      on: float32[shape of the value], 0 or 1.
      origin: size and path of the largest parameter that a value is made of; None where it depends
        on the input.
    """

    on: jax.Array
    origin: tuple[int, str] | None = None


class Use(NamedTuple):
    """A product of data and a parameter.

    Attributes:
      path: of the parameter.
      is_reached: bool[], whether any of the data may depend on the input.
    """

    path: str
    is_reached: jax.Array


Value = Signal | Any
"""A signal; or the array itself, of a value that depends on neither."""

# Every entry of the result reads the entries at its own place, and nothing else.
_ELEMENTWISE = frozenset(
    """abs acos acosh add add_any and asin asinh atan atan2 atanh cbrt ceil clamp
    convert_element_type copy copy_p cos cosh digamma div eq erf erf_inv erfc exp exp2 expm1 floor
    ge gt integer_pow is_finite le lgamma log log1p logistic lt max min mul name ne neg nextafter
    not or pow reduce_precision rem round rsqrt select_n sign sin sinh sqrt square stop_gradient sub
    tan tanh xor""".split()
)
# Linear, with entries that are at most added up: they do with signals what they do with values.
_PLAIN = frozenset(
    """broadcast_in_dim cumsum dynamic_slice expand_dims gather reduce_sum reduce_window_sum reshape
    rev slice split squeeze transpose""".split()
)
_REDUCTIONS = frozenset(
    "argmax argmin reduce_and reduce_max reduce_min reduce_or reduce_prod".split()
)
_POOLING = frozenset("reduce_window reduce_window_max reduce_window_min".split())
_PRODUCTS = frozenset(("conv_general_dilated", "dot_general"))
# They call a jaxpr, but not once with their inputs as they are.
_NO_CALLS = frozenset(("scan", "shard_map", "reduce", "reduce_window", "custom_linear_solve"))


def run_on_signals(closed: core.ClosedJaxpr, inputs: Sequence[Value]) -> tuple[list, list[Use]]:
    """Runs a jaxpr on signals.

    Values that depend on neither input nor parameters are computed as they are; in a product or sum
    with a signal they count as not 0. Of data by data (attention, gates) either side passes on what
    it depends on. An operation that is not known, a loop say, gives outputs of which every entry
    depends on every entry that it reads.

    Args:
      closed: the function.
      inputs: of the function; signals, or arrays.

    Returns:
      The outputs, and the products of data and parameters in the order of execution.
    """
    uses: list[Use] = []
    return _walk(closed, inputs, uses), uses


@jax.custom_vjp
def clip(x: jax.Array) -> jax.Array:
    """Returns 1.0 where x is 1 or more and 0.0 elsewhere, and does the same to its gradient.

    What is clipped are counts. The threshold lies between 0 and 1, so that a convolution that
    rounds, by Winograd's algorithm say, makes no path and breaks none.
    """
    return (x > 0.5).astype(jnp.float32)


clip.defvjp(lambda x: (clip(x), None), lambda _, gradient: (clip(gradient),))


def _walk(closed: core.ClosedJaxpr, inputs: Sequence[Value], uses: list[Use]) -> list[Value]:
    jaxpr = closed.jaxpr
    values: dict[Any, Value] = dict(zip(jaxpr.constvars, closed.consts, strict=True))
    values |= dict(zip(jaxpr.invars, inputs, strict=True))

    def read(atom: Any) -> Value:
        return atom.val if isinstance(atom, core.Literal) else values[atom]

    for eqn in jaxpr.eqns:
        operands = [read(atom) for atom in eqn.invars]
        inner = None if eqn.primitive.name in _NO_CALLS else called(eqn)
        if inner is not None:
            outputs = _walk(inner, operands[len(operands) - len(inner.jaxpr.invars) :], uses)
        elif any(isinstance(x, Signal) for x in operands):
            outputs = _signals(eqn, operands, uses)
        else:
            params = eqn.primitive.get_bind_params(eqn.params)
            outputs = eqn.primitive.bind(*operands, **params)
            outputs = outputs if eqn.primitive.multiple_results else [outputs]
        values.update(zip(eqn.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _signals(eqn: Any, operands: list[Value], uses: list[Use]) -> list[Value]:
    """What an equation that calls nothing makes of signals."""
    name, params = eqn.primitive.name, eqn.params
    signals = [x for x in operands if isinstance(x, Signal)]
    origins = [x.origin for x in signals]
    known = [origin for origin in origins if origin is not None]
    origin = max(known) if len(known) == len(origins) else None
    first, *others = operands
    alone = isinstance(first, Signal) and not any(isinstance(x, Signal) for x in others)
    if name in _PRODUCTS:
        found = _product(eqn, first, others[0], uses)
    elif name in _ELEMENTWISE:
        found = _elementwise(name, signals, eqn.outvars[0].aval.shape)
    elif name in _PLAIN and alone:
        found = eqn.primitive.bind(first.on, *others, **params)
    elif name in _REDUCTIONS and alone:
        found = first.on.sum(params["axes"])
    elif name in _POOLING and alone:
        found = _pooled(first.on, params)
    elif name == "pad" and alone:
        found = lax.pad(first.on, np.float32(0), params["padding_config"])
    elif name == "concatenate":
        found = eqn.primitive.bind(*(_on(x, origin is None) for x in operands), **params)
    else:
        found = [_anything(signals, var.aval.shape) for var in eqn.outvars]
    found = found if isinstance(found, list | tuple) else [found]
    return [Signal(clip(on), origin) for on in found]


def _on(x: Value, data_only: bool) -> jax.Array:
    """The signal of an operand: 0 for a constant, and for parameters beside data."""
    if isinstance(x, Signal) and not (data_only and x.origin):
        return x.on
    return jnp.zeros(np.shape(x.on if isinstance(x, Signal) else x), jnp.float32)


def _data(signals: Sequence[Signal]) -> list[Signal]:
    return [x for x in signals if x.origin is None]


def _elementwise(name: str, signals: list[Signal], shape: tuple[int, ...]) -> jax.Array:
    """A parameter matters where it is multiplied; added to data, as a bias is, it carries none."""
    data = _data(signals)
    weights = [jnp.broadcast_to(x.on, shape) for x in signals if x.origin is not None]
    factors = weights if name == "mul" else []
    terms = [jnp.broadcast_to(x.on, shape) for x in data] or (not factors and weights)
    if terms:
        factors = [clip(functools.reduce(lax.add, terms)), *factors]
    return functools.reduce(lax.mul, factors)


def _product(eqn: Any, left: Value, right: Value, uses: list[Use]) -> jax.Array:
    ones = lambda x: jnp.ones(np.shape(x.on if isinstance(x, Signal) else x), jnp.float32)
    on = lambda x: x.on if isinstance(x, Signal) else ones(x)
    params = eqn.params | {"preferred_element_type": np.dtype(np.float32)}
    product = lambda a, b: eqn.primitive.bind(a, b, **params)
    signals = [x for x in (left, right) if isinstance(x, Signal)]
    data = _data(signals)
    if len(data) == 2:
        return product(left.on, ones(right)) + product(ones(left), right.on)
    if data and len(signals) == 2:
        (path,) = (x.origin[1] for x in signals if x.origin is not None)
        uses.append(Use(path, data[0].on.any()))
    return product(on(left), on(right))


def _pooled(on: jax.Array, params: dict[str, Any]) -> jax.Array:
    names = ("window_dimensions", "window_strides", "padding", "base_dilation", "window_dilation")
    return lax.reduce_window(on, np.float32(0), lax.add, *(params[name] for name in names))


def _anything(signals: Sequence[Signal], shape: tuple[int, ...]) -> jax.Array:
    """The signal of an unknown operation: all or nothing."""
    total = lambda terms: clip(sum((x.on.sum() for x in terms), jnp.zeros((), jnp.float32)))
    data = _data(signals)
    found = total(data or signals)
    if data:  # any parameter among the operands may have its part in it
        found = found * (1 + total([x for x in signals if x.origin is not None]))
    return jnp.broadcast_to(found, shape)
