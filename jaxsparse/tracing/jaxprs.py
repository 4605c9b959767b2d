"""The one walk over jaxprs: it follows calls, branches and loops for every analysis of a function.

A walk runs a function on abstract values, which stand for its arrays: the leaves that an array is
made from, say, or whether it depends on a key. An `Analysis` says what an operation does to such
values, and what holds of an array that may be either of two. The walk does the rest.

For example, this analysis tells which outputs depend on an input, whatever is called on the way:

>>> import jax.numpy as jnp
>>> class Depends(Analysis[bool]):
...     def constant(self, atom, value):
...         return False
...
...     def operation(self, eqn, operands):
...         return [any(operands)] * len(eqn.outvars)
...
...     def either(self, choices):
...         return any(choices)
>>> closed = jax.make_jaxpr(lambda x, y: (jnp.tanh(x), jax.nn.relu(x) * y, y))(1.0, 2.0)
>>> walk(closed, [False, True], Depends())
[False, True, True]
"""

import abc
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, TypeVar

import jax
from jax.extend import core

V = TypeVar("V")
"""Knowledge of an array, in the terms of an analysis."""


class Analysis(abc.ABC, Generic[V]):
    """The rules of an analysis: what operations, branches and loops do to what is known of values.

    A subclass gives `constant` and `operation`, and `either` if it enters branches or loops.
    The other methods suit values that say nothing of shapes, and an analysis that has no record of
    what it saw on its way.
    """

    @abc.abstractmethod
    def constant(self, atom: Any, value: Any) -> V:
        """Returns what is known of a literal or of an array that the function closes over.

        Args:
          atom: in the jaxpr, a `Literal` or a `Var`; `atom.aval` has its shape and dtype.
          value: its array or number.
        """

    @abc.abstractmethod
    def operation(self, eqn: Any, operands: list[V]) -> Sequence[V]:
        """Returns the outputs of an equation that the walk does not enter."""

    def either(self, choices: Sequence[V]) -> V:
        """Returns what holds of an array that is one of several, whichever it is.

        A loop joins what it starts from and what a turn leaves until nothing changes. This comes to
        an end if joining only ever loses what is known, and that is finite.

        Raises:
          NotImplementedError: the analysis enters branches or loops and does not say.
        """
        raise NotImplementedError(f"{type(self).__name__} enters branches or loops: give `either`")

    def enters(self, eqn: Any, operands: list[V]) -> bool:
        """Whether to walk through the functions of an equation that has any."""
        del eqn, operands
        return True

    # For an analysis that keeps a record, such as a count.

    def inside(self, eqn: Any) -> "Analysis[V]":
        """Returns the analysis of the body of a loop or `shard_map`, or of one branch."""
        del eqn
        return self

    def on_trial(self) -> "Analysis[V]":
        """Returns the analysis of a turn of a loop that is walked to see what it does to the carry.

        Its record is left out: the body is walked again when the carry is settled.
        """
        return self

    def chose(self, branches: Sequence["Analysis[V]"]) -> None:
        """Is told the analyses `inside` the branches of a `cond` that were walked."""

    # For values that say something of shapes, which change on the way into and out of a function.

    def slice(self, x: V) -> V:
        """Returns what holds of any slice, along the first axis, of an array that a scan reads."""
        return x

    def stacked(self, x: V, shape: tuple[int, ...]) -> V:
        """Returns what holds of an array of this shape whose slices a scan has made."""
        del shape
        return x

    def part(self, x: V, shape: tuple[int, ...]) -> V:
        """Returns what holds of an array's part on a device, and of the array of such parts."""
        del shape
        return x

    # For loops that have to settle or end in another way.

    def carried(self, before: list[V], after: list[V]) -> list[V]:
        """Returns what holds of a carry both before a turn and after it."""
        return [self.either(pair) for pair in zip(before, after, strict=True)]

    def is_settled(self, before: list[V], after: list[V]) -> bool:
        """Whether another turn would leave what holds of a carry as it is."""
        return before == after

    def left(self, always: V, last: V) -> V:
        """Returns what a loop leaves.

        Args:
          always: what holds of the carry before and after every turn.
          last: what holds of it after the last turn, if there is one.
        """
        return self.either((always, last))


class CallAnalysis(Analysis[V]):
    """An analysis that enters calls alone, and is given branches and loops as operations."""

    def enters(self, eqn: Any, operands: list[V]) -> bool:
        """Whether the equation is a call."""
        del operands
        return eqn.primitive.name not in _ENTRANCES


