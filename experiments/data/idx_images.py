"""Data sets of 28 x 28 grey images in four IDX files: MNIST, and Fashion-MNIST, which has its form.

Each has 60,000 training and 10,000 test images of ten classes. It is read from the records of TFDS,
or from the four IDX files in which it is published, gzipped or not.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.data import records
from experiments.data.dataset import Split
from experiments.data.idx import read_bytes, read_idx
from experiments.data.records import Content

NUM_CLASSES = 10


class Official(NamedTuple):
    """A data set as it was published.

    Attributes:
      name: in TFDS.
      version: in TFDS.
      title: for messages.
      sha256: name of each file, without `.gz`, to the sha256 of its decompressed bytes; sites
        compress them differently.
    """

    name: str
    version: str
    title: str
    sha256: Mapping[str, str]


def read(official: Official, data_dir: Path) -> dict[str, Split]:
    """Reads the full set in its official order.

    Args:
      official: the data set.
      data_dir: folder that holds `NAME/VERSION` as `prepare.py` or TFDS writes it; or else the four
        IDX files, in it or in its subfolder `NAME`.

    Returns:
      The splits "train" and "test".

    Raises:
      FileNotFoundError: the records are not there, and an IDX file is missing.
      NotADirectoryError: `data_dir` is a file.
      ValueError: a file is damaged.
    """
    records.check_is_folder(data_dir)
    if records.folder_of(official.name, official.version, data_dir).exists():
        return records.read(official.name, official.version, data_dir)
    try:
        return read_files(find_files(official, data_dir))
    except FileNotFoundError as error:
        remedy = records.remedy(official.name, official.version, data_dir)
        raise FileNotFoundError(f"{error}; {remedy}") from None


def read_files(paths: Mapping[str, Path]) -> dict[str, Split]:
    """Reads the four files, by the paths that `find_files` returns."""
    return {
        split: read_split(
            paths[f"{prefix}-images-idx3-ubyte"], paths[f"{prefix}-labels-idx1-ubyte"]
        )
        for split, prefix in (("train", "train"), ("test", "t10k"))
    }


def find_files(official: Official, data_dir: Path) -> dict[str, Path]:
    """Finds the four files, gzipped or not, by their official names.

    Args:
      official: the data set.
      data_dir: folder with the files, in it or in its subfolder of the data set's name.

    Returns:
      Official name of each file, without `.gz`, to its path.

    Raises:
      FileNotFoundError: neither folder holds all four files.
    """
    fewest_missing = list(official.sha256)
    for folder in (data_dir / official.name, data_dir):
        found = {}
        for name in official.sha256:
            for path in (folder / name, folder / f"{name}.gz"):  # the last one found is taken
                if path.is_file():
                    found[name] = path
        missing = [name for name in official.sha256 if name not in found]
        if not missing:
            return found
        fewest_missing = min(fewest_missing, missing, key=len)
    raise FileNotFoundError(
        f"{official.title}: {', '.join(f'{name}.gz' for name in fewest_missing)} expected in "
        f"{data_dir / official.name} or {data_dir}"
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


def read_copy(official: Official, source: Path) -> Content:
    """Reads the four IDX files and checks that they are the official ones.

    Args:
      official: the data set.
      source: folder with the files, as in `find_files`.

    Returns:
      The data set in its official order.

    Raises:
      FileNotFoundError: a file is missing.
      ValueError: a file is damaged, or its content is not the official one.
    """
    paths = find_files(official, source)
    for name, path in paths.items():
        digest = hashlib.sha256(read_bytes(path)).hexdigest()
        if digest != official.sha256[name]:
            raise ValueError(
                f"{path}: sha256 of the content is {digest}, expected {official.sha256[name]}"
            )
    splits = read_files(paths)
    return Content(
        {key: {"image": split.images, "label": split.labels} for key, split in splits.items()}, {}
    )
