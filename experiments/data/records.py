"""Data sets as TFDS keeps them, in array_record files, written and read without TensorFlow.

`DIR/cifar10/3.0.2/` holds what `tfds.data_source("cifar10", data_dir=DIR)` reads. TFDS's own
builder writes it, with its name, version and features, from another source of images. A folder
that TFDS itself prepared with `file_format="array_record"` is read in the same way.

TFDS shuffles examples by a hash of their key when it writes. `read` puts them back into the
official order, as the validation split is cut off its end.
"""

import contextlib
import hashlib
import importlib
import io
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from experiments.data.bar import progress_bar
from experiments.data.dataset import Split
from experiments.data.decoded import read_through

NOT_FETCHED = ("imagenet2012",)  # data sets that need an official copy
_CHUNK = 1000  # records read at a time: the bar moves, and few records are in memory twice


class DamagedError(ValueError):
    """A file of a prepared data set cannot be read; the message names it."""


class Content(NamedTuple):
    """A whole data set in its official order, as it goes into the records.

    Attributes:
      columns: split ("train", "test") to feature to its n values; "image" is
        uint8[n, height, width, channels], "label" uint8[n].
      names: feature to the names of its classes, for features whose names are kept.
    """

    columns: Mapping[str, Mapping[str, Any]]
    names: Mapping[str, Sequence[str]]


def prepare_command(name: str, data_dir: Path) -> str:
    """Returns the command that gets a data set, from FOLDER if it cannot be fetched."""
    script = f"python experiments/data/prepare.py {name} --data_dir={shlex.quote(str(data_dir))}"
    return f"{script} --from=FOLDER" if name in NOT_FETCHED else script


def folder_of(name: str, version: str, data_dir: Path) -> Path:
    """Returns the folder in which TFDS keeps a data set without configurations."""
    return data_dir / name / version


def write(name: str, content: Content, data_dir: Path) -> None:
    """Writes a data set into `data_dir/NAME/VERSION`, which must not exist; shows a bar.

    Args:
      name: name of the data set in TFDS, which knows its version and features.
      content: the data set, with all its features.
      data_dir: folder of data sets; TFDS leaves its empty folder of downloads there too.

    Raises:
      ValueError: TFDS is not installed.
      OSError: `data_dir` cannot be written.
    """
    tfds = import_tfds()
    stock: Any = tfds.builder_cls(name)
    total = sum(len(columns["label"]) for columns in content.columns.values())
    bar = progress_bar(total, f"writing {name}", unit="image")

    with tfds.core.registered.skip_registration():  # TFDS's own builder keeps the name

        class Builder(stock):
            name = stock.name  # TFDS would make it from the name of the class

            def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
                for feature, names in content.names.items():
                    self.info.features[feature].names = names
                return {split: examples(columns) for split, columns in content.columns.items()}

    def examples(columns: Mapping[str, Any]) -> Iterator[tuple[int, dict[str, Any]]]:
        for index in range(len(columns["label"])):
            example = {feature: values[index] for feature, values in columns.items()}
            yield index, example | {"image": _png(example["image"])}
            bar.update()

    tfds.disable_progress_bar()
    with bar, contextlib.redirect_stdout(None):  # TFDS prints sizes, all of them "Unknown size"
        try:
            Builder(data_dir=data_dir, file_format="array_record").download_and_prepare()
        except RuntimeError as error:  # the writer of records raises it on a full disk
            raise OSError(f"{data_dir} cannot be written: {first_line(error)}") from error


def read(name: str, version: str, data_dir: Path) -> dict[str, Split]:
    """Reads the splits of a data set that was prepared by `write` or by TFDS.

    The decoded images are kept beside the records, see `decoded.read_through`.

    Args:
      name: name of the data set in TFDS.
      version: its version in TFDS.
      data_dir: folder that holds `NAME/VERSION`.

    Returns:
      Split ("train", "test") to its images and labels in their official order; read-only.

    Raises:
      OSError: the data set is not there; the line says where it was expected, and where it is or
        how to get it.
      DamagedError: a file cannot be read; it is a ValueError.
      ValueError: the files have another format, or TFDS is not installed.
    """
    check_is_folder(data_dir)
    folder = folder_of(name, version, data_dir)
    if not _is_prepared(folder):
        raise FileNotFoundError(f"{name} expected in {folder}; {remedy(name, version, data_dir)}")
    return read_through(folder, lambda: decode(name, version, data_dir))


def check_is_folder(data_dir: Path) -> None:
    """Raises a NotADirectoryError if the folder of the data is a file."""
    if data_dir.is_file():
        raise NotADirectoryError(f"--data_dir={data_dir} is a file, expected a folder")


