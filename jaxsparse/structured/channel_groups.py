"""The walk that finds the channels of a network that must be removed together."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend import core

from jaxsparse.paths import first_matches, leaf_paths, leaf_shapes, leaves_by_path
from jaxsparse.structured.along import ALONG
from jaxsparse.structured.gathering import gathered
from jaxsparse.structured.groups import ChannelGroups
from jaxsparse.structured.known import folded, known_array
from jaxsparse.structured.lookups import LOOKUPS
from jaxsparse.structured.moves import MOVES
from jaxsparse.structured.products import PRODUCTS
from jaxsparse.structured.record import Axis, Record, Value
from jaxsparse.structured.relations import Relation, alike, barrier, bitcast, elementwise, separate
from jaxsparse.structured.reshapes import reshape
from jaxsparse.structured.splits import settle
from jaxsparse.structured.units import Reason
from jaxsparse.tracing.jaxprs import Analysis, closed_over, walk
from jaxsparse.tracing.primitives import ELEMENTWISE, SEPARATE
from jaxsparse.types import OptionError, PyTree

_RELATIONS: dict[str, Relation] = {
    **dict.fromkeys(ELEMENTWISE, elementwise),
    **dict.fromkeys(
        """clz complex conj igamma igammac imag log2 one_minus_square polygamma population_count
        real regularized_incomplete_beta shift_left shift_right_arithmetic shift_right_logical
        sharding_constraint zeta""".split(),
        elementwise,
    ),
    "bitcast_convert_type": bitcast,
    **dict.fromkeys(SEPARATE, separate),
    **dict.fromkeys("device_put pcast pmax pmin ppermute pvary".split(), separate),
    **dict.fromkeys(
        """random_bits random_fold_in random_seed random_split random_unwrap random_wrap""".split(),
        alike,
    ),
    "reshape": reshape,
    **MOVES,
    **ALONG,
    **PRODUCTS,
    **LOOKUPS,
}


def channel_groups(
    apply_fn: Callable[..., Any],
    params: PyTree,
    *inputs: Any,
    ignored: Sequence[str | tuple[str, int]] = (),
    inner: bool = False,
) -> ChannelGroups:
    """Returns which channels of a network have to be removed together, and which have to stay.

    The function is traced, never run, and its jaxpr walked. Every index along an axis of a leaf is
    tied to those of other leaves by the operations between them: a sum ties two producers, a
    product ties a producer to its consumer, a concatenation ties a consumer's inputs to several
    producers. Nothing is guessed: an operation that is not known freezes every axis that meets it.

    Args:
      apply_fn: function of (params, *inputs) at inference, such as `model.apply`. It must return
        only what has a fixed shape, as logits have, since all axes of its outputs are frozen.
      params: pytree of arrays or `jax.ShapeDtypeStruct`: all that becomes narrower. Give the whole
        of a linen network's variables, so that the statistics of its norms are narrowed as well.
      *inputs: pytrees of arrays or `jax.ShapeDtypeStruct`; their axes are frozen.
      ignored: leaves that stay as they are: path regexes (`re.search`) for all axes, or pairs of a
        regex and an axis. What is tied to them stays with them.
      inner: whether an axis that a reshape splits is narrowed within each part, and not by whole
        parts, if both can be done: inside each head, inside each group of a norm or of a
        convolution. The number of heads or groups then stays.

    Raises:
      ValueError: an `ignored` regex is none or is found in no path, or its axis is none of the
        leaf.

    >>> import jax.numpy as jnp
    >>> params = {"up": jnp.ones((4, 16)), "bias": jnp.ones(16), "down": jnp.ones((16, 4))}
    >>> def mlp(p, x):
    ...     return x + jax.nn.relu(x @ p["up"] + p["bias"][None]) @ p["down"]
    >>> groups = channel_groups(mlp, params, jnp.ones((1, 4)))
    >>> for member in groups["up"].members:
    ...     print(member)
    up axis 1, output
    down axis 0, input
    bias axis 0
    >>> print(groups.explain("down"))
    down (16, 4):
      axis 0: 16 units of the group up, removed together with up axis 1, bias axis 0.
      axis 1 stays whole: axis 1 of the input.
    """
    leaves, record = leaves_by_path(params), Record()
    closed, out = jax.make_jaxpr(apply_fn, return_shape=True)(params, *inputs)
    shapes = leaf_shapes(leaves)
    axes = {path: tuple(map(record.units.new, shape)) for path, shape in shapes.items()}
    _freeze_unused(closed, axes, record)
    _freeze_ignored(ignored, axes, record)
    values = [Value(tuple(map(_carrying, each)), is_data=False) for each in axes.values()]
    data = closed.jaxpr.invars[len(values) :]
    given = inputs[0] if len(inputs) == 1 else inputs
    values += [
        Value(_frozen_axes(record, var.aval, name), is_data=True)
        for var, name in zip(data, _names("input", given), strict=True)
    ]
    outputs = walk(closed, values, _Tying(record))
    for x, name in zip(outputs, _names("output", out), strict=True):
        for axis, units in enumerate(x.axes):
            record.freeze([units], Reason(f"axis {axis} of {name}"))
    settle(record, inner=inner)
    return gathered(record, axes)


def _carrying(units: np.ndarray) -> Axis:
    """Returns the units of a leaf's axis; one of size 1 carries nothing."""
    return units if len(units) > 1 else None


