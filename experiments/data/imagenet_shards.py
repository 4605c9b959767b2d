"""Writes ImageNet as TFDS keeps it, a file at a time, so that a killed run goes on.

TFDS's own writer needs TensorFlow for more than 1 GB, and twice the disk. This one takes an image
from its tar when its place in the records has come. Files, order and records are those of
`tfds.builder("imagenet2012").download_and_prepare()`, except that every image keeps its bytes:
TFDS converts 22 CMYK images and one PNG.
"""

import contextlib
import hashlib
import importlib
import io
import os
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from experiments.data import records
from experiments.data.bar import progress_bar
from experiments.data.imagenet_index import Index
from experiments.data.imagenet_labels import SPLITS

NAME, VERSION = "imagenet2012", "5.1.0"  # in TFDS
_READS = 8  # at a time, as a disk or a network file system serves several faster than one


def write(indices: Mapping[str, Index], data_dir: Path) -> None:
    """Writes the records into `data_dir/imagenet2012/5.1.0`, and shows a bar.

    Files that an earlier call left there are kept if it was given the same tars, else removed.
    One file at a time is in memory, about 140 MB for all of ImageNet. The file without which the
    folder does not count as prepared, `dataset_info.json`, is written last.

    Args:
      indices: split to its images.
      data_dir: folder of unfinished data sets, which exists.

    Raises:
      ValueError: a tar has changed since it was listed, or TFDS is not installed.
      OSError: `data_dir` cannot be written, or has too little space.
    """
    tfds = records.import_tfds()
    _keep_or_clear(indices, data_dir)
    builder = tfds.builder_cls(NAME)(data_dir=data_dir, file_format="array_record")
    folder = records.folder_of(NAME, VERSION, data_dir)
    folder.mkdir(parents=True, exist_ok=True)
    plan = {split: _plan(split, index, folder) for split, index in indices.items()}
    _check_space(indices, plan, data_dir)
    total = sum(len(index.name) for index in indices.values())
    with progress_bar(total, f"writing {NAME}", unit="image") as bar:
        for split, index in indices.items():
            for path, places in plan[split].items():
                if not path.exists():
                    _write_file(path, index, places, builder.info.features)
                bar.update(len(places))
    infos = [
        tfds.core.SplitInfo(
            name=split,
            shard_lengths=[len(places) for places in plan[split].values()],
            num_bytes=int(index.size.sum()),  # of the images alone
        )
        for split, index in indices.items()
    ]
    builder.info.set_splits(tfds.core.SplitDict(infos))
    builder.info.write_to_directory(folder)


def check(data_dir: Path) -> None:
    """Checks that all files of a prepared ImageNet are there and hold as many records as they say.

    The records themselves are not read: each has a checksum, which is verified when it is.

    Raises:
      DamagedError: a file is not whole; it is a ValueError.
      ValueError: the files have another format, or TFDS is not installed.
    """
    tfds = records.import_tfds()
    builder = records.open_builder(NAME, VERSION, data_dir, splits=SPLITS)
    command = records.prepare_command(NAME, data_dir)
    for info in builder.info.splits.values():
        for path, length in zip(info.filepaths, info.shard_lengths, strict=True):
            with records.damage(path, command):
                found = tfds.core.file_adapters.ArrayRecordFileAdapter.num_examples(path)
                if found != length:
                    raise ValueError(f"{found} records, expected {length}")


def stock_order(split: str, names: np.ndarray) -> np.ndarray:
    """Returns the order in which TFDS keeps a split: by the md5 of the split's name and the key.

    Args:
      split: name of the split.
      names: bytes[n] (dtype S), the images' names, which are their keys.

    Returns:
      int64[n], the position in `names` of the image at each place.

    >>> stock_order("train", np.array([b"n01440764_5.JPEG", b"n01440764_1.JPEG"]))
    array([1, 0])
    """
    salt = split.encode()
    digests = b"".join(hashlib.md5(salt + name, usedforsecurity=False).digest() for name in names)
    high, low = np.frombuffer(digests, ">u8").reshape(-1, 2).T
    return np.lexsort((low, high))


