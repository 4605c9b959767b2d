import json
import math
import struct
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from experiments.records.run_folder import RunFolder, read_metrics, series

ROOT = Path(__file__).parents[3]


def files(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_a_whole_run(tmp_path):
    path = tmp_path / "runs" / "first"
    with RunFolder.create(path, {"seed": 0, "data_dir": Path("data"), "update": {"end": 5}}) as run:
        run.log(0, loss=2.5, num_active=7)
        run.log(100, **{"loss": 1.5, "val/accuracy": 0.5})
        assert run.read_metrics() == [
            {"step": 0, "loss": 2.5, "num_active": 7},
            {"step": 100, "loss": 1.5, "val/accuracy": 0.5},
        ]
        run.finish({"accuracy": np.float32(0.5), "layers": [("a/kernel", 3)]})
    config, summary = (json.loads((path / f"{n}.json").read_text()) for n in ("config", "summary"))
    assert config == {"seed": 0, "data_dir": "data", "update": {"end": 5}}
    assert summary == {"accuracy": 0.5, "layers": [["a/kernel", 3]]}
    *others, events = sorted(files(path), key=lambda name: "tensorboard" in name)
    # No temporary file is left.
    assert others == [".lock", "config.json", "metrics.jsonl", "summary.json"]
    content = (path / events).read_bytes()
    assert all(tag in content for tag in (b"loss", b"num_active", b"val/accuracy"))


def test_a_record_is_on_disk_before_the_next_step(tmp_path):
    with RunFolder.create(tmp_path, {}) as run:
        run.log(3, loss=0.5)
        assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 3, "loss": 0.5}\n'


def test_lists_are_in_the_record_and_not_in_tensorboard(tmp_path):
    with RunFolder.create(tmp_path, {}) as run:
        run.log(3, loss=0.5, layer_num_active=[3, 0, 7])
    assert read_metrics(tmp_path) == [{"step": 3, "loss": 0.5, "layer_num_active": [3, 0, 7]}]
    (events,) = tmp_path.glob("tensorboard/*")
    assert b"loss" in events.read_bytes()
    assert b"layer_num_active" not in events.read_bytes()


def test_what_is_not_finite_becomes_null(tmp_path):
    with RunFolder.create(tmp_path, {"limit": math.inf}) as run:
        run.log(1, loss=math.nan, norm=jnp.inf, other=jnp.float32(-jnp.inf), fine=jnp.float32(0.5))
        run.finish({"loss": [math.nan, {"x": np.float32("inf")}]})
    record = '{"step": 1, "loss": null, "norm": null, "other": null, "fine": 0.5}\n'
    assert (tmp_path / "metrics.jsonl").read_text() == record
    assert json.loads((tmp_path / "config.json").read_text()) == {"limit": None}
    assert json.loads((tmp_path / "summary.json").read_text()) == {"loss": [None, {"x": None}]}


def test_a_finished_run_is_not_overwritten(tmp_path):
    with RunFolder.create(tmp_path, {"seed": 0}) as run:
        run.log(1, loss=0.5)
        run.finish({})
    with pytest.raises(ValueError, match=r"holds a finished run .*; pass another --out$") as raised:
        RunFolder.create(tmp_path, {"seed": 0})
    assert str(raised.value).startswith(str(tmp_path))
    assert json.loads((tmp_path / "config.json").read_text()) == {"seed": 0}
    assert read_metrics(tmp_path) == [{"step": 1, "loss": 0.5}]


def scalars(folder):
    """(step, name, value) in TensorBoard's files, read by their format: length, CRC, event, CRC."""
    found = []
    for path in sorted(folder.glob("tensorboard/events.out.tfevents.*")):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            event = Event.FromString(data[12 : 12 + length])
            found += [(event.step, v.tag, v.simple_value) for v in event.summary.value]
            data = data[16 + length :]
    return found


def test_an_unfinished_run_starts_over(tmp_path):
    with pytest.raises(KeyboardInterrupt), RunFolder.create(tmp_path, {"seed": 0}) as run:
        run.log(1, loss=0.5)
        raise KeyboardInterrupt
    (tmp_path / "notes.txt").write_text("mine")
    with RunFolder.create(tmp_path, {"seed": 0}) as run:
        run.log(2, loss=0.25)
    assert read_metrics(tmp_path) == [{"step": 2, "loss": 0.25}]
    assert scalars(tmp_path) == [(2, "loss", 0.25)]
    assert "notes.txt" in files(tmp_path)
    assert len(list(tmp_path.glob("tensorboard/*"))) == 1


