"""Which parameter leaf each entry of a value is made from, told from shapes alone.

A kernel is often made from several leaves before it is used: the gates of an LSTM are concatenated,
experts are stacked, a kernel is scaled, or an adapter is added to it. Cuts along its axes therefore
divide a value into blocks, and every block has the shares of the leaves in its entries. For
example, q of shape (8, 4) beside k of shape (8, 12) has two blocks, cut along the second axis.
Entries chosen by an index have the shares of all the entries to choose from. Constants belong to no
leaf.

An entry that is computed from several leaves at once, by a sum or a product, belongs to the leaf
behind the operand made from most parameters: to the kernel, neither to its scale nor to its adapter
of low rank. Operands made from equally many share it evenly.
"""

import functools
import math
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from typing import NamedTuple, TypeAlias

import numpy as np

Share: TypeAlias = dict[str, Fraction]
"""By path, the part of a block's entries that belongs to a leaf. The rest, up to 1, is constant."""


class Owners(NamedTuple):
    """The leaves behind a value.

    Attributes:
      lengths: for each axis, the lengths of the segments between its cuts.
      blocks: object[number of segments of each axis], a `Share` each; never changed in place.
      entries: an upper bound of the entries of parameters that the value is made from; 0 for a
        constant.
    """

    lengths: tuple[np.ndarray, ...]
    blocks: np.ndarray
    entries: int

    @property
    def shape(self) -> tuple[int, ...]:
        """The value's shape."""
        return tuple(int(lengths.sum()) for lengths in self.lengths)


def uniform(share: Share, shape: Sequence[int], entries: int) -> Owners:
    """Returns the owners of a value whose entries all have the same share."""
    blocks = np.empty((1,) * len(shape), object)
    blocks[...] = share
    return Owners(tuple(np.array([size]) for size in shape), blocks, entries)


def leaf(path: str, shape: Sequence[int]) -> Owners:
    """Returns the owners of a parameter."""
    return uniform({path: Fraction(1)}, shape, math.prod(shape))


def constant(shape: Sequence[int]) -> Owners:
    """Returns the owners of a value that no parameter is in."""
    return uniform({}, shape, 0)


def mixed(x: Owners) -> Share:
    """Returns the shares of the leaves in all entries.

    >>> both = concatenated([leaf("q", (8, 4)), leaf("k", (8, 12)), constant((8, 16))], 1)
    >>> {path: str(part) for path, part in mixed(both).items()}
    {'q': '1/8', 'k': '3/8'}
    """
    return averaged(x, range(len(x.lengths))).blocks.item()


def averaged(x: Owners, axes: Iterable[int]) -> Owners:
    """Returns the owners of a value that is reduced along axes."""
    axes = tuple(axes)
    kept = [axis for axis in range(len(x.lengths)) if axis not in axes]
    along = x.blocks.transpose(*kept, *axes).reshape(*(len(x.lengths[a]) for a in kept), -1)
    weights = functools.reduce(np.multiply.outer, (x.lengths[a] for a in axes), np.array(1))
    blocks = np.empty(along.shape[:-1], object)
    for at in np.ndindex(blocks.shape):
        blocks[at] = mix(along[at], weights.ravel().tolist())
    return Owners(tuple(x.lengths[a] for a in kept), blocks, x.entries)


def joined(operands: Sequence[Owners], shape: Sequence[int]) -> Owners:
    """Returns the owners of a value that is computed entry by entry, or in an unknown way.

    Args:
      operands: taken entry by entry if they have the result's shape, else as a whole.
      shape: of the result.
    """
    shape = tuple(shape)
    operands = [x if x.shape == shape else uniform(mixed(x), shape, x.entries) for x in operands]
    if not operands:
        return constant(shape)
    lengths, blocks = _aligned(operands, range(len(shape)))
    entries = [x.entries for x in operands]
    pairs = zip(blocks, entries, strict=True)
    found, _ = functools.reduce(_stronger, pairs)
    return Owners(tuple(lengths), found, min(max(entries), math.prod(shape)))


def concatenated(operands: Sequence[Owners], axis: int) -> Owners:
    """Returns the owners of values joined along an axis."""
    operands = [x for x in operands if x.shape[axis]] or operands[:1]
    ndim = len(operands[0].lengths)
    lengths, blocks = _aligned(operands, [a for a in range(ndim) if a != axis])
    lengths[axis] = np.concatenate([x.lengths[axis] for x in operands])
    entries = sum(x.entries for x in operands)
    return Owners(tuple(lengths), np.concatenate(blocks, axis), entries)


def taken(x: Owners, axis: int, positions: np.ndarray) -> Owners:
    """Returns the owners of the entries at positions along an axis, in their order.

    Args:
      x: the owners.
      axis: at least 0.
      positions: int[any], from 0; -1 stands for a constant.
    """
    if not len(positions):
        return uniform(mixed(x), (*x.shape[:axis], 0, *x.shape[axis + 1 :]), x.entries)
    segments = np.where(positions < 0, len(x.lengths[axis]), _segments(x, axis, positions))
    starts = np.flatnonzero(np.diff(segments, prepend=-1))
    constants = np.empty((*x.blocks.shape[:axis], 1, *x.blocks.shape[axis + 1 :]), object)
    constants[...] = {}
    blocks = np.concatenate([x.blocks, constants], axis).take(segments[starts], axis)
    lengths = [*x.lengths]
    lengths[axis] = np.diff(starts, append=len(positions))
    return Owners(tuple(lengths), blocks, x.entries)


