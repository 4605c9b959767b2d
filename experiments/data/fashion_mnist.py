"""Fashion-MNIST as NumPy arrays: the shipped sample, or the full set from a folder.

The full set has 60,000 training and 10,000 test images of clothing, 28 x 28 grey, in ten classes of
equal size. It is read from the records of TFDS, or from the four gzipped IDX files in which it is
published. The sample has the same four files, which need neither TFDS nor the time to decode PNGs.

Reference: Xiao, Rasul and Vollgraf (2017), "Fashion-MNIST: a Novel Image Dataset for Benchmarking
Machine Learning Algorithms", https://github.com/zalandoresearch/fashion-mnist (MIT licence).
"""

import hashlib
from pathlib import Path

import numpy as np

from experiments.data import records
from experiments.data.dataset import Dataset, Split, hold_out
from experiments.data.fetch import debian_package, download, first_that_works
from experiments.data.idx import read_bytes, read_idx
from experiments.data.records import Content

NAME, VERSION = "fashion_mnist", "3.0.1"  # in TFDS
NUM_CLASSES = 10
SAMPLE_DIR = Path(__file__).parent / "sample"
# These are of the decompressed bytes, as the official site and Debian compress them differently.
CONTENT_SHA256 = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}

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
    splits = _read_idx_files(find_files(SAMPLE_DIR)) if data_dir is None else read(data_dir)
    train, val = hold_out(splits["train"], val_fraction)
    name = "fashion_mnist_sample" if data_dir is None else NAME
    return Dataset(name, train, val, splits["test"], NUM_CLASSES)


def read(data_dir: Path) -> dict[str, Split]:
    """Reads the full set in its official order.

    Args:
      data_dir: folder that holds `fashion_mnist/3.0.1` as `prepare.py` or TFDS writes it; or else
        the four IDX files, in it or in its subfolder `fashion_mnist`.

    Returns:
      The splits "train" and "test".

    Raises:
      FileNotFoundError: the records are not there, and an IDX file is missing.
      NotADirectoryError: `data_dir` is a file.
      ValueError: a file is damaged.
    """
    records.check_is_folder(data_dir)
    if records.folder_of(NAME, VERSION, data_dir).exists():
        return records.read(NAME, VERSION, data_dir)
    try:
        return _read_idx_files(find_files(data_dir))
    except FileNotFoundError as error:
        remedy = records.remedy(NAME, VERSION, data_dir)
        raise FileNotFoundError(f"{error}; {remedy}") from None


def _read_idx_files(paths: dict[str, Path]) -> dict[str, Split]:
    return {
        split: read_split(
            paths[f"{prefix}-images-idx3-ubyte"], paths[f"{prefix}-labels-idx1-ubyte"]
        )
        for split, prefix in (("train", "train"), ("test", "t10k"))
    }


def find_files(data_dir: Path) -> dict[str, Path]:
    """Finds the four files, gzipped or not, by their official names.

    Args:
      data_dir: folder with the files, in it or in its subfolder `fashion_mnist`.

    Returns:
      Official name of each file, without `.gz`, to its path.

    Raises:
      FileNotFoundError: neither folder holds all four files.
    """
    fewest_missing = list(CONTENT_SHA256)
    for folder in (data_dir / "fashion_mnist", data_dir):
        found = {}
        for name in CONTENT_SHA256:
            for path in (folder / name, folder / f"{name}.gz"):  # the last one found is taken
                if path.is_file():
                    found[name] = path
        missing = [name for name in CONTENT_SHA256 if name not in found]
        if not missing:
            return found
        fewest_missing = min(fewest_missing, missing, key=len)
    raise FileNotFoundError(
        f"Fashion-MNIST: {', '.join(f'{name}.gz' for name in fewest_missing)} expected in "
        f"{data_dir / 'fashion_mnist'} or {data_dir}"
    )


def read_split(images_path: Path, labels_path: Path) -> Split:
    """Reads the images and the labels of one split.

    Args:
      images_path: IDX file of uint8[n, 28, 28], gzipped if its name ends in `.gz`.
      labels_path: IDX file of uint8[n], values in [0, 10), gzipped likewise.

    Returns:
      The split: images uint8[n, 28, 28, 1], labels int32[n], n at least 1.

    Raises:
      ValueError: a file is damaged, has other dimensions or labels, or the counts differ.
    """
    images = read_idx(images_path, ndim=3)
    labels = read_idx(labels_path, ndim=1)
    if images.shape[1:] != (28, 28) or not len(images):
        raise ValueError(f"{images_path}: shape is {images.shape}, expected (at least 1, 28, 28)")
    if len(labels) != len(images):
        raise ValueError(
            f"{labels_path}: {len(labels)} labels, expected {len(images)}, the number of images "
            f"in {images_path}"
        )
    if labels.max() >= NUM_CLASSES:
        worst = int(labels.argmax())
        raise ValueError(
            f"{labels_path}: label {labels[worst]} at index {worst}, "
            f"expected 0 to {NUM_CLASSES - 1}"
        )
    return Split(images[..., None], labels.astype(np.int32))


def read_copy(source: Path) -> Content:
    """Reads the four IDX files and checks that they are the official ones.

    Args:
      source: folder with the files, as in `find_files`.

    Returns:
      The data set in its official order.

    Raises:
      FileNotFoundError: a file is missing.
      ValueError: a file is damaged, or its content is not the official one.
    """
    paths = find_files(source)
    for name, path in paths.items():
        digest = hashlib.sha256(read_bytes(path)).hexdigest()
        if digest != CONTENT_SHA256[name]:
            raise ValueError(
                f"{path}: sha256 of the content is {digest}, expected {CONTENT_SHA256[name]}"
            )
    splits = _read_idx_files(paths)
    return Content(
        {key: {"image": split.images, "label": split.labels} for key, split in splits.items()}, {}
    )


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
        f"{', '.join(f'{n}.gz' for n in CONTENT_SHA256)} "
        f"from https://github.com/zalandoresearch/fashion-mnist",
    )


def _download(work: Path) -> Content:
    for name in CONTENT_SHA256:
        download(f"{_OFFICIAL_URL}{name}.gz", work)
    return read_copy(work)


def _unpack(work: Path) -> Content:
    return read_copy(debian_package(_DEBIAN_PACKAGE, work) / _DEBIAN_FOLDER)
