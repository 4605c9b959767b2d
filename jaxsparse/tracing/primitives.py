"""What kinds of operation JAX has, told from the names of its primitives."""

from typing import Any

from jax.extend import core
from jax.extend.core import primitives

ELEMENTWISE = frozenset(
    """abs acos acosh add add_any and asin asinh atan atan2 atanh cbrt ceil clamp
    convert_element_type copy copy_p cos cosh digamma div eq erf erf_inv erfc exp exp2 expm1 floor
    ge gt integer_pow is_finite le lgamma log log1p logistic lt max min mul name ne neg nextafter
    not or pow reduce_precision rem round rsqrt select_n sign sin sinh sqrt square stop_gradient sub
    tan tanh xor""".split()
)
"""Every entry of the result reads the entries at its own place, and nothing else."""

SEPARATE = frozenset(("optimization_barrier", "psum", "psum_invariant"))
"""Operations of several operands each of which has a result of its own."""

# JAX's own operations: `jax.extend` lists most, and these are the others of several operands.
_KNOWN = {p.name for p in vars(primitives).values() if isinstance(p, core.Primitive)} | set(
    """accum_grad_in_ref addupdate mulhi optimization_barrier pallas_call psum_invariant
    reduce_scatter scatter-sub select_if_vmap stack tie""".split()
)
_FOREIGN = frozenset(("call_exported", "ffi_call", "io_callback", "pure_callback"))
# Kernels of this library that multiply entry by entry: norms, and the larger of two lines.
_ELEMENTWISE_TARGETS = frozenset(
    """jaxsparse_lines_backward jaxsparse_lines_forward jaxsparse_norm_backward
    jaxsparse_norm_forward""".split()
)


def is_foreign(eqn: Any) -> bool:
    """Whether an equation hands its operands to code that may multiply them in any way."""
    is_known = eqn.params.get("target_name") in _ELEMENTWISE_TARGETS
    return eqn.primitive.name in _FOREIGN and bool(eqn.outvars) and not is_known


def may_multiply(eqn: Any, num_operands: int) -> bool:
    """Whether an equation without a jaxpr may hold products, because its operation is not known.

    Args:
      eqn: an equation that is no product itself.
      num_operands: how many of its operands are neither constants nor single numbers. Foreign code
        may multiply with values of its own; other operations need two operands.
    """
    is_known = eqn.primitive.name in _KNOWN or eqn.primitive.name in _FOREIGN
    return (is_foreign(eqn) and num_operands > 0) or (not is_known and num_operands > 1)
