"""Looking into jaxprs: the functions that an equation calls, and what cannot be looked into."""

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
    """Whether an equation hands its operands to code without a jaxpr, and gets values back."""
    return eqn.primitive.name in _FOREIGN and bool(eqn.outvars)


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
