"""Scalars are read back from the event file, whose format is length, CRC, event, CRC."""

import math
import struct

import pytest
from tensorboardX.proto.event_pb2 import Event

from experiments.records.tensorboard import ScalarWriter


def read_scalars(folder):
    """(step, name, value) of all scalars in the one event file of a folder."""
    (path,) = folder.iterdir()
    data, found = path.read_bytes(), []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        event = Event.FromString(data[12 : 12 + length])
        found += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
        data = data[16 + length :]
    return found


def test_scalars_are_read_back(tmp_path):
    writer = ScalarWriter(tmp_path / "new" / "folder")
    writer.write(3, {"loss": 0.5, "num": 7, "lists stay out": [1, 2]})
    writer.write(4, {"loss": None})
    writer.close()
    *first, last = read_scalars(tmp_path / "new" / "folder")
    assert first == [(3, "loss", 0.5), (3, "num", 7.0)]
    assert last[:2] == (4, "loss") and math.isnan(last[2])


def test_they_are_on_disk_after_flush(tmp_path):
    writer = ScalarWriter(tmp_path)
    writer.write(1, {"a": 1.0})  # the first call flushes
    writer.write(2, {"b": 2.0})
    writer.flush()
    assert read_scalars(tmp_path) == [(1, "a", 1.0), (2, "b", 2.0)]
    writer.close()
    writer.close()  # does nothing


def test_earlier_event_files_are_removed_and_others_stay(tmp_path):
    (tmp_path / "events.out.tfevents.1.host").write_text("earlier")
    (tmp_path / "notes").mkdir()
    ScalarWriter(tmp_path).close()
    assert sorted(path.name[:19] for path in tmp_path.iterdir()) == ["events.out.tfevents", "notes"]
    assert all(path.read_bytes() != b"earlier" for path in tmp_path.glob("events*"))


def test_an_error_is_raised_where_the_scalar_is_written(tmp_path):
    writer = ScalarWriter(tmp_path)
    writer.close()
    with pytest.raises(ValueError, match="closed file"):
        writer.write(1, {"a": 1.0})
