"""Scalars for TensorBoard, written by the caller's own thread.

tensorboardX's SummaryWriter hands scalars to another thread. If that thread cannot write, as on a
full disk, it ends with a traceback, and the training waits for it forever. Here the error is raised
in the call that writes the scalar.
"""

import contextlib
import math
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]
from tensorboardX.record_writer import RecordWriter
from tensorboardX.summary import scalar

FLUSH_SECONDS = 5.0


class ScalarWriter:
    """Writes one new event file into a folder, and removes those that are there already."""

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        for earlier in folder.glob("events.out.tfevents.*"):
            earlier.unlink()
        name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}"
        self._writer = RecordWriter(str(folder / name))
        self._flushed = -math.inf
        self._add(Event(wall_time=time.time(), file_version="brain.Event:2"))

    def write(self, step: int, values: Mapping[str, float | Sequence[float] | None]) -> None:
        """Adds the scalars of one step.

        Args:
          step: the optimizer step.
          values: by name; None is written as NaN, and lists are left out. They are on disk within
            seconds if more steps follow, else after `flush`.
        """
        for name, value in values.items():
            if isinstance(value, Sequence):
                continue
            summary = scalar(name, math.nan if value is None else float(value))
            self._add(Event(wall_time=time.time(), step=step, summary=summary))
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Writes what is still in memory."""
        self._writer.flush()
        self._flushed = time.monotonic()

    def close(self) -> None:
        """Closes the file without an error; `flush` before it raises those of the disk."""
        with contextlib.suppress(OSError):
            self._writer.close()

    def _add(self, event: Event) -> None:
        self._writer.write(event.SerializeToString())
