"""A small ImageNet of real JPEGs, in the forms in which the full one comes.

Ten of the thousand classes have images: the ten classes of Fashion-MNIST, enlarged, with a colour
of their own. So a network can learn them, by shape and, faster, by colour.
"""

import colorsys
import functools
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from experiments.data import fashion_mnist, imagenet_labels, prepare

# One for each class of Fashion-MNIST, over the whole range of labels: 0, 111, ..., 999.
LABELS = tuple(range(0, 1000, 111))
SIZES = ((120, 90), (90, 120), (160, 120), (256, 192), (100, 100), (75, 200))  # width, height
ODD = ("grey", "cmyk", "truncated")  # how the first images of the training split differ


class Jpeg(NamedTuple):
    """An image of the small ImageNet."""

    name: str  # as in the official tars
    label: int  # in [0, 1000)
    content: bytes


def images(split: str, number: int, *, odd: Sequence[str] = ODD) -> list[Jpeg]:
    """Makes the images of a split; those of fewer images are the first of those of more.

    Args:
      split: "train" or "validation".
      number: how many, at most 4,000 in "train" and 500 in "validation".
      odd: kinds of the first images: "grey", "cmyk" or "truncated", which is cut in half.

    Returns:
      The images; their classes take turns.
    """
    pictures, classes = _pictures(split)
    names = _names(split, number)
    made, used = [], [0] * len(LABELS)
    for position, name in enumerate(names):
        kind = position % len(LABELS)
        picture = pictures[np.flatnonzero(classes == kind)[used[kind]]]
        used[kind] += 1
        rng = np.random.default_rng([position, split == "train"])
        how = odd[position] if position < len(odd) else "rgb"
        made.append(Jpeg(name, LABELS[kind], _jpeg(picture, kind, rng, how)))
    return made


def _pictures(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns uint8[n, 28, 28, 1] and int32[n] of the sample that comes with the repository."""
    sample = fashion_mnist.load(None)
    return sample.train if split == "train" else sample.test


def _names(split: str, number: int) -> list[str]:
    if split == "train":
        synsets = list(_official().of_synset)
        kinds = [synsets[LABELS[n % len(LABELS)]] for n in range(number)]
        return [f"{kind}_{10 * n + 7}.JPEG" for n, kind in enumerate(kinds)]
    # The official list has the labels of validation images: take such as have ours.
    labels = np.array(_official().of_validation)
    numbers = [np.flatnonzero(labels == label) + 1 for label in LABELS]
    chosen = [numbers[n % len(LABELS)][n // len(LABELS)] for n in range(number)]
    return [f"ILSVRC2012_val_{n:08d}.JPEG" for n in chosen]


_official = functools.cache(imagenet_labels.read_labels)


def _jpeg(picture: np.ndarray, kind: int, rng: np.random.Generator, how: str) -> bytes:
    size = SIZES[rng.integers(len(SIZES))]
    grey = Image.fromarray(picture[..., 0]).resize(size, Image.Resampling.BILINEAR)
    hue = kind / len(LABELS) + rng.uniform(-0.02, 0.02)
    colour = np.array(colorsys.hsv_to_rgb(hue % 1.0, 0.8, 1.0))
    bright = np.asarray(grey, np.float32)[..., None]
    pixels = 40 + 0.75 * bright * colour + rng.normal(0, 8, (size[1], size[0], 3))
    image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    image = image.convert({"grey": "L", "cmyk": "CMYK"}.get(how, "RGB"))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=85)
    content = file.getvalue()
    return content[: len(content) // 2] if how == "truncated" else content


def write_tar(path: Path, files: Mapping[str, bytes]) -> Path:
    """Writes files into an uncompressed tar."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(tar_bytes(files))
    return path


def tar_bytes(files: Mapping[str, bytes]) -> bytes:
    """Returns an uncompressed tar of files."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def write_official(folder: Path, train: Sequence[Jpeg], validation: Sequence[Jpeg]) -> Path:
    """Writes ILSVRC2012_img_train.tar, a tar of tars, and ILSVRC2012_img_val.tar."""
    synsets = list(_official().of_synset)
    inner = {
        f"{synsets[label]}.tar": tar_bytes({x.name: x.content for x in train if x.label == label})
        for label in sorted({x.label for x in train}, reverse=True)  # in no special order
    }
    write_tar(folder / "ILSVRC2012_img_train.tar", inner)
    write_tar(folder / "ILSVRC2012_img_val.tar", {x.name: x.content for x in validation})
    return folder


def write_webdataset(
    folder: Path,
    train: Sequence[Jpeg],
    validation: Sequence[Jpeg],
    *,
    label_in: str = "cls",
    num_tars: int = 3,
) -> Path:
    """Writes imagenet1k-train-0000.tar and so on, with labels in .cls or in .json."""
    for split, all_images in (("train", train), ("validation", validation)):
        for number in range(num_tars):
            files = {}
            for x in all_images[number::num_tars]:
                key = x.name.removesuffix(".JPEG")
                about = {"label": x.label, "filename": x.name}
                files[f"{key}.jpg"] = x.content
                files[f"{key}.{label_in}"] = (
                    str(x.label) if label_in == "cls" else json.dumps(about)
                ).encode()
            write_tar(folder / f"imagenet1k-{split}-{number:04d}.tar", files)
    return folder


def prepare_small(
    data_dir: Path, *, train: int = 300, validation: int = 60, odd: Sequence[str] = ODD
) -> Path:
    """Prepares a small ImageNet in the stock format.

    Args:
      data_dir: folder for data sets, created if missing; the tars stay in its imagenet2012.
      train: number of training images.
      validation: number of validation images, none of which is odd.
      odd: kinds of the first training images, see `images`.

    Returns:
      `data_dir`, from which `tfds.data_source("imagenet2012", ...)` reads.
    """
    home = data_dir / "imagenet2012"
    write_official(home, images("train", train, odd=odd), images("validation", validation, odd=()))
    prepare.prepare(prepare.imagenet(subset=True), data_dir)
    return data_dir
