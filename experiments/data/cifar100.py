"""CIFAR-100: 50,000 training and 10,000 test images, 32 x 32 in colour, a hundred classes.

Each class has 500 training and 100 test images. The classes form twenty coarse classes, which the
records keep and `load` leaves out.

Reference: Krizhevsky (2009), "Learning Multiple Layers of Features from Tiny Images".
"""

from pathlib import Path

from experiments.data import cifar
from experiments.data.dataset import Dataset, hold_out
from experiments.data.fetch import download, first_that_works
from experiments.data.records import Content, read

NAME, VERSION = "cifar100", "3.0.2"  # in TFDS
NUM_CLASSES = 100
# Mean and standard deviation of the training images by channel, pixels in [0, 1]: widely published.
MEAN = (0.5071, 0.4865, 0.4409)
STD = (0.2673, 0.2564, 0.2762)

OFFICIAL = cifar.Official(
    batches={"train": ["train"], "test": ["test"]},
    labels={"coarse_label": b"coarse_labels", "label": b"fine_labels"},
    names={},
    name_files={"coarse_label": "coarse_label_names.txt", "label": "fine_label_names.txt"},
    md5={
        "train.bin": "6172c7755cfe09b2fe270c85cebc1b15",
        "test.bin": "4499cfba6c016c1be1438163640a0898",
        "train": "16019d7e3df5f24257cddd939b257f8d",
        "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
        "meta": "7973b15100ade9c7d40fb424638fde48",
    },
    archive_md5=("03b5dce01913d631647c71ecec9e9cb8", "eb9058c3a382ffc7106e4002c42a8d85"),
)

_OFFICIAL_URL = "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz"


def load(data_dir: Path, *, val_fraction: float = 0.1) -> Dataset:
    """Reads CIFAR-100 and cuts a validation set off the end of the training set.

    The test set is not cut.

    Args:
      data_dir: folder in which `prepare.py` or TFDS has put `cifar100/3.0.2`.
      val_fraction: share of the training images that is held out, in [0, 1). GraNet's runs hold
        out none; with 0 the validation set is empty.

    Returns:
      The data set, named "cifar100": uint8[n, 32, 32, 3] images, labels of the hundred classes.

    Raises:
      FileNotFoundError: the data set is not there; the line says how to get it.
      ValueError: `val_fraction` is out of range, or a file is damaged.
    """
    splits = read(NAME, VERSION, data_dir)
    train, val = hold_out(splits["train"], val_fraction)
    return Dataset(NAME, train, val, splits["test"], NUM_CLASSES)


def read_copy(source: Path) -> Content:
    """Reads an official copy; see `cifar.read_copy`."""
    return cifar.read_copy(OFFICIAL, source)


def fetch(work: Path) -> Content:
    """Fetches CIFAR-100 from the official site, 169 MB.

    Args:
      work: folder for what is downloaded.

    Raises:
      ConnectionError: it cannot be fetched; the line says what to do by hand.
    """
    return first_that_works(
        {"official site": lambda: read_copy(download(_OFFICIAL_URL, work))},
        by_hand=f"CIFAR-100 could not be fetched: get {_OFFICIAL_URL} elsewhere and pass "
        f"--from=FILE",
    )
