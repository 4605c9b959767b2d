"""Sweeps from their flags to their results, with real processes that are killed in the middle."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from experiments import sweep
from experiments.options import cli
from experiments.records.run_folder import locked
from experiments.sweeping import kinds
from experiments.sweeping.result_file import Result, read_result, write_result

ROOT = Path(__file__).parent.parent.parent
NAMES = [f"lenet_300_100-{s}-0.9-seed{seed}" for seed in (0, 1) for s in ("static", "gmp")]


def arguments(folder, *more):
    """Two methods and two seeds on the shipped sample; large batches, so that there is time."""
    argv = (
        "--model=lenet_300_100 --schedules static gmp --sparsities 0.9 --seeds=2 --jobs=2".split()
    )
    argv += ["--flags", "steps=60", "batch_size=1024", "checkpoint_every=20", "eval_every=0030"]
    return [*argv, f"--out={folder}/runs", f"--results={folder}/results", *more]


def main(*argv):
    return cli.run(sweep.main, sweep.Config, argv)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--grid=fashion"], "unknown grid 'fashion'; did you mean 'fashion_mnist'?"),
        (["--grid=fashion_mnist", "--model=lenet5"], "--grid=fashion_mnist has its own models"),
        (["--schedules", "rigl"], "--schedules goes with a grid of your own: pass --model"),
        (["--flags", "steps=5"], "--flags goes with a grid of your own: pass --model"),
        (["--seeds=0"], "--seeds=0 must be a whole number, at least 1"),
        (["--jobs=0"], "--jobs=0 must be a whole number, at least 1"),
        (["--model=lenet"], "unknown model 'lenet'; did you mean 'lenet5'?"),
        (
            ["--model=lenet5", "--experiment=cifr"],
            "unknown experiment 'cifr'; did you mean 'cifar'",
        ),
        (["--model=lenet5", "--schedules", "rigle"], "unknown schedule 'rigle'; did you mean 'rig"),
        (
            ["--model=lenet5", "--sparsities", "1.0"],
            "--sparsity=1.0 must be in [0, 1)",
        ),
        (
            ["--model=lenet5", "--sparsities", "0.9", "0.90"],
            "two runs would be named lenet5-static-0.9-seed0",
        ),
        (
            ["--model=lenet5", "--flags", "stesp=5"],
            "unknown flag '--stesp'; did you mean '--steps'",
        ),
        (["--model=lenet5", "--flags", "steps=x"], "--steps=x must be a whole number"),
        (["--model=lenet5", "--flags", "steps"], "--flags takes name=value, not 'steps'"),
        (["--model=lenet5", "--flags", "seed=5"], "--flags takes no seed, which the sweep sets"),
        (
            ["--model=lenet5", "--flags", "drop_fraction=.1"],
            "--drop_fraction is no option of static",
        ),
        (["--data_dir=nowhere", "--seeds=1"], "nowhere"),
        (
            ["--model=lenet5", "--name=a/b"],
            "--name=a/b must have letters, digits, '.', '_' and '-'",
        ),
        (["--model=lenet5", "--name=patterns"], "and be none of cifar10, extreme, fashion_mnist"),
        (["--name=mine"], "--name goes with a grid of your own: pass --model"),
        (["--flags", "--steps=80"], "If it is the script's, write steps=80 after --flags"),
        (
            ["--model=vgg16", "--experiment=cifar"],
            "cifar10 expected in data/cifar10/3.0.2; get it with: python experiments/data/",
        ),
    ],
)
def test_bad_flags_are_one_line_before_anything_starts(
    argv, message, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert main(*argv, "--results=results") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert list(tmp_path.iterdir()) == []


def test_the_list_of_a_grid(capsys, tmp_path):
    assert main("--list", f"--results={tmp_path}", "--seeds=2") == 0
    first, *todo = capsys.readouterr().out.splitlines()
    assert first == f"fashion_mnist: 0 of {len(todo)} runs are finished in {tmp_path}/fashion_mnist"
    assert todo[0] == "  to do: lenet_300_100-dense-seed0"
    assert len(todo) == 2 * (1 + 7 * 4 + 1 + 7 * 2)  # dense, and 7 methods at 4 and 2 sparsities


def test_a_grid_of_your_own_may_have_a_name(capsys, tmp_path):
    assert main(*arguments(tmp_path, "--name=mine", "--list")) == 0
    first, *_ = capsys.readouterr().out.splitlines()
    assert first == f"mine: 0 of 4 runs are finished in {tmp_path}/results/mine"


def test_vmapped_seeds_have_a_name_of_their_own(capsys, tmp_path):
    """So that neither kind of sweep is in the other's way, with no further flag."""
    assert main(*arguments(tmp_path, "--vmap_seeds", "--list")) == 0
    first, *_ = capsys.readouterr().out.splitlines()
    assert first.endswith(f"are finished in {tmp_path}/results/fashion_mnist-lenet_300_100-vmapped")


