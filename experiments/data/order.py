"""Which image stands where: a pure function of the seed, the step and the size of the batch.

Nothing is stored, and no worker keeps a state. Any process can therefore go on from any step, and
any number of processes shares out the same batches.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from grain.experimental import index_shuffle

_EPOCHS, _IMAGES = 0, 1  # what a seed is made for


class Order(NamedTuple):
    """The order in which training sees the images.

    Each epoch is a permutation of its own, without its tail: the images that fill no batch.

    Attributes:
      num_images: of the split, at least `batch_size` and below 2**32.
      batch_size: images of a step over all processes, at least 1.
      seed: of all permutations, at least 0.
    """

    num_images: int
    batch_size: int
    seed: int

    def images(self, step: int, places: Iterable[int]) -> list[int]:
        """Returns the images at some places of a batch.

        Args:
          step: completed steps; the batch belongs to the step after them.
          places: places in the batch, each in [0, batch_size).

        Returns:
          Indices into the split, one for each place.

        >>> order = Order(num_images=10, batch_size=4, seed=0)
        >>> first_epoch = [order.images(step, range(4)) for step in (0, 1)]
        >>> len(set(first_epoch[0] + first_epoch[1]))  # two images are left out
        8
        >>> order.images(1, range(2, 4)) == first_epoch[1][2:]
        True
        """
        epoch, batch = divmod(step, self.num_images // self.batch_size)
        seed = int(np.random.SeedSequence((self.seed, _EPOCHS, epoch)).generate_state(1)[0])
        first, most = batch * self.batch_size, self.num_images - 1
        return [index_shuffle(first + place, most, seed, rounds=4) for place in places]

    def rng(self, step: int, place: int) -> np.random.Generator:
        """Returns the generator for the augmentation of one image.

        It follows from the seed and from the number of the image in the stream of all steps, hence
        it is the same whichever process or worker asks for it.
        """
        return np.random.default_rng((self.seed, _IMAGES, step * self.batch_size + place))


def share(batch_size: int, index: int, count: int) -> range:
    """Returns the places of a batch that one of several processes fills: a contiguous part.

    Args:
      batch_size: over all processes; a multiple of `count`.
      index: of the process, in [0, count).
      count: number of processes, at least 1.

    >>> share(12, 1, 3)
    range(4, 8)
    """
    local = batch_size // count
    return range(index * local, (index + 1) * local)


def chunks(places: range, most: int) -> list[range]:
    """Cuts places into the fewest parts of nearly equal size.

    Args:
      places: at least one.
      most: places in a part, at least 1.

    >>> chunks(range(10, 20), 4)
    [range(10, 13), range(13, 16), range(16, 20)]
    """
    count = -(-len(places) // most)
    bounds = [len(places) * part // count for part in range(count + 1)]
    return [places[start:stop] for start, stop in zip(bounds[:-1], bounds[1:], strict=True)]
