"""ImageNet in WebDataset's form: KEY.jpg with its label in KEY.cls or KEY.json, in numbered tars.

`timm/imagenet-1k-wds` is such a copy: `imagenet1k-train-0000.tar` to `-1023`, and
`imagenet1k-validation-00.tar` to `-63`. Labels are positions in the sorted list of classes, as in
TFDS.
"""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from experiments.data.imagenet_index import Image
from experiments.data.imagenet_labels import NUM_CLASSES, Labels
from experiments.data.tar_members import Member, members

_SHARD = re.compile(r"(?P<stem>.*)(?P<split>train|validation|val)[-_](?P<number>\d+)\.tar")
_IMAGE_SUFFIXES = ("jpg", "jpeg")


def shards(folder: Path, split: str) -> list[Path]:
    """Returns the tars of a split by their numbers, none if there is no tar of this form.

    Raises:
      FileNotFoundError: a number is missing between 0 and the last.
      ValueError: the tars of two sets are in the folder.
    """
    found: dict[tuple[str, str], dict[int, Path]] = {}
    for path in folder.iterdir():
        match = _SHARD.fullmatch(path.name)
        if match and match["split"][:3] == split[:3]:
            found.setdefault((match["stem"], match["split"]), {})[int(match["number"])] = path
    if len(found) > 1:
        names = ", ".join(sorted(f"{stem}{name}-*.tar" for stem, name in found))
        raise ValueError(f"{folder}: {names} are several sets of {split} images, expected one")
    for numbers in found.values():
        if gaps := sorted(set(range(max(numbers))) - set(numbers)):
            example = next(iter(numbers.values())).name
            raise FileNotFoundError(
                f"{folder}: tars number {', '.join(map(str, gaps))} of {split} are missing beside "
                f"{example}"
            )
        return [numbers[number] for number in sorted(numbers)]
    return []


def shard_images(path: Path, labels: Labels) -> list[Image]:
    """Lists the images of a tar.

    Args:
      path: the tar.
      labels: the official ones, for images whose names tell their class.

    Returns:
      The images, in the order in which they end in the tar. Their name is that in the .json, else
      KEY.JPEG.

    Raises:
      ValueError: the tar is cut off, an image has no label or a label no image, or a label is not
        that of the image's official name.
    """
    samples: dict[str, dict[str, Member]] = {}
    for member in members(path):
        place = PurePosixPath(member.name)
        stem, _, suffix = place.name.partition(".")  # as WebDataset takes a name apart
        samples.setdefault(str(place.with_name(stem)), {})[suffix.lower()] = member
    with open(path, "rb", buffering=0) as file:
        return [
            _image(file.fileno(), f"{path}: {key}", key, parts, labels)
            for key, parts in samples.items()
            if not parts.keys().isdisjoint({*_IMAGE_SUFFIXES, "cls", "json"})
        ]


def _image(
    descriptor: int, where: str, key: str, parts: Mapping[str, Member], labels: Labels
) -> Image:
    image = next((parts[suffix] for suffix in _IMAGE_SUFFIXES if suffix in parts), None)
    if image is None:
        raise ValueError(f"{where} has no image, .jpg or .jpeg")
    about = _about(descriptor, where, parts)
    if about.get("label") is None:
        raise ValueError(f"{where} has no label: expected a .cls, or a .json with a label")
    label = _number(where, about["label"])
    name = PurePosixPath(str(about.get("filename") or f"{key}.JPEG")).name
    try:
        official = labels.of_image(name)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    if official not in (None, label):
        raise ValueError(f"{where} has label {label}, but {name} is of class {official}")
    return Image(name, label, image.offset, image.size)


def _about(descriptor: int, where: str, parts: Mapping[str, Member]) -> dict[str, Any]:
    """Returns what the .json says, with the label of the .cls if there is one."""
    about = {}
    if "json" in parts:
        try:
            about = json.loads(_content(descriptor, parts["json"]))
        except ValueError as error:
            raise ValueError(f"{where}.json is no JSON ({error})") from error
        if not isinstance(about, dict):
            raise ValueError(f"{where}.json is {about!r}, expected an object with a label")
    if "cls" in parts:
        about["label"] = _content(descriptor, parts["cls"]).decode(errors="replace")
    return about


def _number(where: str, label: Any) -> int:
    try:
        number = int(label)
    except (TypeError, ValueError):
        number = -1
    if not 0 <= number < NUM_CLASSES:
        raise ValueError(f"{where} has label {label!r}, expected 0 to {NUM_CLASSES - 1}")
    return number


def _content(descriptor: int, member: Member) -> bytes:
    return os.pread(descriptor, member.size, member.offset)