def job_of(folder):
    return sweep.jobs_of(cli.parse(sweep.Config, arguments(folder)))[1][0]


def a_result(folder, without=(), **changes):
    """Writes the result of the first run of the sweep, with changes to its config."""
    config = cli.as_dict(kinds.RUN.config_of(job_of(folder))) | changes
    summary = {"dataset": "fashion_mnist_sample", "test_accuracy": 0.5}
    path = folder / "results" / "fashion_mnist-lenet_300_100" / f"{NAMES[0]}.json"
    places = ("out", "data_dir", "plan")
    config = {name: value for name, value in config.items() if name not in (*places, *without)}
    write_result(path, Result(config, summary, "4367ec9", {"cores": 1}))
    return path


def test_results_are_taken_whatever_lay_where(capsys, tmp_path):
    a_result(tmp_path, checkpoint_every=7)
    assert main(*arguments(tmp_path, "--list")) == 0
    assert (
        capsys.readouterr()
        .out.splitlines()[0]
        .startswith("fashion_mnist-lenet_300_100: 1 of 4 runs are finished in")
    )


@pytest.mark.parametrize(
    ("changes", "more", "message"),
    [
        (
            {"steps": 61},
            [],
            "is the result of a run with --steps=61, not 60; pass another --results",
        ),
        ({"learning_rate": 0.1}, [], "is the result of a run with --learning_rate=0.1, not 0.05"),
        ({"vmapped": True}, [], "is the result of a run with --vmap_seeds, not without it; pass"),
        (
            {},
            ["--data_dir=/d"],
            "is the result of a run on fashion_mnist_sample, not fashion_mnist; leave out --data",
        ),
    ],
)
def test_the_result_of_another_run_is_refused(changes, more, message, capsys, tmp_path):
    """Also of one that differs in a flag that is left to its default here."""
    path = a_result(tmp_path, **changes)
    assert main(*arguments(tmp_path, *more)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {path} {message}")


def test_a_result_on_the_full_data_set_asks_for_its_folder(capsys, tmp_path):
    path = a_result(tmp_path)
    result = read_result(path)
    write_result(path, result._replace(summary=result.summary | {"dataset": "fashion_mnist"}))
    assert main(*arguments(tmp_path, "--list")) == 2
    assert "pass --data_dir=DIR to have fashion_mnist, or pass another" in capsys.readouterr().err


@pytest.mark.parametrize(("flag", "status"), [("momentum=0.9", 0), ("momentum=0.8", 2)])
def test_a_result_from_before_a_flag_is_that_of_its_default(flag, status, capsys, tmp_path):
    a_result(tmp_path, without=["momentum"])
    argv = [a.replace("eval_every=0030", f"eval_every=30 {flag}") for a in arguments(tmp_path)]
    argv = [word for a in argv for word in a.split()]
    assert main(*argv, "--list") == status
    assert (status == 2) == ("with --momentum=0.9, not 0.8; pass" in capsys.readouterr().err)


def test_a_damaged_result_is_named_and_what_to_do(capsys, tmp_path):
    path = a_result(tmp_path)
    path.write_text(path.read_text()[:50])
    assert main(*arguments(tmp_path)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {path} cannot be read: ")
    assert line.endswith("; delete it to make the run again")


def test_a_second_sweep_in_the_same_folder_is_refused(capsys, tmp_path):
    out = tmp_path / "runs" / "fashion_mnist-lenet_300_100"
    out.mkdir(parents=True)
    lock = locked(out, "running a sweep")
    try:
        assert main(*arguments(tmp_path)) == 2
    finally:
        os.close(lock)
    assert f"another process is running a sweep in {out}; wait for it" in capsys.readouterr().err


def begin(folder):
    """Starts the sweep. The first run compiles for all."""
    cache = {
        "JAX_COMPILATION_CACHE_DIR": str(folder / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    command = [sys.executable, "experiments/sweep.py", *arguments(folder)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=ROOT, env=os.environ | cache, **pipes)


def wait(moment, seconds=120):
    end = time.monotonic() + seconds
    while not moment():
        assert time.monotonic() < end
        time.sleep(0.01)


def runs_alive(folder):
    """Processes of runs, by their command lines."""
    alive = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:  # it ended meanwhile
            continue
        alive += [words for word in words if word.startswith(f"--out={folder}/runs/f".encode())]
    return alive


def interrupt_and_kill(folder, out):
    """Starts the sweep twice; neither leaves a process behind."""
    with begin(folder) as first:
        wait(lambda: len(runs_alive(folder)) == 2)
        first.send_signal(signal.SIGINT)
        assert first.communicate()[1].splitlines()[-1].endswith("interrupted")
    assert first.returncode == 130
    wait(lambda: not runs_alive(folder))

    with begin(folder) as second:
        wait(lambda: list(out.glob("*/checkpoints/20")) or second.poll() is not None)
        assert second.poll() is None, second.communicate()
        second.kill()
    wait(lambda: not runs_alive(folder))


def check_results(out, results):
    found = {path.stem: read_result(path) for path in results.iterdir()}
    assert set(found) == set(NAMES)
    for name, result in found.items():
        schedule, seed = name.split("-")[1], int(name[-1])
        assert (result.config["schedule"], result.config["seed"]) == (schedule, seed)
        assert (result.summary["method"], result.summary["num_active"]) == (schedule, 26_620)
        assert result.machine["cores"] == 1
        assert result.summary == json.loads((out / name / "summary.json").read_text())
    assert len({result.summary["test_accuracy"] for result in found.values()}) > 1


def parse_in_one_thread(monkeypatch):
    """Flags are parsed with another `sys.stderr`, which two threads would not put back."""
    parse = cli.parse

    def checked(*args):
        assert threading.current_thread() is threading.main_thread()
        return parse(*args)

    monkeypatch.setattr(cli, "parse", checked)


def check_that_nothing_runs_again(capsys, folder, out, results):
    """A result that is lost comes from the folder of its run; one with other flags is refused."""
    before = {path: path.read_bytes() for path in results.iterdir()}
    lost = results / f"{NAMES[0]}.json"
    lost.unlink()
    log = (out / f"{NAMES[0]}.log").read_bytes()
    assert main(*arguments(folder)) == 0
    assert main(*arguments(folder)) == 0
    assert "4 of 4 runs are finished" in capsys.readouterr().out
    assert (out / f"{NAMES[0]}.log").read_bytes() == log  # it did not run
    assert {path: path.read_bytes() for path in results.iterdir()} == before

    # Nor is a finished folder with other flags taken for the run.
    argv = [a.replace("batch_size=1024", "batch_size=1000") for a in arguments(folder)]
    assert main(*argv, f"--results={folder}/others") == 2
    complaint = capsys.readouterr().err
    assert "holds a run with --batch_size=1024, not 1000; pass another --out" in complaint
    assert not (folder / "others").exists()


@pytest.mark.long
@pytest.mark.processes
@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="runs end with the sweep on Linux")
def test_a_sweep_that_is_interrupted_killed_and_hindered_ends_whole(capsys, tmp_path, monkeypatch):
    parse_in_one_thread(monkeypatch)
    out = tmp_path / "runs" / "fashion_mnist-lenet_300_100"
    results = tmp_path / "results" / "fashion_mnist-lenet_300_100"

    interrupt_and_kill(tmp_path, out)
    assert not results.exists()

    hindered = out / NAMES[3]
    hindered.write_text("somebody's file")
    with begin(tmp_path) as third:
        printed, complaint = third.communicate()
    assert third.returncode == 2
    assert "0 of 4 runs are finished" in printed
    assert f"failed: {NAMES[3]}: status 2, error: {hindered} is a file, expected" in complaint
    assert complaint.splitlines()[-1] == f"error: 1 of 4 runs failed: {NAMES[3]}"
    assert {path.name for path in results.iterdir()} == {f"{name}.json" for name in NAMES[:3]}
    logs = [path.read_text() for path in out.glob("*.log")]
    assert any("continuing at step 20" in log for log in logs)

    hindered.unlink()
    with begin(tmp_path) as fourth:
        printed, complaint = fourth.communicate()
    assert fourth.returncode == 0, complaint
    assert "3 of 4 runs are finished" in printed
    check_results(out, results)
    check_that_nothing_runs_again(capsys, tmp_path, out, results)