def walk(closed: core.ClosedJaxpr, inputs: Sequence[V], analysis: Analysis[V]) -> list[V]:
    """Runs a jaxpr on abstract values, and returns those of its outputs.

    Args:
      closed: of a function, from `jax.make_jaxpr`.
      inputs: one value for each input.
      analysis: what is made of them.
    """
    jaxpr = closed.jaxpr
    values: dict[core.Var, V] = dict(zip(jaxpr.invars, inputs, strict=True))
    for var, array in zip(jaxpr.constvars, closed.consts, strict=True):
        values[var] = analysis.constant(var, array)

    def read(atom: Any) -> V:
        is_literal = isinstance(atom, core.Literal)
        return analysis.constant(atom, atom.val) if is_literal else values[atom]

    for eqn in jaxpr.eqns:
        operands = [read(atom) for atom in eqn.invars]
        enter = _ENTRANCES.get(eqn.primitive.name) or (_call if called(eqn) else None)
        if enter is not None and analysis.enters(eqn, operands):
            outputs = enter(eqn, operands, analysis)
        else:
            outputs = analysis.operation(eqn, operands)
        values.update(zip(eqn.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def called(eqn: Any) -> core.ClosedJaxpr | None:
    """Returns the function that a jit, remat, custom derivative or rule calls once.

    Its inputs are the last ones of the equation. None: the equation calls nothing, or it is not
    known how often, with what.
    """
    if eqn.primitive.name in _NO_CALLS:
        return None
    for name in ("jaxpr", "call_jaxpr", "fun_jaxpr", "call"):
        inner = eqn.params.get(name)
        if inner is not None and len(closed_over(inner).jaxpr.invars) <= len(eqn.invars):
            return closed_over(inner)
    return None


def inner_equations(eqn: Any) -> Iterator[Any]:
    """Yields the equations of all functions that belong to an equation, however deep they are."""
    is_jaxpr = lambda value: isinstance(value, core.Jaxpr | core.ClosedJaxpr)
    for value in filter(is_jaxpr, jax.tree.leaves(list(eqn.params.values()), is_leaf=is_jaxpr)):
        for inner in closed_over(value).jaxpr.eqns:
            yield inner
            yield from inner_equations(inner)


def closed_over(jaxpr: Any) -> core.ClosedJaxpr:
    """Returns the jaxpr as one that is closed over constants; one that is not has none."""
    return jaxpr if isinstance(jaxpr, core.ClosedJaxpr) else core.ClosedJaxpr(jaxpr, ())


def _call(eqn: Any, operands: list[V], analysis: Analysis[V]) -> list[V]:
    inner = called(eqn)
    assert inner is not None
    return walk(inner, operands[len(operands) - len(inner.jaxpr.invars) :], analysis)


def _cond(eqn: Any, operands: list[V], analysis: Analysis[V]) -> list[V]:
    branches = [(branch, analysis.inside(eqn)) for branch in eqn.params["branches"]]
    outputs = [walk(closed_over(branch), operands[1:], inside) for branch, inside in branches]
    analysis.chose([inside for _, inside in branches])
    return [analysis.either(choices) for choices in zip(*outputs, strict=True)]


def _scan(eqn: Any, operands: list[V], analysis: Analysis[V]) -> list[V]:
    num_constants, num_carry = _scan_parts(eqn)
    num_whole = num_constants + num_carry
    operands = operands[:num_whole] + [analysis.slice(x) for x in operands[num_whole:]]
    carry, slices = _loop(eqn, "jaxpr", operands, num_constants, num_carry, analysis)
    made = zip(slices, eqn.outvars[num_carry:], strict=True)
    return [*carry, *(analysis.stacked(x, var.aval.shape) for x, var in made)]


def _while(eqn: Any, operands: list[V], analysis: Analysis[V]) -> list[V]:
    """Walks through the body, not through the condition, which makes no value."""
    num_constants, operands = eqn.params["body_nconsts"], operands[eqn.params["cond_nconsts"] :]
    num_carry = len(operands) - num_constants
    return _loop(eqn, "body_jaxpr", operands, num_constants, num_carry, analysis)[0]


def _loop(
    eqn: Any,
    body_name: str,
    operands: list[V],
    num_constants: int,
    num_carry: int,
    analysis: Analysis[V],
) -> tuple[list[V], list[V]]:
    """Returns the carry and the other outputs of the last turn.

    The body is walked until what is known of the carry holds before and after every turn. In

        scan(lambda c, x: (c * x, c), 0, xs)

    with the values "zero" and "anything", c is zero before the first turn and after it, so it is
    settled at once. With c + x it is anything after the first, hence anything in every turn.
    """
    body = closed_over(eqn.params[body_name])
    end = num_constants + num_carry
    constants, carry, slices = operands[:num_constants], operands[num_constants:end], operands[end:]
    is_settled = False
    while not is_settled:
        outputs = walk(body, [*constants, *carry, *slices], analysis.on_trial())
        before, carry = carry, analysis.carried(carry, outputs[:num_carry])
        is_settled = analysis.is_settled(before, carry)
    outputs = walk(body, [*constants, *carry, *slices], analysis.inside(eqn))
    return list(map(analysis.left, carry, outputs[:num_carry])), outputs[num_carry:]


def _scan_parts(eqn: Any) -> tuple[int, int]:
    """Returns how many inputs of a scan are constants, and how many inputs and outputs its carry.

    The other inputs are slices of arrays, and the other outputs make arrays. JAX's versions name
    these numbers differently; but slices have one axis less inside than outside.
    """
    body = closed_over(eqn.params["jaxpr"]).jaxpr
    whole = lambda outer, inner: sum(
        len(x.aval.shape) == len(y.aval.shape) for x, y in zip(outer, inner, strict=True)
    )
    num_carry = whole(eqn.outvars, body.outvars)
    return whole(eqn.invars, body.invars) - num_carry, num_carry


def _shard_map(eqn: Any, operands: list[V], analysis: Analysis[V]) -> list[V]:
    """Walks through the body, which sees one device's part of each array."""
    body, part = closed_over(eqn.params["jaxpr"]), analysis.part
    inputs = [part(x, v.aval.shape) for x, v in zip(operands, body.jaxpr.invars, strict=True)]
    outputs = walk(body, inputs, analysis.inside(eqn))
    return [part(x, v.aval.shape) for x, v in zip(outputs, eqn.outvars, strict=True)]


_ENTRANCES: dict[str, Callable[[Any, list[Any], Analysis[Any]], list[Any]]] = {
    "cond": _cond,
    "scan": _scan,
    "shard_map": _shard_map,
    "while": _while,
}
# They hold a jaxpr, but do not call it once with their inputs as they are. A `pallas_call` calls
# its own for every block of the inputs.
_NO_CALLS = {*_ENTRANCES, "custom_linear_solve", "pallas_call", "reduce", "reduce_window"}
