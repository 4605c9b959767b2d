"""Lists the files of a tar with their places, so that they can be read in any order later.

A tar inside a tar is listed in place, without being unpacked. Headers are read, contents are not.
"""

import io
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_BLOCK = 512  # a tar is made of blocks of this many bytes


class Member(NamedTuple):
    """A regular file in a tar.

    Attributes:
      name: its name in the tar, with folders.
      offset: the first byte of its content, counted from the start of the file on disk.
      size: number of bytes.
    """

    name: str
    offset: int
    size: int


def members(path: Path, inside: Member | None = None) -> Iterator[Member]:
    """Yields the regular files of an uncompressed tar, in their order.

    Args:
      path: the tar on disk.
      inside: a member of it that is a tar itself, whose files are listed instead.

    Yields:
      The files. Offsets count from the start of `path`, with `inside` too.

    Raises:
      FileNotFoundError: `path` does not exist.
      ValueError: it is no uncompressed tar, or its end is missing; the message names it, and the
        last file that is whole. It may come after all whole files have been yielded.
    """
    name = f"{path}: {inside.name}" if inside else str(path)
    with open(path, "rb", buffering=0) as file:
        start, size = (
            (inside.offset, inside.size) if inside else (0, os.fstat(file.fileno()).st_size)
        )
        window = _Window(file.fileno(), start, size)
        last, end = None, 0
        try:
            with tarfile.open(fileobj=window, mode="r:") as archive:
                for member in archive:
                    end = member.offset_data + -(-member.size // _BLOCK) * _BLOCK
                    if end > size:
                        break
                    last = member.name
                    if member.isfile():
                        yield Member(last, start + member.offset_data, member.size)
        except tarfile.TarError as error:
            if last is None:
                raise ValueError(f"{name} is no whole, uncompressed tar ({error})") from error
        # tarfile takes a missing end for the end; a whole tar ends with a block of zeros.
        window.seek(end)
        if window.read(_BLOCK) != bytes(_BLOCK):
            after = f"its last whole file is {last}" if last else "no file in it is whole"
            raise ValueError(f"{name} is cut off: {after}; get it again")


class _Window(io.RawIOBase):
    """A part of an open file, seen as a file."""

    def __init__(self, descriptor: int, start: int, size: int):
        self._descriptor, self._start, self._size, self._place = descriptor, start, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._size}[whence]
        self._place = base + offset
        return self._place

    def read(self, size: int = -1) -> bytes:
        left = max(self._size - self._place, 0)
        count = left if size < 0 else min(size, left)
        content = os.pread(self._descriptor, count, self._start + self._place)
        self._place += len(content)
        return content