def _names(kind: str, tree: PyTree) -> Iterator[str]:
    for path in leaf_paths(tree):
        yield f"{kind} {path}" if path else f"the {kind}"


def _frozen_axes(record: Record, aval: Any, name: str) -> tuple[Axis, ...]:
    shape = getattr(aval, "shape", ())
    return tuple(record.frozen(n, Reason(f"axis {i} of {name}")) for i, n in enumerate(shape))


def _freeze_unused(closed: core.ClosedJaxpr, axes: Any, record: Record) -> None:
    """Freezes leaves that the function does not read, of which it says nothing."""
    read = {id(x) for eqn in closed.jaxpr.eqns for x in eqn.invars}
    read |= {id(x) for x in closed.jaxpr.outvars}
    for var, each in zip(closed.jaxpr.invars, axes.values(), strict=False):
        if id(var) not in read:
            record.freeze(each, Reason("the function does not use the leaf"))


def _freeze_ignored(ignored: Sequence[Any], axes: Any, record: Record) -> None:
    if isinstance(ignored, str):
        raise OptionError(
            "ignored", ignored, "must be a list of path regexes or (regex, axis) pairs"
        )
    for rule in ignored:
        regex, axis = (rule, None) if isinstance(rule, str) else rule
        first = first_matches([regex], axes, name="ignored")
        why = Reason(f"ignored by {regex!r}")
        for path in (path for path, match in first.items() if match is not None):
            ndim = len(axes[path])
            if axis is not None and not -ndim <= axis < ndim:
                wrong = f"names axis {axis} of {path}, which has {ndim} axes"
                raise OptionError("ignored", rule, wrong)
            record.freeze(axes[path] if axis is None else [axes[path][axis]], why)


class _Tying(Analysis[Value]):
    """Ties the units of arrays by the relations of the operations.

    Attributes:
      record: what it finds.
    """

    def __init__(self, record: Record):
        self.record = record

    def constant(self, atom: Any, value: Any) -> Value:
        """Freezes the axes of a constant array; its numbers belong to their indices."""
        shape, dtype = getattr(atom.aval, "shape", ()), getattr(atom.aval, "dtype", None)
        why = Reason(f"a constant array of shape {tuple(shape)}")
        axes = tuple(self.record.frozen(n, why) for n in shape)
        return Value(axes, False, known_array(dtype, shape, value), why)

    def operation(self, eqn: Any, operands: list[Value]) -> Sequence[Value]:
        for x in operands:
            if x.unplaced and not x.unplaced.place:
                x.unplaced.place = self.record.place_of(eqn)
        relation = _RELATIONS.get(eqn.primitive.name, barrier)
        axes = relation(eqn, operands, self.record)
        is_data = any(x.is_data for x in operands)
        known = folded(eqn, [x.known for x in operands])
        return [Value(each, is_data, known) for each in axes]

    def enters(self, eqn: Any, operands: list[Value]) -> bool:
        """Always; freezes what the condition of a `while` reads, since the walk leaves it out."""
        self.record.called_at = self.record.place_of(eqn)
        if eqn.primitive.name == "while":
            num, condition = eqn.params["cond_nconsts"], closed_over(eqn.params["cond_jaxpr"]).jaxpr
            read = {id(x) for inner in condition.eqns for x in inner.invars}
            outside = operands[:num] + operands[num + eqn.params["body_nconsts"] :]
            why = self.record.reason_at(eqn, "read by the condition of a loop")
            for var, x in zip(condition.invars, outside, strict=True):
                if id(var) in read:
                    self.record.freeze(x.axes, why)
        return True

    def either(self, choices: Sequence[Value]) -> Value:
        """Joins what may be either, such as what the branches of a `cond` give."""
        axes = tuple(map(self.record.join, zip(*(x.axes for x in choices), strict=True)))
        return Value(axes, any(x.is_data for x in choices))

    def slice(self, x: Value) -> Value:
        """Freezes the axis that a scan goes along: stacked layers shrink together."""
        self.record.freeze(x.axes[:1], Reason("the turns of a scan"))
        return Value(x.axes[1:], x.is_data)

    def stacked(self, x: Value, shape: tuple[int, ...]) -> Value:
        turns = self.record.frozen(shape[0], Reason("the turns of a scan"))
        return Value((turns, *x.axes), x.is_data)

    def part(self, x: Value, shape: tuple[int, ...]) -> Value:
        """Freezes the axes that devices share; others are as in the whole array."""
        why = Reason("shared by the devices of a shard_map")
        axes = []
        for units, size in zip(x.axes, shape, strict=True):
            if units is not None and len(units) != size:
                self.record.freeze([units], why)
                units = self.record.frozen(size, why)
            axes.append(units)
        return Value(tuple(axes), x.is_data)

    def is_settled(self, before: list[Value], after: list[Value]) -> bool:
        """Whether the same axes are tied, and the same values data.

        The carry is then joined with what a turn leaves of it, so every turn ties the same units.
        """
        known = lambda values: [(x.is_data, *(u is None for u in x.axes)) for x in values]
        return known(before) == known(after)
