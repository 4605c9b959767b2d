"""Whole numbers as people give them: Python's, NumPy's and JAX's, by one rule."""

import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer


def whole_number(value: Any) -> int | None:
    """Returns what counts as an index, as Python's int; None for anything else.

    An integer of any type and width counts, and so does an array of one without axes. A bool, a
    float, an array with axes and a traced value do not.

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
    """Returns a count or a step as int32[], whatever integer it is given as.

    Args:
      value: an integer as in `whole_number`, or a traced one of any type, which is cut to what
        int32 holds.
      name: for messages.

    Raises:
      ValueError: it is no integer; or it is known and not within (-2**31, 2**31).

    >>> int(jax.jit(lambda k: to_int32(k, "k"))(np.uint32(4_000_000_000)))
    2147483647
    """
    limits = np.iinfo(np.int32)
    if isinstance(value, jax.Array):
        if value.ndim or not jnp.issubdtype(value.dtype, jnp.integer):
            raise ValueError(f"{name} is {value}; it must be one integer")
        held = np.iinfo(value.dtype)
        if limits.min <= held.min and held.max <= limits.max:  # not looked at: no wait
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
