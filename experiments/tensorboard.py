"""Scalars for TensorBoard, written by the caller's own thread.

tensorboardX's SummaryWriter hands them to another thread, and when that one cannot write, to a full
disk say, it ends with a traceback and the training waits for it forever. Here the error is raised
where the scalar is written.
"""

import contextlib
import math
import time
from collections.abc import Mapping
from pathlib import Path

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]
from tensorboardX.summary import scalar

FLUSH_SECONDS = 5.0


class ScalarWriter:
    """Writes one new event file; those that are there already are removed."""

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        for earlier in folder.glob("events.out.tfevents.*"):
            earlier.unlink()
        self._writer = EventsWriter(str(folder / "events"))
        self._flushed = -math.inf

    def write(self, step: int, scalars: Mapping[str, float | None]) -> None:
        """Adds scalars of one step, None as NaN; on disk within seconds of training."""
        for name, value in scalars.items():
            summary = scalar(name, math.nan if value is None else float(value))
            self._writer.write_event(Event(wall_time=time.time(), step=step, summary=summary))
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self._writer.flush()
            self._flushed = time.monotonic()

    def close(self) -> None:
        """Writes the rest and closes the file."""
        with contextlib.suppress(OSError, ValueError):  # full disk, said already; closed already
            self._writer.close()
