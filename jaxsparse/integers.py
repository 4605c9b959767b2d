"""Whole numbers from Python, NumPy and JAX, accepted by one rule."""

import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer


def whole_number(value: Any) -> int | None:
    """Returns an integer as Python's int, or None for anything else.

    Integers of any type and width are accepted, and integer arrays without axes. A bool, a float,
    an array with axes and a traced value give None.

    >>> import numpy as np
    >>> whole_number(np.uint32(4_000_000_000)), whole_number(3.0), whole_number(True)
    (4000000000, None, None)
    """
    if isinstance(value, bool | np.bool_):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def to_int32(value: Any, name: str) -> jax.Array:
    """Returns a count or a step of any integer type as int32[].

    Args:
      value: an integer as in `whole_number`, or a traced integer of any type. A traced integer is
        clipped to the range of int32.
      name: name of the value, for messages.

    Raises:
      ValueError: the value is no integer, or is known and not in (-2**31, 2**31).

    >>> int(jax.jit(lambda k: to_int32(k, "k"))(np.uint32(4_000_000_000)))
    2147483647
    """
    limits = np.iinfo(np.int32)
    if isinstance(value, jax.Array):
        if value.ndim or not jnp.issubdtype(value.dtype, jnp.integer):
            raise ValueError(f"{name} is {value}; it must be one integer")
        held = np.iinfo(value.dtype)
        if limits.min <= held.min and held.max <= limits.max:  # it fits: no wait for the device
            return value.astype(jnp.int32)
        if isinstance(value, Tracer) or not value.is_fully_addressable:
            low, high = (value.dtype.type(n) for n in (max(limits.min, held.min), limits.max))
            return jnp.clip(value, low, high).astype(jnp.int32)
    number = whole_number(value)
    if number is None:
        raise ValueError(f"{name} is {value}; it must be one integer")
    if abs(number) > limits.max:
        raise ValueError(f"{name} is {number}; it must be below {2**31}")
    return jnp.asarray(number, jnp.int32)