def remedy(name: str, version: str, data_dir: Path) -> str:
    """Returns what to do if a data set is not in `data_dir`: it may be in a folder above."""
    for above in list(data_dir.parents)[:2]:
        if _is_prepared(folder_of(name, version, above)):
            return f"it is in {folder_of(name, version, above)}: pass --data_dir={above}"
    return f"get it with: {prepare_command(name, data_dir)}"


def _is_prepared(folder: Path) -> bool:
    return (folder / "dataset_info.json").is_file()


def decode(name: str, version: str, data_dir: Path) -> dict[str, Split]:
    """Reads the splits as `read` does, but always from the records, so that all are checked.

    It shows a bar.

    Raises:
      DamagedError, ValueError: as `read`.
    """
    builder = open_builder(name, version, data_dir, splits=("train", "test"))
    splits = {split: builder.info.splits[split] for split in ("train", "test")}
    total = sum(info.num_examples for info in splits.values())
    # The bar is shown after a second.
    with progress_bar(total, f"reading {name}", unit="image", delay=1, leave=False) as bar:
        return {split: _read_split(builder, split, data_dir, bar) for split in splits}


def open_builder(name: str, version: str, data_dir: Path, *, splits: Sequence[str]) -> Any:
    """Opens a prepared data set with TFDS, and reads its information but no record.

    Args:
      name: name of the data set in TFDS.
      version: its version in TFDS.
      data_dir: folder that holds `NAME/VERSION`.
      splits: the splits that it must have.

    Returns:
      TFDS's builder of the data set.

    Raises:
      DamagedError: the information cannot be read, or lacks a split; it is a ValueError.
      ValueError: the files have another format, or TFDS is not installed.
    """
    folder = folder_of(name, version, data_dir)
    tfds = import_tfds()
    with damage(folder, prepare_command(name, data_dir)):
        builder = tfds.builder_from_directory(folder)
        for split in splits:
            builder.info.splits[split]  # raises an error that names those which are there
    if (found := builder.info.file_format.value) != "array_record":
        raise ValueError(
            f"{folder} holds {found} files, expected array_record, which needs no TensorFlow; "
            f"move it away and run: {prepare_command(name, data_dir)}"
        )
    return builder


def official_order(split: str, num_examples: int) -> np.ndarray:
    """Returns the order in which TFDS keeps a split: by the md5 of the split's name and the key.

    Args:
      split: name of the split.
      num_examples: number of examples; their keys are 0 to num_examples - 1.

    Returns:
      int64[num_examples], the key of the example at each place.

    >>> official_order("train", 5)
    array([4, 0, 3, 1, 2])
    """
    hashes = [hashlib.md5(f"{split}{key}".encode()).digest() for key in range(num_examples)]
    return np.array(sorted(range(num_examples), key=hashes.__getitem__), np.int64)


def _read_split(builder: Any, split: str, data_dir: Path, bar: tqdm) -> Split:
    tfds = import_tfds()
    info, features = builder.info.splits[split], builder.info.features
    keys = official_order(split, info.num_examples)
    images = np.empty((len(keys), *features["image"].shape), np.uint8)
    labels = np.empty(len(keys), np.int32)
    source = builder.as_data_source(split=split, decoders={"image": tfds.decode.SkipDecoding()})
    stop = 0
    for path, length in zip(info.filepaths, info.shard_lengths, strict=True):
        start, stop = stop, stop + length
        with damage(path, prepare_command(builder.name, data_dir)):
            for first in range(start, stop, _CHUNK):
                places = range(first, min(first + _CHUNK, stop))
                for key, example in zip(keys[places], source.__getitems__(places), strict=True):
                    images[key] = _pixels(example["image"]).reshape(images.shape[1:])
                    labels[key] = example["label"]
                bar.update(len(places))
    return Split(images, labels)


def _png(pixels: np.ndarray) -> io.BytesIO:
    """Encodes an image of one or three channels as PNG; TFDS would use TensorFlow for an array."""
    file = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(file, "PNG")
    file.seek(0)
    return file


def _pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png), formats=("PNG",)))


@contextlib.contextmanager
def damage(path: Path, command: str) -> Iterator[None]:
    """Turns an error of any type, as TFDS and its readers raise, into one that names the file."""
    try:
        yield
    except Exception as error:
        reason = first_line(error)
        raise DamagedError(f"{path} cannot be read: {reason}; run again: {command}") from error


def first_line(error: Exception) -> str:
    """Returns the first line of an error's message, or its type if it has none."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def import_tfds() -> Any:
    """Imports and returns TFDS, only when it is needed: the shipped sample does without.

    Raises:
      ValueError: it is not installed; the line says how to install it.
    """
    try:
        importlib.import_module("array_record.python.array_record_module")  # TFDS needs it later
        return importlib.import_module("tensorflow_datasets")
    except ImportError as error:
        raise ValueError(
            f"this needs tensorflow-datasets and array-record ({error}): "
            f"pip install 'jaxsparse[experiments]'"
        ) from error
