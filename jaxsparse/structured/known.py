"""The entries of small constants: the indices of a lookup, folded as far as they are known.

A lookup with a constant list of channels, such as a channel shuffle, reaches the jaxpr as a few
operations on integers: negative indices are wrapped, an axis is added. They are done here in NumPy.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

_MOST = 2**18  # entries of an array that is kept


def known_array(dtype: Any, shape: Sequence[int], value: Any) -> np.ndarray | None:
    """Returns a constant's entries if they may be indices: a small array of int or bool."""
    if not _may_be_index(dtype, shape):
        return None
    return np.asarray(value)


def folded(eqn: Any, operands: Sequence[np.ndarray | None]) -> np.ndarray | None:
    """Returns the entries that an operation gives, if its operands' entries are all known.

    None if an operand is not known, the operation is not one of those that make indices, or the
    result is no small array of int or bool.
    """
    fold = _FOLDS.get(eqn.primitive.name)
    if fold is None or any(x is None for x in operands) or len(eqn.outvars) != 1:
        return None
    aval = eqn.outvars[0].aval
    if not _may_be_index(aval.dtype, aval.shape):
        return None
    return np.asarray(fold(eqn.params, *operands)).astype(aval.dtype)


def _may_be_index(dtype: Any, shape: Sequence[int]) -> bool:
    is_whole = jnp.issubdtype(dtype, jnp.integer) or jnp.issubdtype(dtype, jnp.bool_)
    return is_whole and int(np.prod(shape)) <= _MOST


def _iota(p: Any) -> np.ndarray:
    axis, shape = p["dimension"], p["shape"]
    along = [n if a == axis else 1 for a, n in enumerate(shape)]
    return np.broadcast_to(np.arange(shape[axis]).reshape(along), shape)


def _broadcast(p: Any, x: np.ndarray) -> np.ndarray:
    along = [1] * len(p["shape"])
    for size, axis in zip(x.shape, p["broadcast_dimensions"], strict=True):
        along[axis] = size
    return np.broadcast_to(x.reshape(along), p["shape"])


def _slice(p: Any, x: np.ndarray) -> np.ndarray:
    strides = p["strides"] or (1,) * x.ndim
    ends = zip(p["start_indices"], p["limit_indices"], strides, strict=True)
    return x[tuple(slice(*end) for end in ends)]


_NUMPY: dict[str, Callable[..., Any]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "max": np.maximum,
    "min": np.minimum,
    "neg": np.negative,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "not": np.invert,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "eq": np.equal,
    "ne": np.not_equal,
    "convert_element_type": lambda x: x,  # `folded` gives the result its dtype
    "stop_gradient": lambda x: x,
    "copy": lambda x: x,
}
_FOLDS: dict[str, Callable[..., Any]] = {
    **{name: lambda p, *xs, call=call: call(*xs) for name, call in _NUMPY.items()},
    "select_n": lambda p, which, *cases: np.choose(which.astype(int), cases),
    "clamp": lambda p, low, x, high: np.clip(x, low, high),
    "iota": _iota,
    "broadcast_in_dim": _broadcast,
    "reshape": lambda p, x: x.reshape(p["new_sizes"]),
    "squeeze": lambda p, x: x.squeeze(tuple(p["dimensions"])),
    "transpose": lambda p, x: x.transpose(p["permutation"]),
    "concatenate": lambda p, *xs: np.concatenate(xs, p["dimension"]),
    "slice": _slice,
}
