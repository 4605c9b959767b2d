"""Looking into jaxprs: the functions that an equation calls."""

from typing import Any

from jax.extend import core


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
