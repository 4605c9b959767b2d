"""Finds the images of ImageNet in a folder of tars: the official ones, or WebDataset's.

The official form is `ILSVRC2012_img_train.tar`, a tar of one tar for each class, and
`ILSVRC2012_img_val.tar`, whose labels come with TFDS.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from experiments.data.bar import progress_bar
from experiments.data.imagenet_index import Image, Index, check_is_whole, index
from experiments.data.imagenet_labels import SPLITS, Labels, read_labels
from experiments.data.imagenet_webdataset import shard_images, shards
from experiments.data.tar_members import members

OFFICIAL = {"train": "ILSVRC2012_img_train.tar", "validation": "ILSVRC2012_img_val.tar"}


def read_copy(folder: Path, *, subset: bool = False) -> dict[str, Index]:
    """Lists the images of a copy, and shows a bar. It reads headers and labels, no image.

    Args:
      folder: holds the official tars, or those of WebDataset.
      subset: accept fewer images or classes than were published.

    Returns:
      "train" and "validation" to their images.

    Raises:
      FileNotFoundError: `folder` does not exist, or lacks tars; the message names them.
      ValueError: a tar is cut off, an image has no label, a class is none of the thousand, an image
        comes twice, or, without `subset`, images are missing.
    """
    tars = find(folder)
    labels = read_labels()
    sizes = {path: path.stat().st_size for paths in tars.values() for path in paths}
    indices = {}
    with progress_bar(sum(sizes.values()), "listing", unit="B", unit_scale=True) as bar:
        for split, paths in tars.items():
            indices[split] = index(split, _portions(split, paths, labels, bar))
            if not subset:
                check_is_whole(split, indices[split])
    return indices


def find(folder: Path) -> dict[str, list[Path]]:
    """Returns the tars of each split, the official ones if both forms are there.

    Raises:
      FileNotFoundError: `folder` does not exist, or lacks tars; the message names them.
    """
    expected = (
        f"expected {' and '.join(OFFICIAL.values())} from image-net.org, or WebDataset's "
        f"NAME-train-0000.tar ... and NAME-validation-00.tar ..., there or in --from=FOLDER"
    )
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}; {expected}")
    official = {split: [folder / name] for split, name in OFFICIAL.items()}
    official = {split: paths for split, paths in official.items() if paths[0].is_file()}
    sharded = {split: paths for split in SPLITS if (paths := shards(folder, split))}
    tars = max(official, sharded, key=len)
    missing = [split for split in SPLITS if split not in tars]
    if missing == list(SPLITS):
        raise FileNotFoundError(f"no tars of ImageNet in {folder}; {expected}")
    if missing:
        name = OFFICIAL[missing[0]] if tars is official else f"NAME-{missing[0]}-0000.tar ..."
        raise FileNotFoundError(f"{name} missing in {folder}; {expected}")
    return tars


def _portions(
    split: str, paths: Sequence[Path], labels: Labels, bar: tqdm
) -> Iterator[tuple[Path, list[Image]]]:
    """Yields tars with images in them: those of a class at a time, or of a tar."""
    for path in paths:
        if path.name == OFFICIAL["train"]:
            portions = _train_images(path, labels)
        elif path.name == OFFICIAL["validation"]:
            portions = [_validation_images(path, labels)]
        else:
            portions = [shard_images(path, labels)]
        yield path, []  # a tar without images is named too
        for images in portions:
            yield path, images
            bar.update(sum(image.size for image in images))


def _train_images(path: Path, labels: Labels) -> Iterator[list[Image]]:
    for inner in members(path):
        try:
            label = labels.of_class(PurePosixPath(inner.name).stem)
        except ValueError as error:
            raise ValueError(f"{path}: {inner.name}: {error}") from None
        yield [
            Image(PurePosixPath(member.name).name, label, member.offset, member.size)
            for member in members(path, inner)
        ]


def _validation_images(path: Path, labels: Labels) -> list[Image]:
    images = []
    for member in members(path):
        name = PurePosixPath(member.name).name
        if not name.startswith("ILSVRC2012_val_") or (label := labels.of_image(name)) is None:
            raise ValueError(
                f"{path}: {member.name} is no ILSVRC2012_val_00000001.JPEG to "
                f"ILSVRC2012_val_{len(labels.of_validation):08d}.JPEG"
            )
        images.append(Image(name, label, member.offset, member.size))
    return images
