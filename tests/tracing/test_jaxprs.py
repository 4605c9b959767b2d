"""The walk over jaxprs: which inputs a value is made from, through calls, branches and loops."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from jaxsparse.tracing.jaxprs import Analysis, CallAnalysis, called, inner_equations, walk

X, W, STACK = jnp.ones((2, 2)), jnp.ones((2, 2)), jnp.ones((3, 2, 2))


class Names(Analysis[frozenset]):
    """Which inputs a value is made from; and every product, with the inputs of its operands."""

    def __init__(self, products=None):
        self.products = [] if products is None else products

    def constant(self, atom, value):
        return frozenset()

    def operation(self, eqn, operands):
        together = frozenset().union(*operands)
        if eqn.primitive.name == "dot_general":
            self.products.append("".join(sorted(together)))
        return [together] * len(eqn.outvars)

    def either(self, choices):
        return frozenset().union(*choices)

    def on_trial(self):
        return Names()


class CallNames(CallAnalysis[frozenset], Names):
    pass


def names(function, *inputs, analysis=Names):
    """What each output is made from, and the products in the order of execution, as strings."""
    walked = analysis()
    closed = jax.make_jaxpr(function)(*inputs)
    inputs = [frozenset(name) for name in "xwv"[: len(closed.jaxpr.invars)]]
    return ["".join(sorted(found)) for found in walk(closed, inputs, walked)], walked.products


@jax.custom_jvp
def _with_rule(x, w):
    return x @ w


_with_rule.defjvp(lambda primals, tangents: (_with_rule(*primals), tangents[0]))


@jax.custom_vjp
def _with_gradient(x, w):
    return x @ w


_with_gradient.defvjp(lambda x, w: (x @ w, (x, w)), lambda kept, g: (g, g))

CALLS = {
    "plain": lambda x, w: x @ w,
    "jit": jax.jit(lambda x, w: x @ w),
    "jit in jit": jax.jit(lambda x, w: jax.jit(jnp.matmul)(x, w)),
    "remat": jax.checkpoint(lambda x, w: x @ w),
    "custom_jvp": _with_rule,
    "custom_vjp": _with_gradient,
}


@pytest.mark.parametrize("name", CALLS)
def test_calls_are_walked_with_their_inputs(name):
    assert names(lambda x, w: (CALLS[name](x, w), x, 1.0), X, W) == (["wx", "x", ""], ["wx"])


def test_a_call_is_not_taken_as_a_whole():
    both = jax.jit(lambda x, w: (x + 1.0, w * 2.0, jnp.zeros(3)))
    assert names(both, X, W)[0] == ["x", "w", ""]


def test_an_array_that_the_function_closes_over():
    table = jnp.arange(4.0).reshape(2, 2)
    assert names(lambda x: (x @ table, table + 1), X) == (["x", ""], ["x"])


def test_outputs_of_branches_are_joined():
    chosen = lambda x, w: lax.cond(x.sum() > 0, lambda: (x @ x, 0 * w), lambda: (w, w + 1))
    assert names(chosen, X, W) == (["wx", "w"], ["x"])


LOOPS = {
    # The carry is made from its start, and from the second turn on from what is multiplied with it.
    "scan": (
        lambda x, w: lax.scan(lambda c, w: (c @ w, c), x, w),
        (X, STACK),
        (["wx", "wx"], ["wx"]),
    ),
    "scan with constants": (
        lambda x, w: lax.scan(lambda c, _: (c @ w, w), x, length=3),
        (X, W),
        (["wx", "w"], ["wx"]),
    ),
    # x reaches the last one of the carry in the third turn.
    "a carry that moves on": (
        lambda x, w: lax.scan(lambda c, _: ((x, c[0], c[1]), None), (w, w, w), length=4)[0],
        (X, W),
        (["wx", "wx", "wx"], []),
    ),
    "while": (
        lambda x, w: lax.while_loop(lambda c: c.sum() < 3, lambda c: c @ w, x),
        (X, W),
        (["wx"], ["wx"]),
    ),
}


@pytest.mark.parametrize("name", LOOPS)
def test_a_carry_is_what_holds_in_every_turn(name):
    function, inputs, expected = LOOPS[name]
    assert names(function, *inputs) == expected


def test_what_a_trial_records_is_left_out():
    """The body is walked twice and more; its product is recorded once."""
    twice = lambda x, w: lax.fori_loop(0, 2, lambda i, c: (c[1], c[0] @ w), (x, w))
    assert names(twice, X, W)[1] == ["wx"]


def test_an_analysis_of_calls_takes_loops_for_operations():
    looped = lambda x, w: (lax.fori_loop(0, 2, lambda i, c: c @ w, x), jax.jit(jnp.negative)(x))
    assert names(looped, X, W, analysis=CallNames) == (["wx", "x"], [])


def test_shards_are_walked_once():
    mesh = jax.make_mesh((2,), ("d",), axis_types=(AxisType.Auto,))
    shards = jax.shard_map(jnp.matmul, mesh=mesh, in_specs=(P("d"), P()), out_specs=P("d"))
    assert names(shards, X, W) == (["wx"], ["wx"])


def only_equation(function, *inputs):
    (eqn,) = jax.make_jaxpr(function)(*inputs).eqns
    return eqn


def test_what_calls_its_function_once_and_what_does_not():
    assert called(only_equation(jax.jit(jnp.matmul), X, W)) is not None
    assert called(only_equation(jnp.negative, X)) is None
    assert called(only_equation(lambda x: lax.cond(True, lambda: x, lambda: -x), X)) is None
    product = functools.partial(lax.reduce, computation=lambda a, b: a * b + a, dimensions=(0,))
    reduce = jax.make_jaxpr(lambda x: product(x, 1.0))(X).eqns[-1]
    assert reduce.primitive.name == "reduce" and called(reduce) is None


def test_equations_at_any_depth():
    nested = jax.jit(lambda x: lax.cond(x.sum() > 0, lambda: x @ x, jax.jit(lambda: jnp.sin(x))))
    found = {eqn.primitive.name for eqn in inner_equations(only_equation(nested, X))}
    assert {"cond", "dot_general", "sin"} <= found
    assert not list(inner_equations(only_equation(jnp.sin, X)))


def test_an_analysis_has_to_say_what_constants_and_operations_are():
    with pytest.raises(TypeError, match="abstract methods '?constant'?, '?operation"):
        Analysis()


def test_an_analysis_that_enters_branches_has_to_say_what_either_is():
    class Names(Analysis):
        def constant(self, atom, value):
            return "constant"

        def operation(self, eqn, operands):
            return [eqn.primitive.name] * len(eqn.outvars)

    branch = lambda x: lax.cond(x > 0, jnp.sin, jnp.cos, x)
    assert walk(jax.make_jaxpr(jnp.sin)(1.0), ["x"], Names()) == ["sin"]
    with pytest.raises(NotImplementedError, match="Names enters branches or loops: give `either`"):
        walk(jax.make_jaxpr(branch)(1.0), ["x"], Names())
