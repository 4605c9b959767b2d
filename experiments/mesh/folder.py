"""The folder of a run with several processes, of which the first one writes."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.mesh.processes import is_first
from experiments.records.run_folder import RunFolder, check_folder, naming


class Unwritten(RunFolder):
    """Takes what another process writes, and leaves it at that."""

    def __init__(self, path: Path):
        self.path = path
        self.warned: set[str] = set()

    def log(self, step: int, **values: float | Sequence[float]) -> None:
        """Does nothing."""

    def read_metrics(self) -> list[dict[str, Any]]:
        """Returns no records: they are with the first process."""
        return []

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Does nothing."""

    def close(self) -> None:
        """Does nothing."""


@contextlib.contextmanager
def opened(path: Path, config: Mapping[str, Any], *, after: int | None) -> Iterator[RunFolder]:
    """Opens the folder of a run that starts, or goes on after a step, on the first process.

    Raises:
      ValueError, OSError: as `RunFolder.create`.
    """
    if not is_first():
        yield Unwritten(path)
        return
    check_folder(path, config)
    with naming(path), RunFolder.create(path, config, after=after) as folder:
        yield folder
