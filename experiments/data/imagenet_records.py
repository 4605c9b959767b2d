"""ImageNet's images as they are stored: TFDS's array_record files, read without TensorFlow."""

import bisect
import functools
import importlib
import itertools
import os
import resource
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from google.protobuf.message import DecodeError

from experiments.data import records
from experiments.data.corrupt import Corrupt

# TFDS's class of records; its generated module has no types.
Example: Any = importlib.import_module("tensorflow_datasets.proto").tf_example_pb2.Example

NAME, VERSION = "imagenet2012", "5.1.0"  # in TFDS
SPLITS = ("train", "validation")
_DAMAGE = (RuntimeError, ValueError, OSError, IndexError, DecodeError)  # of a record that is read
_READS = 16  # at a time in each process
_SPARE_FILES = 512  # open files beside those of a split


@functools.cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_READS, thread_name_prefix="records")


class Stored(NamedTuple):
    """An image as it is stored.

    Attributes:
      split: name of its split.
      record: its number in the split.
      name: its file name in the official archive.
      data: content of that file.
      label: in [0, 1000), in the order of the synsets' names.
    """

    split: str
    record: int
    name: str
    data: bytes
    label: int


class Records:
    """Random access to the images of a split. It can be sent to another process.

    Attributes:
      split: "train" or "validation".

    Args:
      split: its name.
      examples: TFDS's data source of the split, of which each item is the bytes of a
        `tf.train.Example`.
      files: path and number of images of each file of the split, in order.
    """

    def __init__(self, split: str, examples: Any, files: Sequence[tuple[str, int]]):
        self.split, self._examples, self._files = split, examples, tuple(files)

    def __len__(self) -> int:
        """Returns the number of images."""
        return len(self._examples)

    def read(self, indices: Sequence[int]) -> list[Stored | Corrupt]:
        """Reads images, several at a time, as network file systems are slow for one after another.

        Args:
          indices: any number of indices in [0, len).

        Returns:
          For each index its image, or why the record cannot be read.
        """
        # A few parts on threads that stay: array_record's own way starts a thread for each file at
        # each call, which takes four times as long.
        read = lambda start: [self._read_one(index) for index in indices[start::_READS]]
        found: list[Any] = [None] * len(indices)
        for start, part in enumerate(_threads().map(read, range(_READS))):
            found[start::_READS] = part
        return found

    def _read_one(self, index: int) -> Stored | Corrupt:
        try:
            return self._stored(index, self._examples[index])
        except _DAMAGE as error:
            return Corrupt(self.split, index, self._file_of(index), records.first_line(error))

    def _stored(self, index: int, record: bytes) -> Stored:
        feature = Example.FromString(record).features.feature
        return Stored(
            self.split,
            index,
            feature["file_name"].bytes_list.value[0].decode(),
            feature["image"].bytes_list.value[0],
            feature["label"].int64_list.value[0],
        )

    def _file_of(self, index: int) -> str:
        stops = list(itertools.accumulate(length for _, length in self._files))
        return self._files[bisect.bisect_right(stops, index)][0]

    def allow_open_files(self) -> None:
        """Raises this process's limit of open files, as all files of the split stay open.

        ImageNet has 1,024 files for training, and the limit of many systems is 1,024.
        """
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        needed = len(self._files) + _SPARE_FILES
        if soft != resource.RLIM_INFINITY and soft < needed:
            allowed = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
            resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))


def open_records(data_dir: Path) -> dict[str, Records]:
    """Opens ImageNet as `prepare.py` or TFDS has written it.

    Args:
      data_dir: folder that holds `imagenet2012/5.1.0`.

    Returns:
      Split ("train", "validation") to its images.

    Raises:
      OSError: the data set or a file of it is not there; the line says where it was expected, and
        where it is or how to get it.
      ValueError: a file cannot be read, the files have another format, or TFDS is not installed.
    """
    records.check_is_folder(data_dir)
    folder = records.folder_of(NAME, VERSION, data_dir)
    if not (folder / "dataset_info.json").is_file():
        remedy = records.remedy(NAME, VERSION, data_dir)
        raise FileNotFoundError(f"{NAME} expected in {folder}; {remedy}")
    builder = records.open_builder(NAME, VERSION, data_dir, splits=SPLITS)
    return {split: _open_split(builder, split, data_dir) for split in SPLITS}


def _open_split(builder: Any, split: str, data_dir: Path) -> Records:
    info = builder.info.splits[split]
    paths = [os.fspath(path) for path in info.filepaths]
    command = records.prepare_command(NAME, data_dir)
    missing = [path for path in paths if not os.path.isfile(path)]
    if missing:
        raise FileNotFoundError(
            f"{missing[0]} is missing ({len(missing)} of {len(paths)} files); run again: {command}"
        )
    tfds = records.import_tfds()
    # Parsed in `Records`: TFDS's own way takes twice the time, or TensorFlow.
    as_stored = tfds.decode.DeserializeMethod.RAW_BYTES
    with records.damage(Path(paths[0]).parent, command):
        examples = builder.as_data_source(split=split, deserialize_method=as_stored)
    return Records(split, examples, list(zip(paths, info.shard_lengths, strict=True)))
