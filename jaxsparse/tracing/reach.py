"""What can depend on the input, and through which weights: a function run on 0 and 1.

The walk gives every value an array of 0 and 1 of its shape, its reach. Data have 1 where they may
depend on the input. Values made from parameters have 1 where they may be other than 0; for the
parameters themselves these are their masks. A product has 1 where it reads a 1 through a 1, and
sums, activations, norms and pooling have 1 where they read one. For example, x of reach [1, 1, 0]
times the masks [[1, 0], [0, 0], [1, 1]] has reach [1, 0].

After every operation each number above 0 becomes 1 again, and so does its gradient on the way back.
The numbers are therefore small counts at any depth and any sparsity, which neither underflow nor
cancel. The gradient of the number of outputs reached is above 0 exactly on the paths to them.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import core

from jaxsparse.tracing.equations import bound
from jaxsparse.tracing.jaxprs import CallAnalysis, walk
from jaxsparse.tracing.owner_operations import of_equation
from jaxsparse.tracing.owners import Owners, constant, mixed
from jaxsparse.tracing.primitives import ELEMENTWISE, SEPARATE


class Reach(NamedTuple):
    """The reach of a value that depends on the input or on parameters.

    Attributes:
      on: float32[shape of the value], 0 or 1.
      origin: the parameters that the value is made from; None if it depends on the input.
    """

    on: jax.Array
    origin: Owners | None = None


class Use(NamedTuple):
    """A product of data and parameters.

    Attributes:
      paths: the parameters that the kernel is made from.
      is_reached: bool[], whether any of the data may depend on the input.
    """

    paths: tuple[str, ...]
    is_reached: jax.Array


Value = Reach | Any
"""The reach; or the array itself, if it depends on neither input nor parameters."""

# Elementwise operations that give 0 where all operands are 0, as exp does not.
_ZERO_AT_ZERO = frozenset(
    """abs add add_any and asin asinh atan atan2 atanh cbrt ceil clamp convert_element_type copy
    copy_p div erf erf_inv expm1 floor gt log1p lt max min name ne neg or reduce_precision rem round
    select_n sign sin sinh sqrt square stop_gradient sub tan tanh xor""".split()
)
_SUMS = frozenset("add add_any sub".split())
# Linear operations that at most add up entries: they do to 0 and 1 what they do to values.
_PLAIN = frozenset(
    """broadcast_in_dim cumsum dynamic_slice expand_dims gather reduce_sum reduce_window_sum reshape
    rev slice split squeeze tile transpose unstack""".split()
)
_REDUCTIONS = frozenset(
    "argmax argmin reduce_and reduce_max reduce_min reduce_or reduce_prod".split()
)
_POOLING = frozenset("reduce_window reduce_window_max reduce_window_min".split())
_PRODUCTS = frozenset(("conv_general_dilated", "dot_general"))
# Values decide which entries they multiply.
_RAGGED_PRODUCTS = frozenset(("ragged_dot_general", "scaled_dot"))


def find_reach(closed: core.ClosedJaxpr, inputs: Sequence[Value]) -> tuple[list, list[Use]]:
    """Runs a jaxpr on the reach of its inputs.

    Values that depend on neither input nor parameters are computed as they are; in a product they
    count as not 0. A product of two data values (attention, gates) depends on whatever either
    factor depends on. In the outputs of an unknown operation, and of a loop, every entry depends on
    every entry that it reads.

    Args:
      closed: the function.
      inputs: of the function, `Reach` or arrays.

    Returns:
      The outputs, and the products of data and parameters in the order of execution.
    """
    uses: list[Use] = []
    return walk(closed, inputs, _Reaching(uses)), uses


@jax.custom_vjp
def clip(x: jax.Array) -> jax.Array:
    """Returns 1.0 where x is 1 or more and 0.0 elsewhere, and does the same to its gradient.

    It clips counts. The threshold lies between 0 and 1, so that a convolution that rounds, such as
    Winograd's algorithm, makes no path and breaks none.
    """
    return (x > 0.5).astype(jnp.float32)


clip.defvjp(lambda x: (clip(x), None), lambda _, gradient: (clip(gradient),))


class _Reaching(CallAnalysis[Value]):
    """Computes reach, and every value that has none as it is.

    A loop is an operation here: how often it turns may depend on values that are not known.

    Attributes:
      uses: the products met so far.
    """

    def __init__(self, uses: list[Use]):
        self.uses = uses

    def constant(self, atom: Any, value: Any) -> Value:
        del atom
        return value

    def operation(self, eqn: Any, operands: list[Value]) -> Sequence[Value]:
        if eqn.primitive.name in SEPARATE:
            return operands
        if any(isinstance(x, Reach) for x in operands):
            return _reached(eqn, operands, self.uses)
        return bound(eqn, operands)


def _reached(eqn: Any, operands: list[Value], uses: list[Use]) -> list[Value]:
    """Returns the outputs of an operation on values some of which have a reach."""
    name, params = eqn.primitive.name, eqn.params
    reaches = [x for x in operands if isinstance(x, Reach)]
    is_data = bool(_data(reaches))
    first, *others = operands
    alone = isinstance(first, Reach) and not any(isinstance(x, Reach) for x in others)
    if name in _PRODUCTS:
        found = _product(eqn, first, others[0], uses)
    elif name in _RAGGED_PRODUCTS:
        found = _ragged_product(eqn, reaches, uses)
    elif name in ELEMENTWISE:
        found = _elementwise(eqn, operands)
    elif name in _PLAIN and alone:
        found = eqn.primitive.bind(first.on, *others, **params)
    elif name in _REDUCTIONS and alone:
        found = first.on.sum(params["axes"])
    elif name in _POOLING and alone:
        found = _pooled(first.on, params)
    elif name == "pad" and alone:
        found = lax.pad(first.on, _on(others[0], is_data), params["padding_config"])
    elif name in ("concatenate", "stack"):
        found = eqn.primitive.bind(*(_on(x, is_data) for x in operands), **params)
    elif name == "dynamic_update_slice" and not any(isinstance(x, Reach) for x in others[1:]):
        on = (_on(x, is_data) for x in (first, others[0]))
        found = eqn.primitive.bind(*on, *others[1:], **params)
    else:
        found = [_anything(reaches, var.aval.shape) for var in eqn.outvars]
    found = found if isinstance(found, list | tuple) else [found]
    origins = [None] * len(found) if is_data else of_equation(eqn, [_owners(x) for x in operands])
    return [Reach(clip(on), origin) for on, origin in zip(found, origins, strict=True)]


def _owners(x: Value) -> Owners:
    if isinstance(x, Reach):
        return x.origin or constant(x.on.shape)
    return constant(np.shape(x))


def _on(x: Value, is_data: bool) -> jax.Array:
    """Returns the 0 and 1 of an operand. Beside data, parameters and constants have 0."""
    if isinstance(x, Reach):
        return jnp.zeros_like(x.on) if is_data and x.origin is not None else x.on
    return jnp.zeros(np.shape(x), jnp.float32) if is_data else _not_zero(x)


def _not_zero(x: Any) -> jax.Array:
    """Returns 1 where a constant is not 0."""
    return (jnp.asarray(x) != 0).astype(jnp.float32)


def _data(reaches: Sequence[Reach]) -> list[Reach]:
    return [x for x in reaches if x.origin is None]


def _elementwise(eqn: Any, operands: list[Value]) -> jax.Array:
    name, shape = eqn.primitive.name, eqn.outvars[0].aval.shape
    wide = lambda reaches: [jnp.broadcast_to(x.on, shape) for x in reaches]
    reaches = [x for x in operands if isinstance(x, Reach)]
    data, weights = _data(reaches), [x for x in reaches if x.origin is not None]
    if not data:
        return _made_from_parameters(eqn, operands, shape)
    found = clip(functools.reduce(lax.add, wide(data)))
    if name in _SUMS:  # a bias carries no path
        return found
    for on in wide(weights):
        found = found * (on if name == "mul" else 1 + on)
    return found


def _made_from_parameters(eqn: Any, operands: list[Value], shape: tuple[int, ...]) -> jax.Array:
    """Returns 1 where a value may be other than 0, with a path from all that takes part in it."""
    name = eqn.primitive.name
    wide = lambda values: [jnp.broadcast_to(_on(x, False), shape) for x in values]
    if name == "mul":
        return functools.reduce(lax.mul, wide(x for x in operands if isinstance(x, Reach)))
    # 0 divided by anything is 0, and so is a choice between zeros. The divisor and the condition
    # only take part.
    first, last = {"div": (0, 1), "select_n": (1, len(operands))}.get(name, (0, len(operands)))
    terms = wide(operands[first:last])
    if not (name in _ZERO_AT_ZERO or (name == "integer_pow" and eqn.params["y"] > 0)):
        terms.append(jnp.ones(shape, jnp.float32))
    others = [x for x in (*operands[:first], *operands[last:]) if isinstance(x, Reach)]
    factors = [1 + on for on in wide(others)]
    return functools.reduce(lax.mul, factors, clip(functools.reduce(lax.add, terms)))


def _product(eqn: Any, left: Value, right: Value, uses: list[Use]) -> jax.Array:
    ones = lambda x: jnp.ones(np.shape(x.on if isinstance(x, Reach) else x), jnp.float32)
    on = lambda x: x.on if isinstance(x, Reach) else ones(x)
    params = eqn.params | {"preferred_element_type": np.dtype(np.float32)}
    product = lambda a, b: eqn.primitive.bind(a, b, **params)
    reaches = [x for x in (left, right) if isinstance(x, Reach)]
    if len(_data(reaches)) == 2:
        return product(left.on, ones(right)) + product(ones(left), right.on)
    _record(reaches, uses)
    return product(on(left), on(right))


def _ragged_product(eqn: Any, reaches: list[Reach], uses: list[Use]) -> jax.Array:
    """Returns all or nothing: any row of the data may meet any part of the kernel."""
    _record(reaches, uses)
    shape, data = eqn.outvars[0].aval.shape, _data(reaches)
    weights = [x for x in reaches if x.origin is not None]
    if not data or not weights:
        return _anything(reaches, shape)
    found = clip(_total(data)) * clip(_total(weights))
    return jnp.broadcast_to(found, shape)


def _record(reaches: list[Reach], uses: list[Use]) -> None:
    data, weights = _data(reaches), [x.origin for x in reaches if x.origin is not None]
    if data and weights:
        paths = {path for origin in weights for path in mixed(origin)}
        is_reached = functools.reduce(lax.bitwise_or, (x.on.any() for x in data))
        uses.append(Use(tuple(sorted(paths)), is_reached))


def _pooled(on: jax.Array, params: dict[str, Any]) -> jax.Array:
    names = ("window_dimensions", "window_strides", "padding", "base_dilation", "window_dilation")
    return lax.reduce_window(on, np.float32(0), lax.add, *(params[name] for name in names))


def _anything(reaches: Sequence[Reach], shape: tuple[int, ...]) -> jax.Array:
    """Returns the reach of an unknown operation: all or nothing if it reads data, else all."""
    data, weights = _data(reaches), [x for x in reaches if x.origin is not None]
    # Every parameter among the operands may take part.
    found = (clip(_total(data)) if data else 1.0) * (1 + clip(_total(weights)))
    return jnp.broadcast_to(found, shape)


def _total(reaches: Sequence[Reach]) -> jax.Array:
    return sum((x.on.sum() for x in reaches), jnp.zeros((), jnp.float32))
