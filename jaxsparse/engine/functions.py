"""The functions that the engine applies where a layer writes, in NumPy."""

import math
from collections.abc import Callable, Mapping

import numpy as np

from jaxsparse.engine.operations import Activation


def applied(activation: Activation, x: np.ndarray) -> np.ndarray:
    """Returns what a function makes of numbers, as float64; not finite where it is not."""
    x = np.asarray(x, np.float64)
    function, low, high = activation
    with np.errstate(all="ignore"):
        if function in WITH_LIMITS:
            return WITH_LIMITS[function](x, low, high)
        return FUNCTIONS_OF_ONE[function](x)


def _logistic(x: np.ndarray) -> np.ndarray:
    return 0.5 + 0.5 * np.tanh(0.5 * x)


def _erf(x: np.ndarray) -> np.ndarray:
    return np.vectorize(math.erf, otypes=[np.float64])(x)


def _erfc(x: np.ndarray) -> np.ndarray:
    return np.vectorize(math.erfc, otypes=[np.float64])(x)


def _gelu_tanh(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def _softplus(x: np.ndarray) -> np.ndarray:
    return np.logaddexp(x, 0.0)


FUNCTIONS_OF_ONE: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "exp": np.exp,
    "expm1": np.expm1,
    "log": np.log,
    "tanh": np.tanh,
    "logistic": _logistic,
    "erf": _erf,
    "erfc": _erfc,
    "sqrt": np.sqrt,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "reciprocal": lambda x: 1 / x,
    "abs": np.abs,
    "silu": lambda x: x * _logistic(x),
    "gelu": lambda x: 0.5 * x * (1 + _erf(x / math.sqrt(2))),
    "gelu_tanh": _gelu_tanh,
    "softplus": _softplus,
    "mish": lambda x: x * np.tanh(_softplus(x)),
    "hard_silu": lambda x: x * np.clip(x + 3, 0, 6) / 6,
}
WITH_LIMITS: Mapping[str, Callable[[np.ndarray, float, float], np.ndarray]] = {
    "clamp": np.clip,
    "leaky_relu": lambda x, low, high: np.where(x > 0, x, low * x),
    "elu": lambda x, low, high: np.where(x > 0, high * x, low * np.expm1(np.minimum(x, 0))),
}
"""Those that also take the two numbers of an activation."""
