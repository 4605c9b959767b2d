"""The places of planes in memory: the zeros around them, and which of them share one.

Planes that a linear operation reads and makes have the same distance from one row to the next, so
that a shift is the same distance in all of them: such sizes are a family. The zeros between two
rows serve as the end of one and the beginning of the next. Planes share a place with others of
their size alone, so that nobody writes where zeros are.
"""

import dataclasses
from typing import NamedTuple

import numpy as np

from jaxsparse.engine.network import Network
from jaxsparse.engine.operations import Constant, Linear, read

LINE = 16
"""Numbers of a cache line, at which planes begin and which kernels write at least."""

MOST_NUMBERS = 1 << 27
"""Most numbers that all planes of an image may take; kMostFloats of program.h."""


class Family(NamedTuple):
    """Sizes with the same distance between rows.

    Attributes:
      pitch: from a row to the next.
      lead: zeros before the first pixel.
      size: numbers of a plane.
    """

    pitch: int
    lead: int
    size: int


@dataclasses.dataclass
class Layout:
    """The places of all planes.

    Attributes:
      families: each once.
      family_of: by size: its family.
      place: int32, by plane: where it begins.
      arena: numbers of all planes.
    """

    families: list[Family]
    family_of: list[int]
    place: np.ndarray
    arena: int


def lay_out(net: Network) -> Layout:
    """Returns where the planes of a network lie."""
    groups = _families(net)
    families = [_family(net, set(group)) for group in groups]
    family_of = [next(i for i, g in enumerate(groups) if s in g) for s in range(len(net.sizes))]
    places = _Places(net, [families[f] for f in family_of])
    last = _last_reads(net)
    for array in net.inputs:
        places.take(array.planes)
    for operation in net.operations:
        if isinstance(operation, Constant):
            places.take(operation.outs)
    for number, operation in enumerate(net.operations):
        if not isinstance(operation, Constant):
            places.take(operation.outs)
        for plane in np.unique(read(operation)):
            if last[plane] == number:
                places.give_back(plane)
    reach = max((family.lead + family.size for family in families), default=0)
    arena = places.end + _in_lines(reach)
    if arena > MOST_NUMBERS:
        raise ValueError(
            f"an image takes {arena:,} numbers of memory in the engine, which has {MOST_NUMBERS:,}"
        )
    return Layout(families, family_of, places.of.astype(np.int32), arena)


def _families(net: Network) -> list[list[int]]:
    """Sizes by family."""
    root = list(range(len(net.sizes)))

    def find(i: int) -> int:
        while root[i] != i:
            i = root[i]
        return i

    for operation in net.operations:
        if isinstance(operation, Linear):
            sizes = np.unique(net.size_of[np.concatenate([operation.outs, operation.sources])])
            for size in sizes[1:]:
                root[find(int(size))] = find(int(sizes[0]))
    roots = sorted({find(i) for i in range(len(root))})
    return [[i for i in range(len(root)) if find(i) == r] for r in roots]


def _family(net: Network, members: set[int]) -> Family:
    """Zeros as far as the taps reach out of an image, and no more."""
    heights, widths = zip(*(net.sizes[i] for i in members), strict=True)
    pitch, top, left, rows, right = max(widths), 0, 0, max(heights), 0
    for operation in net.operations:
        if not isinstance(operation, Linear) or net.size_of[operation.outs[0]] not in members:
            continue
        if not len(operation.sources):
            continue
        height, width = net.size(operation.outs)
        widest = max(net.sizes[i].width for i in np.unique(net.size_of[operation.sources]))
        out_left, out_right = max(0, -int(operation.dx.min())), max(0, int(operation.dx.max()))
        pitch = max(pitch, widest + out_left, width + out_right)
        top, left = max(top, -int(operation.dy.min())), max(left, out_left)
        rows = max(rows, height + int(operation.dy.max()))
        right = max(right, out_right)
    if (pitch, top, left, rows, right) == (1, 0, 0, 1, 0):
        return Family(1, 0, 1)
    lead = _in_lines(top * pitch + left)
    extent = max(_in_lines(max(heights) * pitch), rows * pitch + right)
    return Family(pitch, lead, lead + _in_lines(extent))


class _Places:
    """Gives places to planes, again and again."""

    def __init__(self, net: Network, family_by_size: list[Family]) -> None:
        self.size_of, self.families = net.size_of, family_by_size
        self.of = np.zeros(len(net.size_of), np.int64)
        self.free: dict[int, list[int]] = {}
        self.end = 0
        self.is_taken = np.zeros(len(net.size_of), bool)

    def take(self, planes: np.ndarray) -> None:
        planes = planes[~self.is_taken[planes]]
        self.is_taken[planes] = True
        self.end = _in_lines(self.end)
        for plane in planes:
            free = self.free.get(int(self.size_of[plane]))
            if free:
                self.of[plane] = free.pop(0)
            else:
                self.of[plane] = self.end
                self.end += self.families[self.size_of[plane]].size

    def give_back(self, plane: int) -> None:
        size = int(self.size_of[plane])
        if self.families[size].size > 1:  # single pixels stay in a row instead
            self.free.setdefault(size, []).append(int(self.of[plane]))


def _last_reads(net: Network) -> np.ndarray:
    """By plane: the number of the operation that reads it last; that never ends if it has to stay.

    Planes that nobody reads are outputs.
    """
    last = np.full(len(net.size_of), len(net.operations))
    for number, operation in enumerate(net.operations):
        last[read(operation)] = number
    for array in net.outputs:
        last[array.planes] = len(net.operations)
    for operation in net.operations:
        if isinstance(operation, Constant):
            last[operation.outs] = len(net.operations)
    return last


def _in_lines(numbers: int) -> int:
    return -(-numbers // LINE) * LINE