def _plan(split: str, index: Index, folder: Path) -> dict[Path, np.ndarray]:
    """Returns each file of a split, with the positions of its images in their order."""
    num_files = _num_files(index)
    # As TFDS rounds.
    stops = [round(len(index.name) * file / num_files) for file in range(1, num_files)]
    parts = np.split(stock_order(split, index.name), stops)
    stem = folder / f"{NAME}-{split}.array_record"
    return {Path(f"{stem}-{n:05d}-of-{num_files:05d}"): part for n, part in enumerate(parts)}


def _num_files(index: Index) -> int:
    tfds = records.import_tfds()
    # TFDS counts the bytes around an image too, which changes nothing for all of ImageNet.
    config = tfds.core.utils.shard_utils.ShardConfig
    return config.calculate_number_shards(int(index.size.sum()), len(index.size))


def _write_file(path: Path, index: Index, places: np.ndarray, features: Any) -> None:
    """Writes one file of records, whole or not at all."""
    images = _read_images(index, places)
    unfinished = path.with_name(f".{path.name}.unfinished")
    with _failing_writer(path.parent):
        writer = _writer(unfinished)
        for place, image in zip(places, images, strict=True):
            name, label = index.file_name(place), int(index.label[place])
            example = {"image": io.BytesIO(image), "label": label, "file_name": name}
            writer.write(features.serialize_example(example))
        writer.close()
    with open(unfinished, "rb") as file:
        os.fsync(file.fileno())  # else a file that is there after a power cut could be empty
    unfinished.rename(path)


def _writer(path: Path) -> Any:
    module = importlib.import_module("array_record.python.array_record_module")
    return module.ArrayRecordWriter(str(path), "group_size:1")  # as TFDS does


@contextlib.contextmanager
def _failing_writer(folder: Path) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # raised on a full disk
        raise OSError(f"{folder} cannot be written: {records.first_line(error)}") from error


def _read_images(index: Index, places: np.ndarray) -> list[bytes]:
    """Reads images in the order in which they lie in the tars."""
    in_tars = np.lexsort((index.offset[places], index.tar[places]))
    images: list[bytes] = [b""] * len(places)
    with ThreadPoolExecutor(_READS) as pool:
        read = pool.map(lambda place: _read_image(index, place), places[in_tars])
        for position, image in zip(in_tars, read, strict=True):
            images[position] = image
    return images


def _read_image(index: Index, place: int) -> bytes:
    path, size = index.tars[index.tar[place]], int(index.size[place])
    with open(path, "rb", buffering=0) as file:
        image = os.pread(file.fileno(), size, int(index.offset[place]))
    if len(image) != size:
        raise ValueError(f"{path} has changed: it ends in {index.file_name(place)}")
    return image


def _keep_or_clear(indices: Mapping[str, Index], data_dir: Path) -> None:
    """Removes what an earlier call wrote, unless that was given the same images."""
    wanted = "".join(f"{split} {index.fingerprint()}\n" for split, index in indices.items())
    source = data_dir / "source"
    if not source.is_file() or source.read_text() != wanted:
        if (data_dir / NAME).exists():
            shutil.rmtree(data_dir / NAME)
        source.write_text(wanted)


def _check_space(
    indices: Mapping[str, Index], plan: Mapping[str, Mapping[Path, np.ndarray]], data_dir: Path
) -> None:
    needed = sum(
        int(indices[split].size[places].sum())
        for split, files in plan.items()
        for path, places in files.items()
        if not path.exists()
    )
    if needed > (free := shutil.disk_usage(data_dir).free):
        raise OSError(
            f"{data_dir} has {free / 1e9:.1f} GB of free space, expected {needed / 1e9:.1f} GB"
        )
