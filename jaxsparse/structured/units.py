"""Units: the indices along axes that can only be removed together.

Every index along every axis of every array gets a unit, which is a number. Operations join units,
index by index: those of `a + b` are joined with those of `a` and of `b`. Units that are joined are
one class, kept in a forest (union-find). A class that must stay whole is frozen, with the reason.

All operations take arrays of units and run in NumPy without a loop over entries.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np

_FREE = np.iinfo(np.int64).max


@dataclasses.dataclass
class Reason:
    """Why units stay, or what their removal changes.

    Attributes:
      what: such as "axis 3 of the input".
      place: the operation's scope and source line; "" if there is none, or it is not yet known.
      is_choice: whether the units could be removed as well, but others were chosen.
    """

    what: str
    place: str = ""
    is_choice: bool = False

    def __str__(self) -> str:
        return f"{self.what}, {self.place}" if self.place else self.what


class Units:
    """A growing forest of units.

    >>> units = Units()
    >>> a, b = units.new(3), units.new(3)
    >>> units.join(a, b[::-1])
    >>> units.freeze(b[:1], Reason("an output"))
    >>> units.is_free(a).tolist()
    [True, True, False]
    >>> str(units.reason(int(a[2])))
    'an output'
    """

    def __init__(self):
        self._parents = np.arange(1024)
        # By root, the number of the reason why the class is frozen.
        self._reasons = np.full(1024, _FREE)
        self._given: list[Reason] = []
        self._num = 0

    def __len__(self) -> int:
        return self._num

    def new(self, num: int) -> np.ndarray:
        """Returns units that are joined with none."""
        start, self._num = self._num, self._num + num
        if self._num > len(self._parents):
            more = np.arange(len(self._parents), 2 * self._num)
            self._parents = np.concatenate([self._parents, more])
            self._reasons = np.concatenate([self._reasons, np.full(len(more), _FREE)])
        return np.arange(start, self._num)

    def frozen(self, num: int, reason: Reason) -> np.ndarray:
        """Returns one frozen unit `num` times, for an axis that nothing is removed from."""
        unit = self.new(1)
        self.freeze(unit, reason)
        return np.repeat(unit, num)

    def roots(self, units: np.ndarray) -> np.ndarray:
        """Returns the unit that stands for the class of each."""
        roots = self._parents[units]
        while True:
            above = self._parents[roots]
            if np.array_equal(above, roots):
                break
            roots = above
        self._parents[units] = roots
        return roots

    def join(self, a: np.ndarray, b: np.ndarray) -> None:
        """Joins the units of a and b that stand at the same index; the shapes may broadcast.

        Two frozen classes stay apart, so that each keeps its own reason.
        """
        if a is b:
            return
        a, b = (np.ravel(x) for x in np.broadcast_arrays(a, b))
        while True:
            a, b = self.roots(a), self.roots(b)
            reasons = self._reasons[a], self._reasons[b]
            differ = (a != b) & ((reasons[0] == _FREE) | (reasons[1] == _FREE))
            if not differ.any():
                return
            a, b = a[differ], b[differ]
            low, high = np.minimum(a, b), np.maximum(a, b)
            # A root that is to go under several others goes under the lowest of them; the next turn
            # joins the rest. The reasons move to the new roots, which may be several steps below.
            reasons = self._reasons[high]
            np.minimum.at(self._parents, high, low)
            np.minimum.at(self._reasons, self.roots(high), reasons)

    def freeze(self, units: np.ndarray, reason: Reason) -> None:
        """Freezes the classes of units; those that are frozen keep their first reason."""
        roots = self.roots(units)
        free = roots[self._reasons[roots] == _FREE]
        if len(free):
            self._reasons[free] = len(self._given)
            self._given.append(reason)

    def is_free(self, units: np.ndarray) -> np.ndarray:
        """Returns bool[units]: whether nothing froze their classes."""
        return self._reasons[self.roots(units)] == _FREE

    def reason(self, unit: int) -> Reason:
        """Returns why a unit is frozen."""
        return self._given[self._reasons[self.roots(np.array([unit]))[0]]]

    def by_reason(self, units: np.ndarray) -> Iterator[tuple[Reason, np.ndarray]]:
        """Yields the reasons that units are frozen by, and the indices of those that each froze."""
        numbers = self._reasons[self.roots(units)]
        for number in dict.fromkeys(numbers[numbers != _FREE].tolist()):
            yield self._given[number], np.flatnonzero(numbers == number)
