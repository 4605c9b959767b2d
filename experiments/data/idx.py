"""IDX, the file format of MNIST and its kin: magic number, dimensions, then unsigned bytes."""

import gzip
import math
import zlib
from pathlib import Path

import numpy as np


def read_idx(path: Path, *, ndim: int) -> np.ndarray:
    """Reads an IDX file of unsigned bytes.

    Args:
      path: the file, gzipped if its name ends in `.gz`.
      ndim: number of dimensions that the file must have, at least 1.

    Returns:
      uint8 array with `ndim` dimensions, read-only.

    Raises:
      ValueError: the file is no such file, or is shorter or longer than its header says.
    """
    content = read_bytes(path)
    header_size = 4 + 4 * ndim
    if len(content) < header_size:
        raise ValueError(f"{path}: {len(content)} bytes, expected a header of {header_size} bytes")
    magic, *shape = (int(word) for word in np.frombuffer(content, ">u4", count=1 + ndim))
    expected_magic = 0x0800 | ndim  # 08 means unsigned bytes, the last byte counts the dimensions
    if magic != expected_magic:
        raise ValueError(
            f"{path}: magic number is 0x{magic:08x}, expected 0x{expected_magic:08x} "
            f"(unsigned bytes in {ndim} dimensions)"
        )
    if len(content) - header_size != math.prod(shape):
        raise ValueError(
            f"{path}: {len(content) - header_size} bytes after the header, expected "
            f"{math.prod(shape)} for shape {tuple(shape)}; fetch the file again"
        )
    return np.frombuffer(content, np.uint8, offset=header_size).reshape(shape)


def read_bytes(path: Path) -> bytes:
    """Returns the bytes of a file, decompressed if its name ends in `.gz`.

    Raises:
      ValueError: the gzip file is damaged.
    """
    content = path.read_bytes()
    if path.suffix != ".gz":
        return content
    try:
        return gzip.decompress(content)
    except (EOFError, OSError, zlib.error) as error:
        raise ValueError(
            f"{path}: {len(content)} bytes, expected a whole gzip file ({error}); "
            "fetch the file again"
        ) from error
