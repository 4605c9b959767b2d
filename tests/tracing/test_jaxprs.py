"""One walk over jaxprs: into calls, over branches, around loops, and up to what is opaque."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxsparse.tracing.jaxprs import (
    branches,
    called,
    is_foreign,
    may_multiply,
    opened,
    scan_parts,
    settled,
    walk,
)

X = jnp.arange(3.0)


def depends(fun, *args, on):
    """Which outputs depend on the inputs whose numbers are in `on`, as an analysis of one line."""
    union = lambda sets: frozenset().union(*sets)

    def operation(eqn, operands):
        name = eqn.primitive.name
        if name == "cond":
            index, *_ = operands
            found = branches(eqn, operands, lambda body, given: run(body, given), union)
            return [index | x for x in found]
        if name == "scan":
            first, num = scan_parts(eqn)
            before, carry, after = (
                operands[:first],
                operands[first : first + num],
                operands[first + num :],
            )
            turn = lambda carry: run(eqn.params["jaxpr"], [*before, *carry, *after])
            carry = settled(carry, lambda carry: turn(carry)[:num], union)
            return [*carry, *turn(carry)[num:]]
        return [union(operands)] * len(eqn.outvars)

    run = lambda jaxpr, given: walk(jaxpr, given, operation, lambda atom, value: frozenset())
    closed = jax.make_jaxpr(fun)(*args)
    given = [frozenset([i]) for i in range(len(closed.jaxpr.invars))]
    return [bool(on & x) for x in run(closed, given)]


@jax.custom_jvp
def with_jvp(x):
    return 2 * x


with_jvp.defjvp(lambda primals, tangents: (with_jvp(*primals), 2 * tangents[0]))


@jax.custom_vjp
def with_vjp(x):
    return 2 * x


with_vjp.defvjp(lambda x: (2 * x, None), lambda _, g: (2 * g,))

CALLS = {
    "jit": jax.jit,
    "remat": jax.checkpoint,
    "jit of remat": lambda f: jax.jit(jax.checkpoint(f)),
    "vmap of jit": lambda f: jax.vmap(jax.jit(f)),
}


@pytest.mark.parametrize("name", CALLS)
def test_calls_are_walked_into(name):
    """Each output of a call depends on its own input, not on all that the call was given."""
    swap = CALLS[name](lambda x, y: (y + 1.0, x * 2.0))
    assert depends(lambda x, y: swap(x, y), X, X, on={0}) == [False, True]


@pytest.mark.parametrize("function", [with_jvp, with_vjp, jax.nn.relu, jax.nn.gelu])
def test_custom_derivatives_are_walked_into(function):
    closed = jax.make_jaxpr(function)(X)
    names = []

    def operation(eqn, operands):
        names.append(eqn.primitive.name)
        return [True] * len(eqn.outvars)

    assert walk(closed, [True], operation, lambda atom, value: False) == [True]
    assert names and not any("call" in name or name in ("jit", "pjit") for name in names)


def test_any_branch_may_be_taken():
    choose = lambda i, x, y: lax.cond(i, lambda x, y: (2 * x, x), lambda x, y: (3 * x, y), x, y)
    assert depends(choose, True, X, X, on={2}) == [False, True]
    assert depends(choose, True, X, X, on={0}) == [True, True]


def test_a_loop_is_walked_until_nothing_changes():
    """The first of three numbers reaches the last after three turns, not after one."""
    shift = lambda carry, _: ((carry[0], carry[0], carry[1]), carry[2])
    chain = lambda a, b, c: lax.scan(shift, (a, b, c), length=4)
    assert depends(chain, 1.0, 2.0, 3.0, on={0}) == [True, True, True, True]
    assert depends(chain, 1.0, 2.0, 3.0, on={1}) == [False, True, True, True]
    assert depends(chain, 1.0, 2.0, 3.0, on={2}) == [False, False, True, True]


def test_constants_have_their_values():
    table = np.arange(3.0, dtype=np.float32)
    closed = jax.make_jaxpr(lambda x: (x + table, 2.0, x))(X)
    seen = []

    def constant(atom, value):
        seen.append(value)
        return "constant"

    found = walk(closed, ["x"], lambda eqn, operands: ["+".join(operands)], constant)
    assert found == ["x+constant", "constant", "x"]
    for expected in (table, 2.0):
        assert any(np.array_equal(value, expected) for value in seen)


def equation(fun, *args):
    return jax.make_jaxpr(fun)(*args).jaxpr.eqns[-1]


def test_what_holds_a_jaxpr_and_is_no_call():
    loop = equation(lambda x: lax.while_loop(lambda x: x.sum() < 9.0, lambda x: x + 1.0, x), X)
    scan = equation(lambda x: lax.scan(lambda c, _: (c + 1.0, None), x, length=2)[0], X)
    cond = equation(lambda x: lax.cond(x[0] > 0, jnp.sin, jnp.cos, x), X)
    reduction = equation(
        lambda x: lax.reduce(x, np.float32(0), lambda a, b: jnp.maximum(a, b) + a * b, [0]), X
    )
    assert [called(eqn) for eqn in (loop, scan, cond, reduction)] == [None] * 4


def test_the_parts_of_a_scan():
    eqn = equation(
        lambda w, c, xs: lax.scan(lambda c, x: (c + w * x, c), c, xs), X, X, jnp.ones((4, 3))
    )
    assert scan_parts(eqn) == (1, 1)
    assert opened(eqn.params["jaxpr"]) is eqn.params["jaxpr"].jaxpr


def test_what_cannot_be_looked_into():
    call = lambda x: jax.pure_callback(np.sin, jax.ShapeDtypeStruct(x.shape, x.dtype), x)
    callback = equation(call, X)
    assert is_foreign(callback) and may_multiply(callback, 1) and not may_multiply(callback, 0)
    plus = equation(lambda x, y: x + y, X, X)
    assert not is_foreign(plus) and not may_multiply(plus, 2)
