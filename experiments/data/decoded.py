"""Keeps decoded images beside their records, so that only the first run of a sweep decodes them.

The PNGs of CIFAR-10 take seconds to decode; their arrays are read in a fraction of a second.
"""

import contextlib
import os
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from experiments.data.dataset import Split

FILE = "decoded.npz"


def read_through(folder: Path, decode: Callable[[], dict[str, Split]]) -> dict[str, Split]:
    """Returns the splits that `decode` returns, from a file in the folder if there is one.

    The file is not used if another file of the folder is newer, or if it is damaged (its checksum
    is verified). Then it is written anew, unless the folder is read-only.

    Args:
      folder: folder of the records, which are the only other files in it.
      decode: returns the splits.

    Returns:
      The splits, whose arrays are read-only.
    """
    splits = _read(folder)
    if splits is None:
        splits = decode()
        with contextlib.suppress(OSError):
            _write(folder, splits)
    for split in splits.values():
        for array in split:
            array.setflags(write=False)
    return splits


def _read(folder: Path) -> dict[str, Split] | None:
    path = folder / FILE
    try:
        written = path.stat().st_mtime_ns
        if any(other.stat().st_mtime_ns > written for other in folder.iterdir()):
            return None
        # The file is opened here, as np.load would leave a damaged one open.
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            names = {name.split("/")[0] for name in arrays}
            return {n: Split(arrays[f"{n}/images"], arrays[f"{n}/labels"]) for n in sorted(names)}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _write(folder: Path, splits: dict[str, Split]) -> None:
    """Writes the file, whole or not at all."""
    arrays = {f"{n}/{kind}": x for n, s in splits.items() for kind, x in s._asdict().items()}
    descriptor, temporary = tempfile.mkstemp(prefix=f".{FILE}-", dir=folder)
    try:
        with open(descriptor, "wb") as file:
            np.savez(file, **arrays)
        os.chmod(temporary, (folder / "dataset_info.json").stat().st_mode & 0o777)
        os.replace(temporary, folder / FILE)
    except BaseException:
        os.unlink(temporary)
        raise
