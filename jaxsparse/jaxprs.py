"""Looking into jaxprs: the functions that an equation calls, and what kind of operation it is."""

from typing import Any

from jax.extend import core

# Every entry of the result reads the entries at its own place, and nothing else.
ELEMENTWISE = frozenset(
    """abs acos acosh add add_any and asin asinh atan atan2 atanh cbrt ceil clamp
    convert_element_type copy copy_p cos cosh digamma div eq erf erf_inv erfc exp exp2 expm1 floor
    ge gt integer_pow is_finite le lgamma log log1p logistic lt max min mul name ne neg nextafter
    not or pow reduce_precision rem round rsqrt select_n sign sin sinh sqrt square stop_gradient sub
    tan tanh xor""".split()
)


def called(eqn: Any) -> core.ClosedJaxpr | None:
    """The jaxpr that a jit, remat, custom derivative or rule calls with the equation's inputs.

    Its inputs are the last ones of the equation. None: the equation calls nothing, or it is not
    known how often, with what.
    """
    if eqn.primitive.name == "pallas_call":  # calls its own for every block of the inputs
        return None
    for name in ("jaxpr", "call_jaxpr", "fun_jaxpr", "call"):
        inner = eqn.params.get(name)
        if inner is not None:
            return inner if isinstance(inner, core.ClosedJaxpr) else core.ClosedJaxpr(inner, ())
    return None


def opened(jaxpr: Any) -> core.Jaxpr:
    """The jaxpr itself, of one that is closed over constants or not."""
    return jaxpr.jaxpr if isinstance(jaxpr, core.ClosedJaxpr) else jaxpr


def scan_parts(eqn: Any) -> tuple[int, int]:
    """Returns how many inputs of a scan are constants, and how many inputs and outputs its carry.

    The other inputs are slices of arrays, and the other outputs make arrays. JAX's versions name
    these numbers differently; but slices have one axis less inside than outside.
    """
    body = opened(eqn.params["jaxpr"])
    whole = lambda outer, inner: sum(
        len(x.aval.shape) == len(y.aval.shape) for x, y in zip(outer, inner, strict=True)
    )
    num_carry = whole(eqn.outvars, body.outvars)
    return whole(eqn.invars, body.invars) - num_carry, num_carry