def test_an_unfinished_run_goes_on_after_a_step(tmp_path):
    with RunFolder.create(tmp_path, {"seed": 0}) as run:
        for step in (0, 10, 20, 30):
            run.log(step, loss=step / 8, other=math.nan)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 10, "lo')
    before = (tmp_path / "metrics.jsonl").read_text()
    with RunFolder.create(tmp_path, {"seed": 0}, after=10) as run:
        assert (tmp_path / "metrics.jsonl").read_text() == "".join(before.splitlines(True)[:2])
        run.log(20, loss=7)
    assert [record["step"] for record in read_metrics(tmp_path)] == [0, 10, 20]
    assert [x for x in scalars(tmp_path) if x[1] == "loss"] == [
        (0, "loss", 0.0),
        (10, "loss", 1.25),
        (20, "loss", 7.0),
    ]
    assert [x[0] for x in scalars(tmp_path) if math.isnan(x[2])] == [0, 10]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"seed": 1, "rate": 0.1, "data": None}, "with --seed=0, not 1; pass another --out, or de"),
        ({"seed": 0, "rate": 0.1, "data": Path("d")}, "without --data, not with d; pass another"),
        ({"seed": 0, "rate": 0.1, "data": None, "new": 3}, "without --new, not with 3; pass"),
        ({"seed": 0, "data": None}, "with --rate=0.1, not without it; pass"),
    ],
)
def test_another_configuration_is_refused_and_nothing_changes(config, message, tmp_path):
    first = {"seed": 0, "rate": 0.1, "data": None, "out": Path("a"), "checkpoint_every": 5}
    with RunFolder.create(tmp_path, first) as run:
        run.log(1, loss=0.5)
    before = {name: (tmp_path / name).read_bytes() for name in files(tmp_path)}
    config = config | {"out": Path("b"), "checkpoint_every": 7}
    with pytest.raises(ValueError, match=message) as raised:
        RunFolder.create(tmp_path, config)
    assert str(raised.value).startswith(f"{tmp_path} holds an unfinished run")
    assert {name: (tmp_path / name).read_bytes() for name in files(tmp_path)} == before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"seed": 0, "ra', "config.json cannot be read: Unterminated string"),
        (b"\xff\xff", "config.json cannot be read: 'utf-8' codec"),
        (b"[]", "config.json is no configuration"),
    ],
)
def test_a_configuration_that_cannot_be_read_is_named(content, message, tmp_path):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match=f"^{tmp_path}/{message}.*; pass another --out, or delete"):
        RunFolder.create(tmp_path, {"seed": 0})
    assert (tmp_path / "config.json").read_bytes() == content


def test_checkpoints_without_a_configuration_are_refused(tmp_path):
    (tmp_path / "checkpoints" / "10").mkdir(parents=True)
    with pytest.raises(
        ValueError, match=r"has checkpoints but no config.json, .*; pass another --"
    ):
        RunFolder.create(tmp_path, {"seed": 0})
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoints"]


def test_flags_that_change_nothing_may_differ(tmp_path):
    RunFolder.create(tmp_path, {"seed": 0, "out": Path("a"), "checkpoint_every": 5}).close()
    RunFolder.create(tmp_path, {"seed": 0, "out": tmp_path, "checkpoint_every": 7}).close()
    assert json.loads((tmp_path / "config.json").read_text())["checkpoint_every"] == 7


FILLING = """
import resource, sys
from pathlib import Path
from experiments.records.run_folder import RunFolder, naming
scalars = {f"scalar {i}": i for i in range(int(sys.argv[2]))}
with naming(Path("here")), RunFolder.create(Path(sys.argv[1]), {}) as run:
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    for step in range(10_000):
        run.log(step, **scalars)
"""


@pytest.mark.processes
@pytest.mark.slow
@pytest.mark.parametrize("num_scalars", [0, 100], ids=["records", "event file"])
def test_a_disk_that_fills_is_one_error(num_scalars, tmp_path):
    command = [sys.executable, "-c", FILLING, str(tmp_path), str(num_scalars)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stderr.splitlines()[-1] == "OSError: here cannot be written: File too large"
    steps = [record["step"] for record in read_metrics(tmp_path)]
    assert steps == list(range(len(steps))) != []


def test_a_file_is_no_folder(tmp_path):
    path = tmp_path / "run"
    path.write_text("")
    with pytest.raises(ValueError, match="run is a file, expected a folder; pass another --out"):
        RunFolder.create(path, {})


def test_log_after_close(tmp_path):
    with RunFolder.create(tmp_path, {}) as run:
        run.finish({})
        run.close()
    with pytest.raises(ValueError, match="closed file"):
        run.log(1, loss=0.5)


def test_a_line_cut_short_by_a_crash_is_left_out(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2, "lo')
    assert read_metrics(tmp_path) == [{"step": 1}]


def test_series():
    records = [{"step": 1, "loss": 0.5}, {"step": 2, "a": 1}, {"step": 3, "loss": None}]
    steps, values = series(records, "loss")
    assert steps == [1, 3]
    np.testing.assert_equal(values, [0.5, math.nan])
    assert series(records, "absent") == ([], [])


def test_two_processes_do_not_write_into_one_folder(tmp_path):
    with RunFolder.create(tmp_path, {}) as first:
        first.log(1, loss=0.5)
        with pytest.raises(ValueError, match="another process is training in .*; wait for it"):
            RunFolder.create(tmp_path, {})
        assert read_metrics(tmp_path) == [{"step": 1, "loss": 0.5}]
    RunFolder.create(tmp_path, {}).close()  # it is free again


def test_a_finished_run_with_other_flags_says_which(tmp_path):
    RunFolder.create(tmp_path, {"seed": 0}).finish({})
    with pytest.raises(ValueError, match="holds a finished run with --seed=0, not 1; pass another"):
        RunFolder.create(tmp_path, {"seed": 1})
