"""The batches of a run: from images on the device, or from an iterator of arrays.

A step takes a batch and asks it for its images inside the compiled function. A batch of images on
the device is only a list of indices, so that the gather is part of the step's program. A batch
that an iterator brings holds the images themselves, which may be sharded over devices.
"""

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from experiments.data.dataset import Split

Item = TypeVar("Item")

FIRST_EPOCH = 2
"""The order of epoch e has the run's key with purpose FIRST_EPOCH + e."""


class Indexed(NamedTuple):
    """A batch as indices into images on the device.

    Attributes:
      images: uint8[images, height, width, channels], all there are.
      labels: int32[images].
      indices: int32[batch_size], which images the step takes.
    """

    images: jax.Array
    labels: jax.Array
    indices: jax.Array | np.ndarray

    def take(self) -> tuple[jax.Array, jax.Array]:
        """Returns the batch's images and labels."""
        return self.images[self.indices], self.labels[self.indices]

    def part(self, number: jax.Array | int, num_parts: int) -> "Indexed":
        """Returns one of the equal micro-batches that the batch is cut into."""
        return self._replace(indices=jnp.reshape(self.indices, (num_parts, -1))[number])


class Loaded(NamedTuple):
    """A batch of images that something else has loaded.

    Attributes:
      images: uint8[batch_size, height, width, channels], on the host or on any devices.
      labels: int32[batch_size].
    """

    images: jax.Array | np.ndarray
    labels: jax.Array | np.ndarray

    def take(self) -> tuple[jax.Array, jax.Array]:
        """Returns the batch's images and labels."""
        return jnp.asarray(self.images), jnp.asarray(self.labels)

    def part(self, number: jax.Array | int, num_parts: int) -> "Loaded":
        """Returns one of the equal micro-batches that the batch is cut into."""
        cut = lambda x: jnp.reshape(x, (num_parts, -1, *x.shape[1:]))[number]
        return Loaded(cut(self.images), cut(self.labels))


class Stacked(NamedTuple):
    """Micro-batches of images that something else has loaded, one behind the other.

    Each may be cut over devices along its images: no image then moves when one is taken.

    Attributes:
      images: uint8[parts, batch_size / parts, height, width, channels].
      labels: int32[parts, batch_size / parts].
    """

    images: jax.Array | np.ndarray
    labels: jax.Array | np.ndarray

    def take(self) -> tuple[jax.Array, jax.Array]:
        """Returns all images and labels."""
        flat = lambda x: jnp.reshape(x, (-1, *x.shape[2:]))
        return flat(self.images), flat(self.labels)

    def part(self, number: jax.Array | int, num_parts: int) -> Loaded:
        """Returns one of the micro-batches."""
        assert num_parts == self.labels.shape[0]
        return Loaded(jnp.asarray(self.images)[number], jnp.asarray(self.labels)[number])


Batch: TypeAlias = Indexed | Loaded | Stacked


def on_device(split: Split, key: jax.Array, batch_size: int, start: int = 0) -> Iterator[Indexed]:
    """Yields batches of images that it puts on the device as uint8, in the order of `shuffled`."""
    images, labels = jnp.asarray(split.images), jnp.asarray(split.labels)
    for indices in shuffled(key, len(split.labels), batch_size, start):
        yield Indexed(images, labels, indices)


def shuffled(
    key: jax.Array, num_images: int, batch_size: int, start: int = 0
) -> Iterator[np.ndarray]:
    """Yields int32[batch_size] indices forever: each epoch in a new order, without its tail.

    The order depends on the key and the number of the epoch alone, so that a run which goes on sees
    the images that it would have seen.

    Args:
      key: of all epochs.
      num_images: to draw from, at least batch_size.
      batch_size: indices of one step. An epoch leaves out the images that fill no batch.
      start: completed steps; the first batch belongs to the step after them.
    """
    per_epoch = num_images // batch_size
    epoch, done = divmod(start, per_epoch)
    while True:
        order = jax.random.permutation(jax.random.fold_in(key, FIRST_EPOCH + epoch), num_images)
        order = np.asarray(order)  # iterating over an array on the device is slow
        yield from order[: per_epoch * batch_size].reshape(per_epoch, batch_size)[done:]
        epoch, done = epoch + 1, 0


def prefetched(
    batches: Iterator[Any], place: Callable[[Any], Item], ahead: int = 2
) -> Iterator[Item]:
    """Yields batches on the devices, the next ones being on their way there."""
    waiting: deque[Item] = deque()
    for batch in batches:
        waiting.append(place(batch))
        if len(waiting) > ahead:
            yield waiting.popleft()
    yield from waiting
