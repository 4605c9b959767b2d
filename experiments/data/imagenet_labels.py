"""The thousand classes of ImageNet, and what the names of its images tell about their labels."""

import re
from pathlib import Path
from typing import NamedTuple

from experiments.data.records import import_tfds

NUM_CLASSES = 1000
SPLITS = ("train", "validation")
NUM_IMAGES = {"train": 1_281_167, "validation": 50_000}  # as published
_TRAIN_IMAGE = re.compile(r"(n\d{8})_\d+\.JPEG")
_VALIDATION_IMAGE = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG")


class Labels(NamedTuple):
    """The official labels, as they come with TFDS.

    Attributes:
      of_synset: name of each class, such as "n01440764", to its label: 0 to 999, in their order.
      of_validation: labels of ILSVRC2012_val_00000001.JPEG and those that follow.
    """

    of_synset: dict[str, int]
    of_validation: list[int]

    def of_image(self, name: str) -> int | None:
        """Returns the label that the name of an image tells; None if it is no official name.

        Args:
          name: file name without folder, such as "n01440764_10026.JPEG".

        Raises:
          ValueError: the name tells a class that is none of the thousand.
        """
        if match := _TRAIN_IMAGE.fullmatch(name):
            return self.of_class(match[1])
        match = _VALIDATION_IMAGE.fullmatch(name)
        if match and 1 <= int(match[1]) <= len(self.of_validation):
            return self.of_validation[int(match[1]) - 1]
        return None

    def of_class(self, synset: str) -> int:
        """Returns the label of a class.

        Raises:
          ValueError: it is none of the thousand.
        """
        if synset not in self.of_synset:
            raise ValueError(f"{synset} is none of the {NUM_CLASSES} classes of ImageNet")
        return self.of_synset[synset]


def read_labels() -> Labels:
    """Reads the official labels from the package of TFDS.

    Raises:
      ValueError: TFDS is not installed, or its files are not there.
    """
    synsets = _lines("labels.txt", NUM_CLASSES)
    of_synset = {synset: label for label, synset in enumerate(synsets)}
    validation = _lines("validation_labels.txt", NUM_IMAGES["validation"])
    return Labels(of_synset, [of_synset[synset] for synset in validation])


def _lines(name: str, number: int) -> list[str]:
    path = Path(import_tfds().core.tfds_path(f"datasets/imagenet2012/{name}"))
    lines = path.read_text().split() if path.is_file() else []
    if len(lines) != number:
        raise ValueError(
            f"{path} has {len(lines):,} lines, expected the {number:,} labels of ImageNet that "
            f"tensorflow-datasets 4.9.10 has there; install that version"
        )
    return lines
