"""Hands images from a worker process to its parent through memory that is used again and again.

A queue between processes takes new shared memory for every chunk, and the system clears each page
of it: for 10 MB that is a tenth of the time that it takes to decode them. Here a worker has one
anonymous file with a few slots. It fills a free one and names it; the parent copies the images out
and marks the slot as free. A chunk that finds all slots full goes the queue's way, so nobody waits.

The file has no name and goes with its last process, however that ends. It is not part of /dev/shm,
which containers limit. Linux alone has such files; elsewhere every chunk goes through the queue.
"""

import mmap
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

NUM_SLOTS = 6  # about five chunks wait for each worker
_PAGE = mmap.PAGESIZE  # the first page has a byte for each slot, 1 if it is full


class Place(NamedTuple):
    """Where the images of a chunk lie.

    Attributes:
      process: number of the worker's process.
      file: the file's number in that process.
      slot: in [0, NUM_SLOTS).
      slot_bytes: size of a slot.
      shape: of the images, which are uint8.
    """

    process: int
    file: int
    slot: int
    slot_bytes: int
    shape: tuple[int, ...]


class Sender:
    """Makes chunks as another function does, in a worker; their images become a `Place`.

    Args:
      make: makes a chunk from its number; its field `images` is uint8.
      most_images: the most images of a chunk.
      size: height and width of an image.
    """

    def __init__(self, make: Callable[[int], Any], most_images: int, size: int):
        self._make = make
        self._slot_bytes = -(-most_images * size * size * 3 // _PAGE) * _PAGE
        self._file, self._memory = -1, None

    def __call__(self, number: int) -> Any:
        """Makes chunk `number`."""
        chunk = self._make(number)
        if self._memory is None:  # here, since a worker gets its own copy before its first chunk
            self._file = os.memfd_create("images")
            os.ftruncate(self._file, _PAGE + NUM_SLOTS * self._slot_bytes)
            self._memory = mmap.mmap(self._file, 0)
        slot = self._memory.find(b"\0", 0, NUM_SLOTS)
        if slot < 0:
            return chunk
        place = Place(os.getpid(), self._file, slot, self._slot_bytes, chunk.images.shape)
        _view(self._memory, place)[...] = chunk.images
        self._memory[slot] = 1
        return chunk._replace(images=place)


class Receiver:
    """Takes the images of chunks out of the memory of workers."""

    def __init__(self) -> None:
        self._memory: dict[int, mmap.mmap] = {}

    def __call__(self, chunk: Any) -> Any:
        """Returns the chunk with its images; they are copied, and their slot is free again."""
        place = chunk.images
        if not isinstance(place, Place):
            return chunk
        if place.process not in self._memory:
            with open(f"/proc/{place.process}/fd/{place.file}", "r+b") as file:
                self._memory[place.process] = mmap.mmap(file.fileno(), 0)
        memory = self._memory[place.process]
        images = _view(memory, place).copy()
        memory[place.slot] = 0
        return chunk._replace(images=images)


def can_be_used() -> bool:
    """Whether the system has anonymous files that another process can open."""
    return hasattr(os, "memfd_create") and os.path.isdir("/proc/self/fd")


def _view(memory: mmap.mmap, place: Place) -> np.ndarray:
    start = _PAGE + place.slot * place.slot_bytes
    return np.ndarray(place.shape, np.uint8, buffer=memory, offset=start)
