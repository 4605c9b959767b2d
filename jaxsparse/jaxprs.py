"""Looking into jaxprs: the functions that an equation calls, and what cannot be looked into."""

from typing import Any

from jax.extend import core
from jax.extend.core import primitives

# JAX's own operations; the second are those that it does not list, of several operands.
_KNOWN = {p.name for p in vars(primitives).values() if isinstance(p, core.Primitive)} | set(
    """accum_grad_in_ref addupdate mulhi optimization_barrier psum_invariant reduce_scatter
    scatter-sub select_if_vmap stack tie""".split()
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


def is_opaque(eqn: Any, num_operands: int) -> bool:
    """Whether an equation may multiply its operands without a jaxpr that says so.

    Args:
      eqn: one that holds no product and calls nothing.
      num_operands: how many of its operands are arrays that are not constant. Of one alone only
        foreign code makes products; other operations that are not known take at least two.
    """
    name = eqn.primitive.name
    if name in ("ffi_call", "pure_callback", "io_callback", "call_exported"):
        return bool(num_operands and eqn.outvars)
    return num_operands > 1 and name not in _KNOWN and name != "pallas_call"


def opened(jaxpr: Any) -> core.Jaxpr:
    """The jaxpr itself, of one that is closed over constants or not."""
    return jaxpr.jaxpr if isinstance(jaxpr, core.ClosedJaxpr) else jaxpr
