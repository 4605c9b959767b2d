"""The one walk over jaxprs, and what an equation is: a call, an operation, or code that is opaque.

An analysis says what it knows of each input of a function, and what an operation makes of that.
`walk` carries it from equation to equation, into calls and out again, and returns what is known of
the outputs. `branches` and `settled` do the same for branches and loops. FLOPs, reach, the axes of
kernels, frozen leaves and stored scores are such analyses.
"""

import operator
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

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


# They hold a jaxpr, but do not call it once with their inputs as they are.
_NO_CALLS = frozenset(
    "custom_linear_solve pallas_call reduce reduce_window scan shard_map while".split()
)

Known = TypeVar("Known")
"""What an analysis knows of a value."""


def walk(
    jaxpr: core.Jaxpr | core.ClosedJaxpr,
    inputs: Sequence[Known],
    operation: Callable[[Any, list[Known]], Sequence[Known]],
    constant: Callable[[Any, Any], Known],
) -> list[Known]:
    """Returns what an analysis knows of the outputs of a jaxpr.

    Equations that call a jaxpr once (jit, remat, custom derivatives) are walked into.

    Args:
      jaxpr: the function.
      inputs: what is known of each of its inputs.
      operation: (equation, what is known of its operands) -> what is known of its results. It gets
        every equation that is no call: operations, and branches and loops, for which it may use
        `branches` and `settled`.
      constant: (variable or literal, its value) -> what is known of a constant. The value is None
        if the jaxpr is not closed over it.

    >>> import jax
    >>> closed = jax.make_jaxpr(lambda x, y: (jax.jit(lambda a: a + 1)(x) * y, 2.0))(1.0, 1.0)
    >>> names = lambda eqn, operands: [f"{eqn.primitive.name}({', '.join(operands)})"]
    >>> walk(closed, ["x", "y"], names, lambda atom, value: str(value))
    ['mul(add(x, 1.0), y)', '2.0']
    """
    inner = opened(jaxpr)
    values = jaxpr.consts if isinstance(jaxpr, core.ClosedJaxpr) else [None] * len(inner.constvars)
    constants = dict(zip(inner.constvars, values, strict=True))
    known: dict[Any, Known] = dict(zip(inner.invars, inputs, strict=True))

    def of(atom: Any) -> Known:
        if isinstance(atom, core.Literal):
            return constant(atom, atom.val)
        return known[atom] if atom in known else constant(atom, constants.get(atom))

    for eqn in inner.eqns:
        operands = [of(atom) for atom in eqn.invars]
        body = called(eqn)
        if body is None:
            results = operation(eqn, operands)
        else:
            taken = operands[len(operands) - len(body.jaxpr.invars) :]
            results = walk(body, taken, operation, constant)
        known.update(zip(eqn.outvars, results, strict=True))
    return [of(atom) for atom in inner.outvars]


def branches(
    eqn: Any,
    operands: Sequence[Known],
    run: Callable[[core.Jaxpr, list[Known]], Sequence[Known]],
    either: Callable[[Sequence[Known]], Known],
) -> list[Known]:
    """Returns what is known of the results of a `cond` or `switch`, whichever branch is taken.

    Args:
      eqn: the equation.
      operands: what is known of its operands, the index of the branch first.
      run: walks a branch.
      either: what is known of a value that is one of several.
    """
    outputs = [run(opened(branch), list(operands[1:])) for branch in eqn.params["branches"]]
    return [either(choices) for choices in zip(*outputs, strict=True)]


def settled(
    carry: Sequence[Known],
    turn: Callable[[list[Known]], Sequence[Known]],
    either: Callable[[Sequence[Known]], Known],
    is_same: Callable[[list[Known], list[Known]], bool] = operator.eq,
) -> list[Known]:
    """Returns what is known of the carry of a loop in every turn.

    The carry of one turn is the start or the result of the turn before. What is known can only
    become less from turn to turn, so the search ends.

    Args:
      carry: what is known at the start.
      turn: what one turn of the loop makes of it.
      either: what is known of a value that is one of several.
      is_same: whether nothing changed any more.

    >>> settled(["a", "a"], lambda carry: ["a", carry[0]], lambda pair: max(pair))
    ['a', 'a']
    >>> settled(["a", "a"], lambda carry: ["b", carry[0]], lambda pair: max(pair))
    ['b', 'b']
    """
    found = list(carry)
    while True:
        after = [either(pair) for pair in zip(found, turn(found), strict=True)]
        if is_same(found, after):
            return after
        found = after


def called(eqn: Any) -> core.ClosedJaxpr | None:
    """The jaxpr that a jit, remat, custom derivative or rule calls with the equation's inputs.

    Its inputs are the last ones of the equation. None: the equation calls nothing, or it is not
    known how often, with what.
    """
    if eqn.primitive.name in _NO_CALLS:
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
