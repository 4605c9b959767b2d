"""Writes linear operations into those that read them, and drops what nobody reads.

A norm, a bias, a shortcut and a ReLU behind a convolution each are a linear operation at first, of
one or two taps a plane. Here all of them become part of the convolution. A channel that masks have
made constant becomes part of the bias behind it, where no zeros are padded, and a channel that no
active weight reads is not computed.
"""

import dataclasses

import numpy as np

from jaxsparse.engine.functions import applied
from jaxsparse.engine.network import Network
from jaxsparse.engine.operations import (
    IDENTITY,
    Activation,
    Constant,
    Copy,
    Largest,
    Linear,
    Operation,
    Planes,
    Pool,
    Product,
    Reflow,
    Select,
    Sum,
    read,
)

_RELU = Activation("clamp", 0.0)
_NOT_NEGATIVE = ("erfc", "exp", "logistic", "sqrt", "rsqrt", "abs", "softplus")


def simplify(net: Network) -> None:
    """Simplifies a network in place; its outputs stay the same up to rounding."""
    drop_unread(net)
    passes = _Passes(net)
    net.operations = [passes.simplified(operation) for operation in net.operations]
    for array in net.outputs:
        array.planes = passes.alias[array.planes]
    drop_unread(net)


class _Passes:
    """One pass through the operations, in order.

    Attributes:
      alias: by plane: the plane that is the same, or itself.
    """

    def __init__(self, net: Network) -> None:
        num = len(net.size_of)
        self.net = net
        self.alias = np.arange(num, dtype=np.int32)
        self.uses = _uses(net)
        self.made_by: list[Linear] = []
        self.maker = np.full(num, -1, np.int32)  # of the plane, in `made_by`
        self.place = np.zeros(num, np.int32)  # in the maker's outs
        self.not_negative = np.zeros(num, bool)
        sizes = np.array(net.sizes).reshape(-1, 2)
        self.height, self.width = sizes[net.size_of, 0], sizes[net.size_of, 1]

    def simplified(self, operation: Operation) -> Operation:
        """Returns an operation as it is when those before it are simplified."""
        operation = _renamed(operation, self.alias)
        if not isinstance(operation, Linear):
            if isinstance(operation, Pool | Copy | Reflow):
                self.not_negative[operation.outs] = self.not_negative[operation.sources]
            return operation
        operation = self.with_sources_written_out(operation)
        self.note(operation)
        return operation

    def with_sources_written_out(self, reader: Linear) -> Linear:
        """Returns a linear operation that reads what its sources read, where this costs nothing."""
        out = reader.out_of_tap()
        bias = np.array(reader.bias, np.float64)
        parts, stay = [], np.ones(len(out), bool)
        for number in np.unique(self.maker[reader.sources]):
            if number < 0:
                continue
            made = self.made_by[number]
            taps = np.flatnonzero(self.maker[reader.sources] == number)
            at = self.place[reader.sources[taps]]
            chosen = self._may_be_written_out(made, at, reader, taps)
            taps, at = taps[chosen], at[chosen]
            stay[taps] = False
            weights = reader.weights[taps]
            np.add.at(bias, out[taps], weights * _value_without_taps(made, at))
            counts = made.counts()[at]
            which = np.repeat(np.arange(len(taps)), counts)
            inner = _ranges(made.start[at], counts)
            parts.append(
                (
                    out[taps][which],
                    made.sources[inner],
                    made.dy[inner] + reader.dy[taps][which],
                    made.dx[inner] + reader.dx[taps][which],
                    made.weights[inner] * weights[which],
                )
            )
        if stay.all():
            return reader
        own = (out, reader.sources, reader.dy, reader.dx, reader.weights)
        parts.append(tuple(x[stay] for x in own))
        joined = [np.concatenate(column) for column in zip(*parts, strict=True)]
        out, sources, dy, dx, weights = _added_up(*joined)
        start = np.searchsorted(out, np.arange(len(reader.outs) + 1))
        return dataclasses.replace(
            reader, bias=bias, start=start, sources=sources, dy=dy, dx=dx, weights=weights
        )

    def _may_be_written_out(
        self, made: Linear, at: np.ndarray, reader: Linear, taps: np.ndarray
    ) -> np.ndarray:
        """For taps that read planes of one operation, whether each may read their sources.

        A shifted tap reads zeros outside of the image. The source of its source has zeros there as
        well; but a bias, or a shift of its own, would be something else.
        """
        counts, planes = made.counts()[at], made.outs[at]
        value = _value_without_taps(made, at)
        is_plain = (made.activation == IDENTITY) | ((counts == 0) & np.isfinite(value))
        is_short = (counts <= 1) | (self.uses[planes] == 1)
        here = (reader.dy[taps] == 0) & (reader.dx[taps] == 0)
        outs = reader.outs[reader.out_of_tap()[taps]]
        covers = (self.height[planes] >= self.height[outs]) & (
            self.width[planes] >= self.width[outs]
        )
        one = (counts == 1) & (value == 0.0)
        first = np.minimum(made.start[at], max(len(made.sources) - 1, 0))
        if len(made.sources):
            source = made.sources[first]
            one &= (made.dy[first] == 0) & (made.dx[first] == 0)
            one &= self.net.size_of[source] == self.net.size_of[planes]
        empty = (counts == 0) & (value == 0.0)
        return is_plain & ((here & is_short & covers) | one | empty)

    def note(self, made: Linear) -> None:
        """Remembers an operation for those that read its planes."""
        self.maker[made.outs] = len(self.made_by)
        self.place[made.outs] = np.arange(len(made.outs))
        self.made_by.append(made)
        function, low, _ = made.activation
        self.not_negative[made.outs] = function in _NOT_NEGATIVE or (
            function == "clamp" and low >= 0
        )
        first = made.start[:-1][made.counts() == 1]
        planes, bias = made.outs[made.counts() == 1], made.bias[made.counts() == 1]
        sources = made.sources[first]
        same = (made.weights[first] == 1.0) & (bias == 0.0)
        same &= (made.dy[first] == 0) & (made.dx[first] == 0)
        same &= self.net.size_of[sources] == self.net.size_of[planes]
        if made.activation == _RELU:
            same &= self.not_negative[sources]
        elif made.activation != IDENTITY:
            return
        self.alias[planes[same]] = sources[same]


