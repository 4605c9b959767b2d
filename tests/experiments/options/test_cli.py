"""Command lines: flags in both spellings, and one clear line for everything that is wrong."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments import cifar, demo, fashion_mnist, plan, sweep
from experiments.options import cli
from experiments.records import report

ROOT = Path(__file__).parents[3]


def parse(*argv):
    return cli.parse(fashion_mnist.Config, argv)


def test_flags_in_both_spellings():
    config = parse("--data-dir=a-b", "--update_interval", "7", "--plan", "--learning-rate=0.1")
    assert config.data_dir == Path("a-b")
    assert (config.update_interval, config.plan, config.learning_rate) == (7, True, 0.1)


def test_defaults_are_the_ones_of_the_readme():
    config = parse()
    assert (config.model, config.schedule, config.sparsity) == ("lenet5", "granet_st", 0.95)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--sparsity=1.0"], "--sparsity=1.0 must be at least 0 and below 1"),
        (["--sparsity=-0.1"], "--sparsity=-0.1 must be at least 0 and below 1"),
        (["--sparsity=nan"], "--sparsity=nan must be at least 0 and below 1"),
        (["--schedule=granet_ts"], "unknown schedule 'granet_ts'; did you mean 'granet_st'?"),
        (["--schedule=zzz"], "unknown schedule 'zzz'; there are dense, static, gmp, set"),
        (["--model=lenet"], "unknown model 'lenet'; did you mean 'lenet5'?"),
        (["--distribution=erq"], "unknown distribution 'erq'; did you mean 'erk'?"),
        (["--scope=galactic"], "--scope=galactic must be 'global' or 'layer'"),
        (["--sparsty=0.9"], "unknown flag '--sparsty'; did you mean '--sparsity'?"),
        (["0.9"], "unexpected argument '0.9'"),
        (["--steps=many"], "--steps=many must be a whole number"),
        (["--drop_fraction", "half"], "--drop_fraction=half must be a number"),
        (["--steps"], "--steps"),
        (["--steps=0"], "--steps=0 must be a whole number of steps, at least 1"),
        (["--update_interval=5000"], "sparsity 0.95 is never reached: update_interval 5000"),
        (["--schedule=rigl", "--sparsity=0.99999"], "below 1 a layer"),
        (["--schedule=rigl", "--scope=layer"], "--scope is no option of rigl"),
        (
            ["--schedule=rigl", "--update_interval=5000"],
            "--update_interval=5000 has no multiple from start_step 0 on and before step 1500",
        ),
        (
            ["--dense_layers=conv_0"],
            "--dense_layers needs --scope=layer: granet_st prunes over all",
        ),
        (["--schedule=rigl", "--dense_layers=("], "--dense_layers=( is no regular expression"),
        (["--schedule=dense", "--dense_layers=a"], "--dense_layers is no option of dense"),
        (["--min_keep=-5"], "--min_keep=-5 must be at least 0"),
        (["--data_dir=no/such/folder"], "no/such/folder"),
        (["--batch_size=5000"], "--batch_size=5000 must be a whole number in [1, 4500]"),
        (["--eval_every=0"], "--eval_every=0 must be a whole number of steps, at least 1"),
        (["--seed=-1"], "--seed=-1 must be a whole number in [0, 4294967295]"),
        (["--seed=99999999999999999999"], "--seed=99999999999999999999 must be a whole"),
        (["--val_fraction=1.5"], "--val_fraction=1.5 must be in [0, 1)"),
        (["--checkpoint_every=-1"], "--checkpoint_every=-1 must be a whole number, at least 0"),
        (["--accumulate=0"], "--accumulate=0 must be a whole number, at least 1"),
        (["--accumulate=3"], "--accumulate=3 must divide --batch_size=128"),
    ],
)
def test_bad_input_is_one_line_and_a_non_zero_exit(argv, message, capsys, tmp_path):
    argv = [*argv, f"--out={tmp_path}/run"] if argv != ["--steps"] else argv
    assert cli.run(fashion_mnist.main, fashion_mnist.Config, argv) == 2
    complaint = capsys.readouterr().err.splitlines()
    assert len(complaint) == 1
    assert complaint[0].startswith("error: ")
    assert message in complaint[0]


def test_a_finished_run_is_not_overwritten(capsys, tmp_path):
    (tmp_path / "summary.json").write_text("{}")
    argv = [f"--out={tmp_path}", "--steps=60"]
    assert cli.run(fashion_mnist.main, fashion_mnist.Config, argv) == 2
    assert "finished run" in capsys.readouterr().err
    assert (tmp_path / "summary.json").read_text() == "{}"


def test_bugs_keep_their_traceback():
    def broken(config):
        raise KeyError("a bug")

    with pytest.raises(KeyError):
        cli.run(broken, fashion_mnist.Config, [])


@pytest.mark.parametrize(
    "config", [fashion_mnist.Config, cifar.Config, demo.Config, plan.Config, sweep.Config]
)
def test_help_says_what_every_flag_is(config, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.parse(config, ["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for name in config.__dataclass_fields__:
        assert f"--{name}" in text
    assert "None" not in text


@pytest.mark.parametrize(
    "argv",
    [
        "fashion_mnist.py --plan --model=lenet_300_100 --steps=100",  # all in the buffer
        "fashion_mnist.py --help",
        "plan.py --steps=100 --model=lenet5",
    ],
)
def test_it_ends_in_silence_where_nobody_reads_on(argv):
    script, *flags = argv.split()
    command = [sys.executable, ROOT / "experiments" / script, *flags]
    read, write = os.pipe()
    os.close(read)
    try:
        done = subprocess.run(command, cwd=ROOT, stdout=write, stderr=subprocess.PIPE, text=True)
    finally:
        os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


def test_plan_prints_every_event_and_writes_nothing(capsys, tmp_path):
    argv = ["--plan", "--steps=100", "--update_interval=10", f"--out={tmp_path}/run"]
    assert cli.run(fashion_mnist.main, fashion_mnist.Config, argv) == 0
    text = capsys.readouterr().out
    assert "granet_st: 9 events in 100 steps, 3,074 of 61,470 weights active" in text
    assert "FLOPs: training about 0." in text
    assert not (tmp_path / "run").exists()


SUMMARY = dict.fromkeys(
    "test_accuracy best_test_accuracy best_val_accuracy best_step num_active num_prunable sparsity "
    "test_flops test_flops_ratio train_flops train_flops_ratio peak_memory_mib peak_memory_of "
    "steps_per_second out".split(),
    0,
) | {"alarms": []}


def test_alarms_come_first_in_the_description():
    alarms = [
        "Conv_0/kernel: no weight is left",
        "Dense_1/kernel: 3 weights are left, and none reaches 81 of 84 outputs",
    ]
    lines = report.describe(SUMMARY | {"alarms": alarms}).splitlines()
    assert lines[0] == "warning         Conv_0/kernel: no weight is left"
    assert (
        lines[1]
        == "warning         Dense_1/kernel: 3 weights are left, and none reaches 81 of 84 outputs"
    )
    assert "warning" not in report.describe(SUMMARY)
    # Of many thin layers two, and after what is worse.
    thin = [f"{i}/kernel: 3 weights are left, and none reaches 81 of 84 outputs" for i in range(9)]
    lines = report.describe(SUMMARY | {"alarms": [*thin, "the network is cut"]}).splitlines()
    assert [line[16:] for line in lines[:4]] == [
        "the network is cut",
        *thin[:2],
        "so in 7 more layers: summary.json has them",
    ]


def test_without_validation_images_there_is_no_best():
    both = SUMMARY | {"test_accuracy": 0.75, "best_test_accuracy": 0.5, "best_step": 30}
    first = lambda best: report.describe(both | {"best_val_accuracy": best}).splitlines()[0]
    assert first(0.25) == ("test accuracy   0.7500 at the end, 0.5000 best by validation (step 30)")
    assert first(None) == "test accuracy   0.7500 at the end, without validation images"


@pytest.mark.processes
@pytest.mark.slow
def test_ctrl_c_is_one_line_and_130(tmp_path):
    command = [sys.executable, "experiments/fashion_mnist.py", f"--out={tmp_path}/run"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as run:
        while not (tmp_path / "run" / "config.json").exists():  # it has begun, and compiles now
            assert run.poll() is None
            time.sleep(0.05)
        run.send_signal(signal.SIGINT)
        _, complaint = run.communicate(timeout=60)
    assert run.returncode == 130
    assert complaint.splitlines()[-1] == (
        "interrupted; the same command goes on from the last checkpoint, of which there is one "
        "every 500 steps"
    )
    assert "Traceback" not in complaint
    assert not (tmp_path / "run" / "summary.json").exists()


@pytest.mark.slow
def test_from_a_shell_the_exit_status_and_one_line():
    command = [sys.executable, "experiments/fashion_mnist.py", "--schedule=granet_ts"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "error: unknown schedule 'granet_ts'; did you mean 'granet_st'?\n"


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--batch_size=0", "--batch_size=0 must be a whole number in [1, 4500]"),
        ("--val_fraction=1", "--val_fraction=1.0 must be in [0, 1)"),
        ("--learning_rate=nan", "--learning_rate=nan must be in [0, inf)"),
        ("--accumulate=3", "--accumulate=3 must divide --batch_size=128"),
    ],
)
def test_a_plan_refuses_what_the_run_would(flag, message, capsys):
    assert cli.run(fashion_mnist.main, fashion_mnist.Config, ["--plan", flag]) == 2
    assert message in capsys.readouterr().err
