"""Names, labels and places of ImageNet's images: all of a split but the images themselves."""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.data.imagenet_labels import NUM_CLASSES, NUM_IMAGES


class Image(NamedTuple):
    """One image.

    Attributes:
      name: what TFDS keeps as its file name, such as "n01440764_10026.JPEG".
      label: its class, in [0, 1000).
      offset: the first byte of the image in its tar.
      size: number of bytes.
    """

    name: str
    label: int
    offset: int
    size: int


class Index(NamedTuple):
    """The n images of a split, about 60 bytes each.

    Attributes:
      tars: the files that hold the images.
      tar: int32[n], position in `tars`.
      name: bytes[n] (dtype S).
      label: int32[n], in [0, 1000).
      offset: int64[n], the first byte of an image in its tar.
      size: int64[n], its number of bytes.
    """

    tars: Sequence[Path]
    tar: np.ndarray
    name: np.ndarray
    label: np.ndarray
    offset: np.ndarray
    size: np.ndarray

    def file_name(self, position: int) -> str:
        """Returns the name of an image."""
        return bytes(self.name[position]).decode()

    def fingerprint(self) -> str:
        """Returns a hash of the index, with the times at which the tars were written.

        Raises:
          FileNotFoundError: a tar is gone.
        """
        tars = [f"{path.name} {path.stat().st_mtime_ns}" for path in self.tars]
        digest = hashlib.sha256("/".join(tars).encode())
        for array in self[1:]:
            digest.update(f"{array.dtype}{array.shape}".encode() + array.tobytes())
        return digest.hexdigest()


def index(split: str, portions: Iterable[tuple[Path, Sequence[Image]]]) -> Index:
    """Collects the images of a split, and keeps them as arrays.

    Args:
      split: name of the split, for messages.
      portions: tars with some or none of their images. The portions of a tar follow each other.

    Returns:
      The index, in the order of `portions`.

    Raises:
      ValueError: there is no image, a name is no ASCII, or two images have the same name.
    """
    tars: list[Path] = []
    parts: list[list[np.ndarray]] = []
    for path, images in portions:
        if path not in tars[-1:]:
            tars.append(path)
        if images:
            names, labels, offsets, sizes = zip(*images, strict=True)
            tar = np.full(len(names), len(tars) - 1, np.int32)
            places = np.array([offsets, sizes], np.int64)
            parts.append([tar, _ascii(names, path), np.array(labels, np.int32), *places])
    if not parts:
        raise ValueError(f"{split}: no image in {', '.join(map(str, tars))}")
    found = Index(tars, *(np.concatenate(column) for column in zip(*parts, strict=True)))
    _check_names(split, found)
    return found


def _ascii(names: Sequence[str], path: Path) -> np.ndarray:
    try:
        return np.array([name.encode("ascii") for name in names])
    except UnicodeEncodeError as error:
        raise ValueError(f"{path}: expected names in ASCII, found {error.object!r}") from None


def _check_names(split: str, found: Index) -> None:
    order = np.argsort(found.name, kind="stable")
    (twice,) = np.nonzero(found.name[order[1:]] == found.name[order[:-1]])
    if twice.size:
        first, second = (int(order[twice[0] + step]) for step in (0, 1))
        raise ValueError(
            f"{split}: {found.file_name(first)} is in {found.tars[found.tar[first]]} and again in "
            f"{found.tars[found.tar[second]]}, expected once"
        )


def check_is_whole(split: str, found: Index) -> None:
    """Raises a ValueError if a split has another number of images or classes than was published."""
    num_images, num_classes = len(found.label), len(np.unique(found.label))
    if (num_images, num_classes) != (NUM_IMAGES[split], NUM_CLASSES):
        raise ValueError(
            f"{split}: {num_images:,} images of {num_classes} classes in {found.tars[0].parent}, "
            f"expected {NUM_IMAGES[split]:,} of {NUM_CLASSES}; pass --subset to prepare a part"
        )
