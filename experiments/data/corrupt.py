"""Images that cannot be read: they are named, counted and skipped, up to a limit.

Workers find them and send them along with the batch. The process that trains counts them.
"""

import sys
from collections.abc import Callable, Iterable
from typing import NamedTuple

from tqdm import tqdm


class Corrupt(NamedTuple):
    """An image that cannot be read.

    Attributes:
      split: name of its split.
      record: its number in the split.
      name: its file name; the file of records instead, if the record itself cannot be read.
      reason: what the decoder or the reader said, in one line.
    """

    split: str
    record: int
    name: str
    reason: str

    def __str__(self) -> str:
        """Such as "n01440764_10026.JPEG (record 17 of train): premature end of JPEG image"."""
        return f"{self.name} (record {self.record} of {self.split}): {self.reason}"


def to_stderr(line: str) -> None:
    """Prints a line above progress bars."""
    tqdm.write(line, file=sys.stderr)


class Tally:
    """Counts corrupt images; each counts once, however often it is met.

    Args:
      limit: number of images up to which a run goes on, at least 0.
      say: is called with a line for each new one.
    """

    def __init__(self, limit: int, say: Callable[[str], object] = to_stderr):
        self._limit, self._say = limit, say
        self._seen: set[tuple[str, int]] = set()

    def __len__(self) -> int:
        """Returns the number of images so far."""
        return len(self._seen)

    def add(self, found: Iterable[Corrupt]) -> None:
        """Counts images, and names those that are new.

        Raises:
          ValueError: there are more of them than the limit; it has the count and the last name.
        """
        for corrupt in found:
            if (place := (corrupt.split, corrupt.record)) in self._seen:
                continue
            self._seen.add(place)
            if len(self) > self._limit:
                raise ValueError(
                    f"{len(self)} images cannot be read, more than --max_corrupt={self._limit} "
                    f"allows; the last one is {corrupt}"
                )
            self._say(f"warning: skipping a corrupt image: {corrupt}")
