"""Two processes of two devices: they train as one, end together, and go on from what they saved."""

import signal
import time

import pytest

from tests.experiments.mesh.runs import ended, outcome, start

pytestmark = [pytest.mark.processes, pytest.mark.slow]


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """The folder of a whole run of two processes, fully sharded."""
    out = tmp_path_factory.mktemp("two") / "run"
    for status, _, stderr in ended(start(out, "--fsdp", num_processes=2)):
        assert status == 0, stderr
    return out


def wait_for(path, processes):
    """Waits until a file is there; fails if a process ends before."""
    for _ in range(3000):
        if path.exists():
            return
        assert all(process.poll() is None for process in processes), ended(processes)
        time.sleep(0.02)
    raise AssertionError(f"no {path}")


@pytest.mark.long
def test_a_whole_run(together):
    summary, records = outcome(together)
    assert (summary["num_processes"], summary["num_devices"]) == (2, 4)
    assert [r["step"] for r in records if "val_accuracy" in r] == [8, 16]
    assert summary["num_events"] == 2
    assert (together / "plot.png").exists()  # one process draws it, from no array of both


@pytest.mark.long
def test_killed_and_started_again_is_the_whole_run(together, tmp_path):
    out = tmp_path / "run"
    processes = start(out, "--fsdp", num_processes=2)
    wait_for(out / "checkpoints" / "8", processes)
    processes[1].send_signal(signal.SIGKILL)
    for status, _, stderr in ended(processes):
        assert status != 0, stderr
    assert not (out / "summary.json").exists()
    for status, _, stderr in ended(start(out, "--fsdp", num_processes=2)):
        assert status == 0, stderr
    assert outcome(out) == outcome(together)


@pytest.mark.long
def test_sigterm_saves_the_same_step_and_other_devices_go_on(together, tmp_path):
    out = tmp_path / "run"
    processes = start(out, num_processes=2)
    wait_for(out / "checkpoints" / "4", processes)
    processes[0].send_signal(signal.SIGTERM)
    found = ended(processes)
    assert [status for status, *_ in found] == [143, 143], found
    saved = max(int(path.name) for path in (out / "checkpoints").iterdir() if path.name.isdigit())
    assert f"stopped after step {saved}" in found[0][2]
    assert "stopped" not in found[1][2]
    ((status, stdout, stderr),) = ended(start(out, devices=1))
    assert status == 0, stderr
    assert f"continuing at step {saved}" in stdout
    ours, theirs = outcome(out)[0], outcome(together)[0]
    assert ours["num_active"] == theirs["num_active"]
    assert ours["num_devices"] == 1


def test_an_error_of_one_process_ends_all_with_its_message(tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    (out / "config.json").write_text("{}")
    (out / "checkpoints").mkdir()
    (out / "summary.json").write_text("{}")
    found = ended(start(out, num_processes=2))
    assert [status for status, *_ in found] == [2, 2]
    assert found[0][2].splitlines()[-1].startswith(f"error: {out} holds a finished run")
    assert f"error in process 0: {out} holds a finished run" in found[1][2]


@pytest.mark.long
def test_ctrl_c_on_one_process_ends_both_with_a_line(tmp_path):
    out = tmp_path / "run"
    processes = start(out, num_processes=2)
    wait_for(out / "checkpoints" / "4", processes)
    processes[1].send_signal(signal.SIGINT)
    found = ended(processes)
    assert [status for status, *_ in found] == [2, 130], found
    assert "error in process 1: interrupted" in found[0][2]
    assert "interrupted; the same command goes on" in found[1][2]
    assert "Traceback" not in found[0][2] + found[1][2]


def test_a_process_that_never_starts(tmp_path):
    flags = ("--start_timeout=5",)
    ((status, _, stderr),) = ended(start(tmp_path / "run", *flags, num_processes=2, only=[0]))
    assert status == 2
    assert stderr.splitlines()[-1].startswith("error: not all of --num_processes=2 came to")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        ("--num_processes=2", "--num_processes=2 needs --coordinator"),
        ("--process_id=1", "--process_id needs --num_processes"),
        ("--num_processes=2 --process_id=0 --coordinator=here", "must be HOST:PORT"),
        ("--num_processes=2 --process_id=2 --coordinator=a:1", "must be in [0, 2)"),
    ],
)
def test_flags_of_processes(flags, complaint):
    from experiments import imagenet
    from experiments.mesh.processes import joined
    from experiments.options import cli

    config = cli.parse(imagenet.Config, flags.split())
    with pytest.raises(ValueError) as error:
        with joined(config.coordinator, config.num_processes, config.process_id):
            pass
    assert complaint in str(error.value)
