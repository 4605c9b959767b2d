"""ImageNet (ILSVRC 2012): 1,281,167 training and 50,000 validation images of 1,000 classes.

It is read as it was prepared, batch by batch. The batch of a step is a function of the seed, the
step and the batch size: it is the same on any number of processes and workers, and a run that goes
on sees the images, crops and flips that it would have seen.

Reference: Russakovsky et al. (2015), "ImageNet Large Scale Visual Recognition Challenge".
"""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.data import decoding
from experiments.data.corrupt import Corrupt, Tally
from experiments.data.imagenet_records import NAME, Records, open_records
from experiments.data.order import Order, chunks, share
from jaxsparse.checks import check_whole
from jaxsparse.types import OptionError

NUM_CLASSES = 1000
# Mean and standard deviation by channel, pixels in [0, 1]: those that torchvision's models use.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


class ImageNet(NamedTuple):
    """The batches of one process out of several, which all have equal parts of every batch.

    Attributes:
      records: split ("train", "validation") to its stored images.
      seed: of order, crops and flips.
      batch_size: images of a step, over all processes.
      image_size: height and width of the crops.
      workers: processes that decode; 0 for a thread of this one.
      process: (index, count) of the processes.
      tally: of the corrupt images that this process has met.
      name: of the data set.
    """

    records: dict[str, Records]
    seed: int
    batch_size: int
    image_size: int
    workers: int
    process: tuple[int, int]
    tally: Tally
    name: str = NAME

    @property
    def num_train(self) -> int:
        """Number of images to train on; an epoch leaves out those that fill no batch."""
        return len(self.records["train"])

    @property
    def num_evaluation(self) -> int:
        """Number of images that an evaluation goes over."""
        return len(self.records["validation"])

    def train(self, step: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields the batches of the steps after `step` completed ones, forever.

        A crop has 8 to 100 % of an image's area, and half of the crops are flipped; see
        `crops.train_image`. The next image of the split stands in for a corrupt one.

        Args:
          step: at least 0.

        Returns:
          uint8[local, image_size, image_size, 3] images in RGB and int32[local] labels, of this
          process's part of the batch. Workers end when the iterator is closed or forgotten.

        Raises:
          ValueError: by `next`, if there are more corrupt images than allowed.
        """
        order = Order(self.num_train, self.batch_size, self.seed)
        make = decoding.TrainChunks(
            self.records["train"], order, step, self._parts(), self.image_size
        )
        for images, labels, _ in self._batches(make, decoding.ENDLESS):
            yield images, labels

    def evaluation(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Yields all validation images; over all processes each of them comes once.

        Every process yields as many batches, of the same shape.

        Returns:
          uint8[local, image_size, image_size, 3] images: the centre, which is cut out after the
          shorter side is resized to 8/7 of it; int32[local] labels; float32[local] weights: 1 for
          an image, 0 for a corrupt one and for what fills up the last batch.

        Raises:
          ValueError: by `next`, if there are more corrupt images than allowed.
        """
        parts = self._parts()
        make = decoding.EvalChunks(
            self.records["validation"], self.batch_size, parts, self.image_size
        )
        num_batches = -(-self.num_evaluation // self.batch_size)
        yield from self._batches(make, num_batches * len(parts))

    def _parts(self) -> list[range]:
        return chunks(share(self.batch_size, *self.process), decoding.MOST)

    def _batches(
        self, make: decoding.TrainChunks | decoding.EvalChunks, length: int
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        running = decoding.run(make, length, self.workers)
        try:
            while together := list(itertools.islice(running, len(make.parts))):
                for chunk in together:
                    self.tally.add(Corrupt(*one) for one in chunk.corrupt)
                images, labels, weights, _ = zip(*together, strict=True)
                yield _joined(images), _joined(labels), _joined(weights)
        finally:
            running.close()


def open_data(
    data_dir: Path,
    *,
    seed: int,
    batch_size: int,
    image_size: int,
    workers: int,
    max_corrupt: int,
    process: tuple[int, int],
) -> ImageNet:
    """Opens ImageNet as `prepare.py` or TFDS has written it; reads no image yet.

    Args:
      data_dir: folder that holds `imagenet2012/5.1.0`.
      seed: of order, crops and flips, at least 0.
      batch_size: images of a step over all processes; a multiple of their number, and at most the
        number of training images.
      image_size: height and width of the crops, at least 1.
      workers: processes that decode images for this process, at least 0; 0 for a thread of it.
      max_corrupt: number of corrupt images up to which this process goes on, at least 0. Each one
        is named on stderr.
      process: (index, count) of the processes, index in [0, count).

    Raises:
      OSError: the data set or a file of it is not there; the line says where it was expected, and
        where it is or how to get it.
      ValueError: an argument is out of range, a file cannot be read, the files have another format,
        or TFDS is not installed.
    """
    check_whole("seed", seed, 0)
    check_whole("image_size", image_size, 1)
    check_whole("workers", workers, 0)
    check_whole("max_corrupt", max_corrupt, 0)
    if batch_size % process[1]:
        raise OptionError("batch_size", batch_size, f"must be a multiple of {process[1]} processes")
    records = open_records(data_dir)
    check_whole("batch_size", batch_size, 1, len(records["train"]))
    tally = Tally(max_corrupt)
    return ImageNet(records, seed, batch_size, image_size, workers, process, tally)


def _joined(parts: tuple[np.ndarray, ...]) -> np.ndarray:
    # Grain's arrays in shared memory are a type of their own.
    return np.asarray(parts[0]) if len(parts) == 1 else np.concatenate(parts)
