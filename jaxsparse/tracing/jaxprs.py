"""Looking into jaxprs: what an equation calls, what kind it is, what cannot be looked into."""

from typing import Any

from jax.extend import core
from jax.extend.core import primitives

# JAX's own operations; the others are those of several operands that it does not list.
_KNOWN = {p.name for p in vars(primitives).values() if isinstance(p, core.Primitive)} | set(
    """accum_grad_in_ref addupdate mulhi optimization_barrier pallas_call psum_invariant
    reduce_scatter scatter-sub select_if_vmap stack tie""".split()
)
SEPARATE = frozenset(("optimization_barrier", "psum", "psum_invariant"))
"""Operations of several operands each of which has a result of its own."""
_FOREIGN = frozenset(("call_exported", "ffi_call", "io_callback", "pure_callback"))
# Kernels of ours that multiply entry by entry: norms, and the larger of two lines.
_ELEMENTWISE_TARGETS = frozenset(
    """jaxsparse_lines_backward jaxsparse_lines_forward jaxsparse_norm_backward
    jaxsparse_norm_forward""".split()
)

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
        if inner is not None and len(opened(inner).invars) <= len(eqn.invars):
            return inner if isinstance(inner, core.ClosedJaxpr) else core.ClosedJaxpr(inner, ())
    return None


def is_foreign(eqn: Any) -> bool:
    """Whether an equation hands its operands to code that may multiply them in any way."""
    is_known = eqn.params.get("target_name") in _ELEMENTWISE_TARGETS
    return eqn.primitive.name in _FOREIGN and bool(eqn.outvars) and not is_known


def may_multiply(eqn: Any, num_operands: int) -> bool:
    """Whether an equation without a jaxpr may hold products, as nobody knows what it does.

    Args:
      eqn: no product itself.
      num_operands: how many of its operands are neither constants nor numbers. Foreign code may
        multiply with values of its own; other operations need two operands.
    """
    is_known = eqn.primitive.name in _KNOWN or eqn.primitive.name in _FOREIGN
    return (is_foreign(eqn) and num_operands > 0) or (not is_known and num_operands > 1)


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
