"""Hands images from worker processes to their parent through memory that is used again and again.

A queue between processes takes new shared memory for every chunk, and the system clears each page
of it: for 10 MB that is a tenth of the time that it takes to decode them. Here each worker has a
file with a few slots. It fills a free one and names it; the parent copies the images out and marks
the slot as free. A chunk that finds all slots full goes the queue's way, so nobody waits.

The files belong to the parent, so that what a worker has handed on outlives it. They have no names
and go with the parent, however that ends. They are not part of /dev/shm, which containers limit.
Linux on x86 alone uses them: other processors may show the mark of a slot before its images.
Elsewhere every chunk goes through the queue.
"""

import mmap
import os
import platform
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

NUM_SLOTS = 6  # about five chunks wait for each worker
_PAGE = mmap.PAGESIZE  # the first page has a byte for each slot, 1 if it is full


class Place(NamedTuple):
    """The place where the images of a chunk lie.

    Attributes:
      worker: its number.
      slot: in [0, NUM_SLOTS).
      shape: of the images, which are uint8.
    """

    worker: int
    slot: int
    shape: tuple[int, ...]


class Slots:
    """The memory of all workers, made and held by their parent.

    Args:
      workers: their number.
      most_images: the most images of a chunk.
      size: height and width of an image.
    """

    def __init__(self, workers: int, most_images: int, size: int):
        self.slot_bytes = -(-most_images * size * size * 3 // _PAGE) * _PAGE
        self._files = [os.memfd_create("images") for _ in range(workers)]
        for file in self._files:
            os.ftruncate(file, _PAGE + NUM_SLOTS * self.slot_bytes)
        self._memory = [mmap.mmap(file, 0) for file in self._files]

    @property
    def paths(self) -> list[str]:
        """The files, as another process opens them."""
        return [f"/proc/{os.getpid()}/fd/{file}" for file in self._files]

    def taken(self, chunk: Any) -> Any:
        """Returns a chunk with its images; they are copied, and their slot is free again."""
        place = chunk.images
        if not isinstance(place, Place):
            return chunk
        memory = self._memory[place.worker]
        images = _view(memory, place, self.slot_bytes).copy()
        memory[place.slot] = 0
        return chunk._replace(images=images)

    def close(self) -> None:
        """Closes the files; their memory is free when the workers have ended."""
        for file, memory in zip(self._files, self._memory, strict=True):
            memory.close()
            os.close(file)


class Sender:
    """Makes chunks as another function does, in a worker; their images become a `Place`.

    Args:
      make: makes a chunk from its number; its field `images` is uint8.
      paths: of `Slots`.
      slot_bytes: of `Slots`.
    """

    worker = 0
    """Number of the worker that this process is; set when it starts."""

    def __init__(self, make: Callable[[int], Any], paths: list[str], slot_bytes: int):
        self._make, self._paths, self._slot_bytes = make, paths, slot_bytes
        self._memory: mmap.mmap | None = None

    def __call__(self, number: int) -> Any:
        """Makes chunk `number`."""
        chunk = self._make(number)
        if self._memory is None:
            with open(self._paths[Sender.worker], "r+b") as file:
                self._memory = mmap.mmap(file.fileno(), 0)
        slot = self._memory.find(b"\0", 0, NUM_SLOTS)
        if slot < 0:
            return chunk
        place = Place(Sender.worker, slot, chunk.images.shape)
        _view(self._memory, place, self._slot_bytes)[...] = chunk.images
        self._memory[slot] = 1
        return chunk._replace(images=place)


def can_be_used() -> bool:
    """Whether the system has files without names that another process can open, see above."""
    linux = hasattr(os, "memfd_create") and os.path.isdir("/proc/self/fd")
    return linux and platform.machine() in ("x86_64", "AMD64")


def _view(memory: mmap.mmap, place: Place, slot_bytes: int) -> np.ndarray:
    start = _PAGE + place.slot * slot_bytes
    return np.ndarray(place.shape, np.uint8, buffer=memory, offset=start)
