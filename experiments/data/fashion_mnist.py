"""Fashion-MNIST as NumPy arrays: the shipped sample, or the full set from a folder.

The full set has 60,000 training and 10,000 test images of clothing, 28 x 28 grey, in ten classes of
equal size. It is read from the records of TFDS, or from the four gzipped IDX files in which it is
published. The sample has the same four files, which need neither TFDS nor the time to decode PNGs.

Reference: Xiao, Rasul and Vollgraf (2017), "Fashion-MNIST: a Novel Image Dataset for Benchmarking
Machine Learning Algorithms", https://github.com/zalandoresearch/fashion-mnist (MIT licence).
"""

from pathlib import Path

from experiments.data import idx_images
from experiments.data.dataset import Dataset, Split, hold_out
from experiments.data.fetch import debian_package, download, first_that_works
from experiments.data.records import Content

NAME, VERSION = "fashion_mnist", "3.0.1"  # in TFDS
SAMPLE_DIR = Path(__file__).parent / "sample"
_SHA256 = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
OFFICIAL = idx_images.Official(NAME, VERSION, "Fashion-MNIST", _SHA256)

_OFFICIAL_URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
_DEBIAN_PACKAGE = "dataset-fashion-mnist"
_DEBIAN_FOLDER = "usr/share/datasets/fashion-mnist"


def load(data_dir: Path | None, *, val_fraction: float = 0.1) -> Dataset:
    """Reads Fashion-MNIST and cuts a validation set off the end of the training set.

    The cut is deterministic and needs no shuffle: the files are shuffled already (each tenth of the
    full training set has 555 to 654 images of each class, 600 expected), and every ten consecutive
    images of the sample show the ten classes. The test set is not cut.

    Args:
      data_dir: folder of the full set, see `read`; None for the shipped sample of 5,000 training
        and 1,000 test images.
      val_fraction: share of the training images that is held out, in [0, 1); with 0 the validation
        set is empty.

    Returns:
      The data set, named "fashion_mnist", or "fashion_mnist_sample" for the sample.

    Raises:
      FileNotFoundError: a file is missing; the line says where it was expected and how to get it.
      ValueError: `val_fraction` is out of range or leaves a split empty, or a file is damaged.
    """
    if data_dir is None:
        splits = idx_images.read_files(idx_images.find_files(OFFICIAL, SAMPLE_DIR))
    else:
        splits = read(data_dir)
    train, val = hold_out(splits["train"], val_fraction)
    name = "fashion_mnist_sample" if data_dir is None else NAME
    return Dataset(name, train, val, splits["test"], idx_images.NUM_CLASSES)


def read(data_dir: Path) -> dict[str, Split]:
    """Reads the full set in its official order; see `idx_images.read`."""
    return idx_images.read(OFFICIAL, data_dir)


def read_copy(source: Path) -> Content:
    """Reads the four IDX files and checks that they are the official ones."""
    return idx_images.read_copy(OFFICIAL, source)


def fetch(work: Path) -> Content:
    """Fetches the full set, 31 MB, from the official site, or else the Debian package.

    Args:
      work: folder for what is downloaded.

    Raises:
      ConnectionError: no source gave the right files; the line says what to do by hand.
    """
    return first_that_works(
        {"official site": lambda: _download(work), "Debian package": lambda: _unpack(work)},
        by_hand=f"Fashion-MNIST could not be fetched: pass --from=FOLDER with "
        f"{', '.join(f'{n}.gz' for n in OFFICIAL.sha256)} "
        f"from https://github.com/zalandoresearch/fashion-mnist",
    )


def _download(work: Path) -> Content:
    for name in OFFICIAL.sha256:
        download(f"{_OFFICIAL_URL}{name}.gz", work)
    return read_copy(work)


def _unpack(work: Path) -> Content:
    return read_copy(debian_package(_DEBIAN_PACKAGE, work) / _DEBIAN_FOLDER)
