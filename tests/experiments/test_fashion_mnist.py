"""Whole runs on the shipped sample: they learn, end exactly at their sparsity, leave a folder."""

import json
import math
import subprocess
import sys
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsparse
from experiments import fashion_mnist, loop
from experiments.data import fashion_mnist as fashion_mnist_data
from experiments.methods import METHODS
from experiments.run import Run
from experiments.run_folder import read_metrics
from experiments.steps import accumulating_steps
from jaxsparse.nn import LeNet300100

ROOT = Path(__file__).parent.parent.parent
FIELDS = (
    "method dataset model seed sparsity num_active num_prunable test_accuracy val_accuracy "
    "best_step best_val_accuracy best_test_accuracy exploration_rate test_flops_ratio train_flops "
    "train_flops_ratio peak_memory_mib layers alarms dead_channels steps steps_per_second"
).split()


def train(tmp_path, **options):
    options = {"model": "lenet_300_100", "steps": 60, "eval_every": 30, "sparsity": 0.9} | options
    return fashion_mnist.train(fashion_mnist.Config(out=tmp_path / "run", **options))


@pytest.mark.slow
@pytest.mark.parametrize("schedule", METHODS)
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


def test_batches_visit_every_image_once_an_epoch():
    drawn = loop.batches(jax.random.key(0), 10, 3)
    epochs = [np.concatenate([next(drawn) for _ in range(3)]) for _ in range(2)]
    assert [len(set(epoch.tolist())) for epoch in epochs] == [9, 9]
    assert epochs[0].tolist() != epochs[1].tolist()


@pytest.mark.parametrize("start", [0, 1, 2, 3, 4, 7])
def test_batches_after_a_step_are_those_of_the_straight_run(start):
    straight = loop.batches(jax.random.key(0), 10, 3)
    wanted = [next(straight).tolist() for _ in range(12)][start:]
    drawn = loop.batches(jax.random.key(0), 10, 3, start=start)
    assert [next(drawn).tolist() for _ in wanted] == wanted


@pytest.mark.slow
def test_micro_batches_make_the_same_steps(tmp_path):
    runs = [
        train(tmp_path / str(k), schedule="rigl", accumulate=k, update_interval=10) for k in (1, 4)
    ]
    one, four = (read_metrics(run["out"]) for run in runs)
    counts = lambda rows: [(r["step"], r.get("num_active"), r.get("num_empty")) for r in rows]
    assert counts(one) == counts(four)
    assert [run["num_active"] for run in runs] == [26_620] * 2
    losses = lambda rows: [r["train_loss"] for r in rows if "train_loss" in r]
    np.testing.assert_allclose(losses(one), losses(four), rtol=1e-3)


def test_micro_batches_give_the_gradient_of_the_whole_batch():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(8, 3)), jnp.float32)

    traces = []

    def loss_and_grads(params, images, labels, indices):
        traces.append(indices.shape)
        error = lambda p: jnp.mean((images[indices] @ p["kernel"] - labels[indices]) ** 2)
        return jax.value_and_grad(error)(params)

    def end(num_parts):
        state = jaxsparse.TrainState.create(
            apply_fn=None,
            params={"kernel": jnp.ones((3, 2))},
            tx=optax.sgd(0.1, momentum=0.9),
            method=jaxsparse.dense(total_steps=10),
            key=jax.random.key(0),
        )
        data = (x, x[:, :2], jnp.zeros(6, jnp.int32))
        step = accumulating_steps(loss_and_grads, num_parts, [False], state, data)[False]
        traced = len(traces)
        for indices in ([5, 1, 2, 7, 0, 3], [4, 4, 6, 1, 2, 3]):
            state, loss = step(state, *data[:2], jnp.array(indices))
        assert len(traces) == traced  # compiled before the first step
        assert int(state.step) == 2  # optimizer steps, not micro-batches
        return state.params, state.opt_state, loss

    for num_parts in (2, 3):
        chex.assert_trees_all_close(end(num_parts), end(1), rtol=1e-5)


def test_micro_batches_are_traced_once_for_both_kinds_of_step():
    x, traces = jnp.ones((8, 3)), []

    def loss_and_grads(params, images, labels, indices):
        traces.append(indices.shape)
        return jax.value_and_grad(lambda p: jnp.mean((images[indices] @ p["kernel"]) ** 2))(params)

    state = jaxsparse.TrainState.create(
        apply_fn=None,
        params={"kernel": jnp.ones((3, 2))},
        tx=optax.sgd(0.1),
        method=jaxsparse.rigl(sparsity=0.5, total_steps=10, update_interval=2),
        key=jax.random.key(0),
    )
    data = (x, x[:, :2], jnp.arange(8, dtype=jnp.int32))
    steps = accumulating_steps(loss_and_grads, 4, [False, True], state, data)
    assert set(traces) == {(2,)}
    before = len(traces)
    for event in (False, True):
        state, _ = steps[event](state, *data)
    assert len(traces) == before <= 2  # the shapes of the total, and the micro-batch


def test_a_diverged_run_says_so(tmp_path):
    message = "training loss at step 50 is nan; lower --learning_rate and pass another --out"
    with pytest.raises(ValueError, match=message):
        train(tmp_path, schedule="dense", learning_rate=1e6)


@pytest.mark.parametrize(("options", "step"), [({"checkpoint_every": 20}, 20), ({"steps": 30}, 30)])
def test_a_diverged_run_saves_no_checkpoint(options, step, tmp_path):
    """Between two records of the loss, and after the last."""
    with pytest.raises(ValueError, match=f"training loss at step {step} is nan"):
        train(tmp_path, schedule="dense", learning_rate=1e6, **options)
    assert not (tmp_path / "run" / "checkpoints").exists()


class Unplugged:
    """Images that are gone when somebody looks: the process ends in the middle of its run."""

    @property
    def labels(self):
        raise KeyboardInterrupt


def test_a_run_in_micro_batches_goes_on_as_the_straight_one(tmp_path):
    run = Run(
        model=LeNet300100(),
        dataset=fashion_mnist_data.load(None, val_fraction=0.1),
        normalise=fashion_mnist.normalise,
        method=jaxsparse.snfs(sparsity=0.9, total_steps=20, update_interval=4),
        tx=optax.sgd(0.05, momentum=0.9),
        batch_size=32,
        seed=0,
        eval_every=15,
        checkpoint_every=10,
        accumulate=4,
        log_every=1,
    )
    config = {"model": "lenet_300_100", "schedule": "snfs", "accumulate": 4}
    straight = loop.train(run, tmp_path / "straight", config, title="")
    cut_off = run._replace(dataset=run.dataset._replace(val=Unplugged()))
    with pytest.raises(KeyboardInterrupt):
        loop.train(cut_off, tmp_path / "run", config, title="")
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["10"]
    resumed = loop.train(run, tmp_path / "run", config, title="")
    assert read_metrics(tmp_path / "run") == read_metrics(tmp_path / "straight")
    differ = {"steps_per_second", "peak_memory_mib"}
    assert {k for k in straight if straight[k] != resumed[k]} <= differ


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
