"""Turns stored images into batches, in worker processes that Grain runs.

An element of the pipeline is a chunk: up to 64 images of one process's part of a batch. A chunk is
a function of its number, so no worker has a state; worker w of W makes the chunks w, w + W, w + 2 W
and so on. Grain hands them on in order, and the images lie in slots of the worker's memory.
"""

import atexit
import functools
import os
import signal
import threading
from collections.abc import Callable, Generator, Sequence
from multiprocessing import parent_process
from typing import Any, NamedTuple

import cv2
import grain
import numpy as np
from absl import flags

from experiments.data.corrupt import Corrupt
from experiments.data.crops import eval_image, train_image
from experiments.data.imagenet_records import Records, Stored
from experiments.data.jpeg import UnreadableError
from experiments.data.order import Order
from experiments.data.slots import Sender, Slots, can_be_used

MOST = 64  # images of a chunk: 10 MB at 224, of which about five wait for each worker
ENDLESS = 2**31  # chunks; Grain wants an end, and this one is never reached
_TRIES = 100  # corrupt images of a chunk after which the whole split is taken for damaged


class Chunk(NamedTuple):
    """Some images of a batch.

    Attributes:
      images: uint8[n, size, size, 3] in RGB.
      labels: int32[n], in [0, 1000).
      weights: float32[n]: 1 for an image, 0 for a place without one, whose pixels and label are 0.
      corrupt: the fields of a `Corrupt` for each image that could not be read.
    """

    images: np.ndarray
    labels: np.ndarray
    weights: np.ndarray
    corrupt: tuple[tuple[Any, ...], ...]


class TrainChunks(NamedTuple):
    """The chunks of training, as a source of Grain: random crops, half of them flipped.

    A corrupt image is replaced by the next image of the split that can be read.

    Attributes:
      records: the training split.
      order: which image stands where.
      step: completed steps; the first chunk belongs to the step after them.
      parts: the places of a batch that each chunk fills.
      size: height and width of the crops.
      crop: decodes, crops and flips; called as `train_image`.
    """

    records: Records
    order: Order
    step: int
    parts: Sequence[range]
    size: int
    crop: Callable[[bytes, np.random.Generator, int], np.ndarray] = train_image

    def __call__(self, number: int) -> Chunk:
        """Makes chunk `number`."""
        steps, part = divmod(number, len(self.parts))
        step, places = self.step + steps, self.parts[part]
        chunk, corrupt = _empty(len(places), self.size), []
        found = self.records.read(self.order.images(step, places))
        for row, (place, one) in enumerate(zip(places, found, strict=True)):
            # A replacement has the draws of its place.
            crop = lambda data, size, place=place: self.crop(
                data, self.order.rng(step, place), size
            )
            while failed := _fill(chunk, row, one, crop):
                corrupt.append(failed)
                if len(corrupt) == _TRIES:
                    raise ValueError(f"{_TRIES} images of a batch cannot be read, such as {failed}")
                (one,) = self.records.read([(failed.record + 1) % len(self.records)])
        return chunk._replace(corrupt=tuple(map(tuple, corrupt)))


class EvalChunks(NamedTuple):
    """The chunks of an evaluation: the centre of each image of the split.

    Places behind the last image are empty, and so is that of a corrupt image: no other one stands
    in for it, as it would count twice.

    Attributes:
      records: the validation split.
      batch_size: images of a batch over all processes.
      parts: the places of a batch that each chunk fills.
      size: height and width of the crops.
    """

    records: Records
    batch_size: int
    parts: Sequence[range]
    size: int

    def __call__(self, number: int) -> Chunk:
        """Makes chunk `number`."""
        batch, part = divmod(number, len(self.parts))
        places = self.parts[part]
        chunk = _empty(len(places), self.size)
        first = batch * self.batch_size
        indices = [first + place for place in places if first + place < len(self.records)]
        found = self.records.read(indices) if indices else []
        failed = [_fill(chunk, row, one, eval_image) for row, one in enumerate(found)]
        return chunk._replace(corrupt=tuple(tuple(one) for one in failed if one is not None))


def run(make: TrainChunks | EvalChunks, length: int, workers: int) -> Generator[Chunk, None, None]:
    """Yields chunks 0, 1, 2 ... that worker processes make ahead of time.

    Args:
      make: makes a chunk from its number.
      length: number of chunks.
      workers: processes; with 0 a thread of this process makes one chunk ahead.

    Returns:
      The chunks. The workers end when the iterator is closed or forgotten.
    """
    # A thread makes the next chunk while the last one is handed on.
    reading = grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)
    send, slots = make, None
    if workers and can_be_used():
        slots = Slots(workers, max(map(len, make.parts)), make.size)
        send = Sender(make, slots.paths, slots.slot_bytes)
    dataset = grain.MapDataset.source(_Source(send, length)).to_iter_dataset(reading)
    if workers:
        if not flags.FLAGS.is_parsed():  # Grain reads absl's flags, which our scripts do not have
            flags.FLAGS.mark_as_parsed()
        options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=1)
        init = functools.partial(_start_worker, make.records)
        dataset = dataset.mp_prefetch(options, worker_init_fn=init)
    else:
        _share_cores(make.records)
    iterator = iter(dataset)
    # An error may keep the iterator up to the end of Python, which is too late for Grain to close.
    atexit.register(iterator.close)
    try:
        yield from iterator if slots is None else map(slots.taken, iterator)
    finally:
        atexit.unregister(iterator.close)
        iterator.close()
        if slots is not None:
            slots.close()


class _Source:
    def __init__(self, make: Callable[[int], Chunk], length: int):
        self._make, self._length = make, length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Chunk:
        return self._make(index)


def _start_worker(records: Records, index: int, count: int) -> None:
    """Prepares a worker process: the one that trains decides when it ends, and how.

    A signal to the whole group of processes must not take the workers away while the run saves its
    last checkpoint. A worker whose parent was killed would wait forever for its batch to be taken.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    Sender.worker = index
    _share_cores(records)


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _share_cores(records: Records) -> None:
    """Keeps OpenCV's threads off the cores of other workers, and allows enough open files."""
    cv2.setNumThreads(0)
    records.allow_open_files()


def _empty(num_images: int, size: int) -> Chunk:
    return Chunk(
        np.zeros((num_images, size, size, 3), np.uint8),
        np.zeros(num_images, np.int32),
        np.zeros(num_images, np.float32),
        (),
    )


def _fill(
    chunk: Chunk, row: int, one: Stored | Corrupt, crop: Callable[..., np.ndarray]
) -> Corrupt | None:
    """Writes an image into a row of a chunk; returns why not if it is corrupt."""
    if isinstance(one, Corrupt):
        return one
    try:
        chunk.images[row] = crop(one.data, size=chunk.images.shape[1])
    except UnreadableError as error:
        return Corrupt(one.split, one.record, one.name, str(error))
    chunk.labels[row], chunk.weights[row] = one.label, 1.0
    return None