def drop_unread(net: Network) -> None:
    """Drops operations, and planes of operations, that lead to no output."""
    wanted = np.zeros(len(net.size_of), bool)
    for array in net.outputs:
        wanted[array.planes] = True
    kept = []
    for operation in reversed(net.operations):
        operation = _with_outs(operation, wanted[operation.outs])
        if len(operation.outs):
            wanted[read(operation)] = True
            kept.append(operation)
    net.operations = kept[::-1]
    for array in net.inputs:
        array.planes, array.first = (x[wanted[array.planes]] for x in (array.planes, array.first))


def _uses(net: Network) -> np.ndarray:
    uses = np.zeros(len(net.size_of), np.int64)
    for operation in net.operations:
        np.add.at(uses, read(operation), 1)
    for array in net.outputs:
        np.add.at(uses, array.planes, 2)  # an output is made, whoever else reads it
    return uses


def _value_without_taps(made: Linear, at: np.ndarray) -> np.ndarray:
    """The bias; of a plane without taps, the number that all its pixels are."""
    bias = np.asarray(made.bias)[at]
    if made.activation == IDENTITY:
        return bias
    is_constant = made.counts()[at] == 0  # what is not finite is left to the engine
    return np.where(is_constant, applied(made.activation, bias), bias)


def _ranges(start: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The numbers from start[i] to start[i] + counts[i] - 1, one range after the other."""
    ends = np.cumsum(counts)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(start - ends + counts, counts)


def _added_up(
    out: np.ndarray, sources: Planes, dy: np.ndarray, dx: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, ...]:
    """Sorts taps, and makes one of those that read the same pixel for the same plane."""
    order = np.lexsort((dx, dy, sources, out))
    out, sources, dy, dx, weights = (x[order] for x in (out, sources, dy, dx, weights))
    is_new = np.ones(len(out), bool)
    is_new[1:] = np.any([x[1:] != x[:-1] for x in (out, sources, dy, dx)], axis=0)
    first = np.flatnonzero(is_new)
    total = np.add.reduceat(weights, first) if len(first) else weights
    return out[first], sources[first], dy[first], dx[first], total


def _renamed(operation: Operation, alias: np.ndarray) -> Operation:
    if isinstance(operation, Constant):
        return operation
    names = {"Product": ("left", "right"), "Select": ("condition", "above", "otherwise")}
    fields = names.get(type(operation).__name__, ("sources",))
    return dataclasses.replace(operation, **{f: alias[getattr(operation, f)] for f in fields})


def _with_outs(operation: Operation, keep: np.ndarray) -> Operation:
    """Returns an operation with some of its planes."""
    if keep.all():
        return operation
    match operation:
        case Linear():
            counts = operation.counts()
            taps = np.repeat(keep, counts)
            return dataclasses.replace(
                operation,
                outs=operation.outs[keep],
                bias=operation.bias[keep],
                start=np.concatenate([[0], np.cumsum(counts[keep])]),
                **{f: getattr(operation, f)[taps] for f in ("sources", "dy", "dx", "weights")},
            )
        case Largest():
            counts = np.diff(operation.start)
            return Largest(
                operation.outs[keep],
                np.concatenate([[0], np.cumsum(counts[keep])]),
                operation.sources[np.repeat(keep, counts)],
            )
        case Copy():
            fields = ("outs", "sources", "first_y", "first_x")
        case Pool() | Sum() | Reflow():
            fields = ("outs", "sources")
        case Product():
            fields = ("outs", "left", "right")
        case Select():
            fields = ("outs", "condition", "above", "otherwise")
        case Constant():
            fields = ("outs", "pixels")
    return dataclasses.replace(operation, **{f: getattr(operation, f)[keep] for f in fields})
