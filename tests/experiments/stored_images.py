"""Writes a few real JPEGs as TFDS keeps ImageNet. The label of each image is its number."""

import contextlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from experiments.data import records


def pixels(number: int, height: int = 60, width: int = 80) -> np.ndarray:
    """A smooth picture, another one for each number: uint8[height, width, 3]."""
    rows, columns = np.mgrid[:height, :width] / height
    waves = [np.sin((2 + k) * rows + (1 + number % 7) * columns + number + k) for k in range(3)]
    return np.stack([127 + 100 * wave for wave in waves], axis=-1).astype(np.uint8)


def encoded(image: np.ndarray, mode: str = "RGB", kind: str = "JPEG") -> bytes:
    """The content of a file of an image, in a mode of Pillow."""
    file = io.BytesIO()
    Image.fromarray(image).convert(mode).save(file, kind, quality=95)
    return file.getvalue()


def write(data_dir: Path, splits: Mapping[str, Sequence[bytes]]) -> None:
    """Writes `data_dir/imagenet2012/5.1.0`.

    Args:
      data_dir: folder of data sets.
      splits: split to its files; TFDS puts them into an order of its own.
    """
    tfds = records.import_tfds()
    stock = tfds.builder_cls("imagenet2012")

    def examples(split):
        for number, data in enumerate(splits[split]):
            example = {"image": io.BytesIO(data), "label": number}
            yield number, example | {"file_name": f"{split}_{number}.JPEG"}

    with tfds.core.registered.skip_registration():

        class Builder(stock):
            name = stock.name

            def _split_generators(self, dl_manager):
                return {split: examples(split) for split in splits}

    tfds.disable_progress_bar()
    with contextlib.redirect_stdout(None):
        Builder(data_dir=data_dir, file_format="array_record").download_and_prepare()
