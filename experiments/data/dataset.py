"""What every data set looks like to the training loop."""

from typing import NamedTuple

import numpy as np


class Split(NamedTuple):
    """Images with their labels; the arrays are read-only."""

    images: np.ndarray  # uint8[n, height, width, channels]
    labels: np.ndarray  # int32[n], in [0, num_classes)


class Dataset(NamedTuple):
    """Three disjoint splits of one data set."""

    name: str
    train: Split
    val: Split
    test: Split
    num_classes: int
