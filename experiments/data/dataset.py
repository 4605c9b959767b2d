"""The form of every data set in memory, and the cut of a validation set."""

from typing import NamedTuple

import numpy as np

from jaxsparse.checks import check_in
from jaxsparse.types import OptionError


class Split(NamedTuple):
    """Images with their labels; the arrays are read-only."""

    images: np.ndarray  # uint8[n, height, width, channels]
    labels: np.ndarray  # int32[n], in [0, num_classes)


class Dataset(NamedTuple):
    """Three disjoint splits of one data set.

    With `val_fraction=0`, to train on all images, the arrays of `val` have length 0. There is then
    no validation accuracy, and no best model by it.
    """

    name: str
    train: Split
    val: Split
    test: Split
    num_classes: int


def hold_out(train: Split, val_fraction: float) -> tuple[Split, Split]:
    """Cuts a validation set off the end of a training set.

    The cut is deterministic. It needs no shuffle, as the official orders are shuffled already; the
    loaders say how even the classes are.

    Args:
      train: the official training set, in its official order.
      val_fraction: share of the images that is held out, in [0, 1); their number is rounded to the
        nearest integer. 0 holds out none.

    Returns:
      The images to train on, and those held out.

    Raises:
      ValueError: `val_fraction` is out of range, leaves no image to train on, or holds out none
        although it is above 0.

    >>> ten = Split(np.zeros((10, 1, 1, 1), np.uint8), np.arange(10, dtype=np.int32))
    >>> [split.labels.tolist() for split in hold_out(ten, 0.2)]
    [[0, 1, 2, 3, 4, 5, 6, 7], [8, 9]]
    >>> [len(split.labels) for split in hold_out(ten, 0.0)]
    [10, 0]
    """
    check_in("val_fraction", val_fraction, "[0, 1)")
    num_images = len(train.labels)
    num_train = num_images - round(num_images * val_fraction)
    if num_train == 0 or (num_train == num_images and val_fraction > 0):
        wrong = (
            f"of {num_images} images leaves {num_train} for training and {num_images - num_train} "
            f"for validation; each needs at least 1"
        )
        raise OptionError("val_fraction", val_fraction, wrong)
    return (
        Split(train.images[:num_train], train.labels[:num_train]),
        Split(train.images[num_train:], train.labels[num_train:]),
    )
