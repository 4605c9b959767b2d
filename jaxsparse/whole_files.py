"""Files that are written whole or not at all."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def written_whole(path: str | os.PathLike) -> Iterator[Path]:
    """Gives a path beside a file to write to, which replaces the file when the block ends.

    If the block raises, the file stays as it was, and what was written is removed.

    Args:
      path: of the file; its folder exists.

    Raises:
      OSError: the file cannot be replaced.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with written_whole(f"{folder}/numbers") as beside:
    ...         _ = beside.write_bytes(b"123")
    ...     os.listdir(folder)
    ['numbers']
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
