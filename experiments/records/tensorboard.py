"""Scalars for TensorBoard, written by the caller's own thread.

tensorboardX's SummaryWriter hands them to another thread, and when that one cannot write, to a full
disk say, it ends with a traceback and the training waits for it forever. Here the error is raised
where the scalar is written.
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
    """Writes one new event file; those that are there already are removed."""

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        for earlier in folder.glob("events.out.tfevents.*"):
            earlier.unlink()
        name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}"
        self._writer = RecordWriter(str(folder / name))
        self._flushed = -math.inf
        self._add(Event(wall_time=time.time(), file_version="brain.Event:2"))

    def write(self, step: int, values: Mapping[str, float | Sequence[float] | None]) -> None:
        """Adds scalars of one step, None as NaN, and no lists; on disk within seconds."""
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
        """Closes the file; closing twice does nothing. An error of the disk is one of `flush`."""
        with contextlib.suppress(OSError):
            self._writer.close()

    def _add(self, event: Event) -> None:
        self._writer.write(event.SerializeToString())
