"""Whole runs on the shipped sample: they learn, end exactly at their sparsity, leave a folder."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from experiments import fashion_mnist
from experiments.options import cli
from experiments.options.schedules import METHODS
from experiments.records.run_folder import read_metrics

ROOT = Path(__file__).parent.parent.parent
FIELDS = (
    "method dataset model seed sparsity num_active num_prunable test_accuracy val_accuracy "
    "best_step best_val_accuracy best_test_accuracy exploration_rate test_flops_ratio train_flops "
    "train_flops_ratio peak_memory_mib layers alarms dead_channels steps steps_per_second resolved"
).split()


def train(tmp_path, **options):
    options = {"model": "lenet_300_100", "steps": 60, "eval_every": 30, "sparsity": 0.9} | options
    return fashion_mnist.train(fashion_mnist.Config(out=tmp_path / "run", **options))


# Others differ from one of these in a stage that the tests of methods hold.
SOME = ("dense", "gmp", "rigl", "granet_st", "east", "gsm")


@pytest.mark.slow
@pytest.mark.parametrize(
    "schedule", [x if x in SOME else pytest.param(x, marks=pytest.mark.long) for x in METHODS]
)
def test_every_schedule_learns_and_ends_exactly_at_its_sparsity(schedule, tmp_path):
    summary = train(tmp_path, schedule=schedule)
    assert summary["num_prunable"] == 266_200
    assert summary["num_active"] == (266_200 if schedule == "dense" else 26_620)
    assert summary["test_accuracy"] > 0.6  # chance is 0.1
    assert set(FIELDS) <= set(summary)


@pytest.mark.slow
def test_the_folder_of_a_run(tmp_path):
    summary = train(tmp_path, schedule="granet_st", update_interval=10)
    out = summary.pop("out")
    assert json.loads((out / "summary.json").read_text()) == summary
    config = json.loads((out / "config.json").read_text())
    assert (config["schedule"], config["update_interval"], config["seed"]) == ("granet_st", 10, 0)
    assert list((out / "tensorboard").glob("events.out.tfevents.*"))
    assert (out / "plot.png").stat().st_size > 10_000

    records = read_metrics(out)
    steps = [record["step"] for record in records]
    assert steps == sorted(set(steps))  # one record a step
    active = {r["step"]: r["num_active"] for r in records if "num_active" in r}
    # cubic from 0.5 to 0.9 in 3 events: 0.9 - 0.4 * (1 - i/3)^3, then held
    expected = [266_200 - math.floor(266_200 * (0.9 - 0.4 * (1 - i / 3) ** 3)) for i in (1, 2, 3)]
    assert [active[10], active[20], active[30]] == expected
    assert active[40] == active[50] == 26_620
    event = next(r for r in records if r["step"] == 40)
    assert event["num_dropped"] == event["num_grown"]
    assert event["num_nan"] == event["num_empty"] == 0
    assert event["churn"] == pytest.approx(event["num_grown"] / 26_620)

    # Every record of the masks lists the layers, from the start on; the last one is the summary's.
    layers = {r["step"]: r["layer_num_active"] for r in records if "layer_num_active" in r}
    assert {step: sum(counts) for step, counts in layers.items()} == {0: 133_100} | active
    assert layers[50] == [layer["num_active"] for layer in summary["layers"].values()]
    # LeNet-300-100 uses each weight once, so FLOPs go with density whatever the layers.
    in_force = [133_100, *expected, 26_620, 26_620]
    events = sum(266_200 - count for count in in_force[:-1])  # the dense gradients
    ratio = (10 * sum(in_force) + events / 3) / 266_200 / 60
    assert summary["train_flops_ratio"] == pytest.approx(ratio)
    assert summary["train_flops"] == pytest.approx(ratio * 3 * 2 * 266_200 * 60 * 128)
    assert summary["test_flops_ratio"] == pytest.approx(0.1)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_run_and_another_seed_another(tmp_path):
    first, again, other = (
        train(tmp_path / str(i), schedule="set", seed=seed) for i, seed in enumerate((3, 3, 4))
    )
    losses = [
        [r["train_loss"] for r in read_metrics(run["out"]) if "train_loss" in r]
        for run in (first, again, other)
    ]
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.slow
def test_best_is_chosen_only_at_the_final_sparsity(tmp_path):
    summary = train(tmp_path, schedule="gmp", eval_every=5, stop_step=40, update_interval=10)
    assert summary["best_step"] >= 40


def test_a_diverged_run_says_so(tmp_path):
    message = "training loss at step 30 is nan; lower --learning_rate and pass another --out"
    with pytest.raises(ValueError, match=message):
        train(tmp_path, schedule="dense", learning_rate=1e6)


@pytest.mark.parametrize(("options", "step"), [({"checkpoint_every": 20}, 20), ({"steps": 25}, 25)])
def test_a_diverged_run_saves_no_checkpoint(options, step, tmp_path):
    """Between two records of the loss, and after the last."""
    with pytest.raises(ValueError, match=f"training loss at step {step} is nan"):
        train(tmp_path, schedule="dense", learning_rate=1e6, **options)
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize("plan", [[], ["--plan"]])
def test_an_unknown_model_is_one_line(plan, capsys):
    argv = ["--model=lenet55", *plan]
    assert cli.run(fashion_mnist.main, fashion_mnist.Config, argv) == 2
    message = "error: unknown model 'lenet55'; did you mean 'lenet5'?\n"
    assert capsys.readouterr().err == message


def test_the_plan_of_a_network_with_dyrelu_says_what_it_costs(capsys):
    argv = ["--plan", "--model=lenet_300_100", "--schedule=east", "--steps=1000"]
    assert cli.run(fashion_mnist.main, fashion_mnist.Config, argv) == 0
    printed = capsys.readouterr()
    assert printed.err == (
        "note: lenet_300_100 is no ResNet with a stage of more than 2 blocks, so it shares no "
        "weights\n"
    )
    *_, line = printed.out.splitlines()
    # 300 x 75 x 5 and 100 x 25 x 5 products, for 496 steps of 128 images, forward and backward.
    assert line == (
        "DyReLU          126,700 dense parameters while it lasts, 250,000 FLOPs an image; "
        "4.762e+10 in all"
    )


@pytest.mark.processes
@pytest.mark.slow
def test_the_demo_from_a_shell(tmp_path):
    command = [sys.executable, "experiments/demo.py", "--steps=60", f"--out={tmp_path}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    granet = next(line.split() for line in lines if line.startswith("granet_st"))
    assert granet[2:4] == ["0.9500", "3,074"]
    assert lines[-1] == f"plot: {tmp_path}/plot.png"
    assert (tmp_path / "plot.png").stat().st_size > 10_000