def transposed(x: Owners, permutation: Sequence[int]) -> Owners:
    """Returns the owners of a value whose axes change their order."""
    lengths = tuple(x.lengths[axis] for axis in permutation)
    return Owners(lengths, x.blocks.transpose(permutation), x.entries)


def broadcast(x: Owners, shape: Sequence[int], axes: Sequence[int]) -> Owners:
    """Returns the owners of a value whose axes become `axes` of `shape`, as XLA broadcasts."""
    lengths = [np.array([size]) for size in shape]
    for size, axis in zip(x.lengths, axes, strict=True):
        if size.sum() == shape[axis]:
            lengths[axis] = size
    return Owners(tuple(lengths), x.blocks.reshape([len(size) for size in lengths]), x.entries)


def reshaped(x: Owners, shape: Sequence[int]) -> Owners:
    """Returns the owners of a value that is reshaped, entries in row-major order."""
    if not math.prod(shape):
        return uniform(mixed(x), shape, x.entries)
    lengths, blocks = [], x.blocks
    for old, new in axis_groups(x.shape, tuple(shape)):
        done, is_cut = len(lengths), any(len(size) > 1 for size in x.lengths[old])
        dims = shape[new] if is_cut else (1,) * (new.stop - new.start)
        for axis, size in enumerate(x.lengths[old] if is_cut else (), done):
            blocks = np.repeat(blocks, size, axis)  # a block for each entry
        rest = blocks.shape[done + old.stop - old.start :]
        blocks = blocks.reshape((*blocks.shape[:done], *dims, *rest))
        lengths += [np.ones(n, int) if is_cut else np.array([n]) for n in shape[new]]
    return _compressed(Owners(tuple(lengths), blocks, x.entries))


def _segments(x: Owners, axis: int, positions: np.ndarray) -> np.ndarray:
    return np.searchsorted(np.cumsum(x.lengths[axis]), positions, side="right")


def _aligned(
    operands: Sequence[Owners], axes: Iterable[int]
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Cuts all operands alike along axes; other axes have the lengths of the first operand."""
    lengths, blocks = [*operands[0].lengths], [x.blocks for x in operands]
    for axis in axes:
        stops = np.unique(np.concatenate([np.cumsum(x.lengths[axis]) for x in operands]))
        starts = np.concatenate([[0], stops[:-1]])
        lengths[axis] = stops - starts
        at = [np.minimum(_segments(x, axis, starts), len(x.lengths[axis]) - 1) for x in operands]
        blocks = [each.take(i, axis) for each, i in zip(blocks, at, strict=True)]
    return lengths, blocks


def _stronger(
    left: tuple[np.ndarray, int], right: tuple[np.ndarray, int]
) -> tuple[np.ndarray, int]:
    """Returns the stronger operand's owner of each entry; the other's where that is a constant."""
    if left[1] < right[1]:
        left, right = right, left
    even = left[1] == right[1]
    choose = lambda a, b: mix([a, b], [len(a), len(b)]) if even and a and b else a or b
    return np.asarray(np.frompyfunc(choose, 2, 1)(left[0], right[0]), object), left[1]


def mix(shares: Iterable[Share], weights: Sequence[int]) -> Share:
    """Returns the shares of the leaves in several blocks together.

    Args:
      shares: one for each block.
      weights: the number of entries of each block, at least 0.

    >>> half = mix([{"w": Fraction(1)}, {}], [3, 3])
    >>> half
    {'w': Fraction(1, 2)}
    """
    weights = weights if any(weights) else [1] * len(weights)  # an empty value has no entries
    total, found = sum(weights), {}
    for share, weight in zip(shares, weights, strict=True):
        for path, part in share.items() if weight else ():
            found[path] = found.get(path, 0) + part * Fraction(weight, total)
    return found


def axis_groups(old: tuple[int, ...], new: tuple[int, ...]) -> Iterator[tuple[slice, slice]]:
    """Pairs of neighbouring axes with equally many entries, as few as possible in each."""
    i = j = 0
    while i < len(old) or j < len(new):
        first, second, left, right, started = i, j, 1, 1, False
        while left != right or not started:
            started = True
            if left <= right and i < len(old):
                left, i = left * old[i], i + 1
            else:
                right, j = right * new[j], j + 1
        yield slice(first, i), slice(second, j)


def _compressed(x: Owners) -> Owners:
    """Leaves out cuts between equal blocks."""
    for axis, lengths in enumerate(x.lengths):
        blocks = np.moveaxis(x.blocks, axis, 0)
        others = tuple(range(1, blocks.ndim))
        is_start = np.concatenate([[True], (blocks[1:] != blocks[:-1]).any(others)])
        starts = np.flatnonzero(is_start)
        cuts = (*x.lengths[:axis], np.add.reduceat(lengths, starts), *x.lengths[axis + 1 :])
        x = Owners(cuts, x.blocks.take(starts, axis), x.entries)
    return x
