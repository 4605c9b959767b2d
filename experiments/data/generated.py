"""Images that are made up, of full size: to try a machine before the data is there.

Each class has a coarse pattern of its own, to which noise is added, so that a network can learn the
classes and its loss falls. An image depends on the seed and on its place in the stream alone.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

NUM_CLASSES = 1000
_COARSE = 8  # fields of a pattern in each direction


class Generated(NamedTuple):
    """Batches of made-up images, of one process out of several, which share out the same ones.

    Attributes:
      seed: of patterns, labels and noise.
      batch_size: images of a step, over all processes.
      image_size: height and width.
      process: (index, count) of the processes; each yields its part of every batch.
      num_train: images of an epoch.
      num_evaluation: images that an evaluation goes over.
      num_used: classes that occur, at most 1,000.
    """

    seed: int
    batch_size: int
    image_size: int
    process: tuple[int, int] = (0, 1)
    num_train: int = 1_281_167
    num_evaluation: int = 1_000
    num_used: int = NUM_CLASSES

    def train(self, step: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields uint8 images and int32 labels of the steps after `step` completed ones."""
        while True:
            step += 1
            yield self._images(step, self.batch_size)

    def evaluation(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Yields images, labels and weights: 1 for images, 0 for what fills the last batch."""
        size = self.batch_size  # which all devices divide, as they may not divide fewer images
        for start in range(0, self.num_evaluation, size):
            places = np.arange(start, start + size)[self._own(size)]
            images, labels = self._images(-1 - start, size)
            yield images, labels, (places < self.num_evaluation).astype(np.float32)

    def _own(self, size: int) -> slice:
        index, count = self.process
        return slice(index * size // count, (index + 1) * size // count)

    def _images(self, batch: int, size: int) -> tuple[np.ndarray, np.ndarray]:
        place = int(np.int64(batch) & 0xFFFFFFFF)
        labels = np.random.default_rng((self.seed, 0, place)).integers(0, self.num_used, size)
        labels = labels[self._own(size)].astype(np.int32)
        patterns = np.random.default_rng((self.seed, 1)).integers(
            0, 192, (self.num_used, _COARSE, _COARSE, 3), dtype=np.uint8
        )
        fields = -(-self.image_size // _COARSE)
        large = patterns[labels].repeat(fields, 1).repeat(fields, 2)
        images = large[:, : self.image_size, : self.image_size]
        noise = np.empty_like(images)
        for row, number in enumerate(range(*self._own(size).indices(size))):
            draw = np.random.default_rng((self.seed, 2, place, number))
            noise[row] = draw.integers(0, 64, images.shape[1:], dtype=np.uint8)
        return images + noise, labels
