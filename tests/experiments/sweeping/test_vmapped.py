"""Seeds trained together, beside the same seeds alone."""

import json
import shutil

import jax
import numpy as np
import pytest

from experiments import fashion_mnist, loop, sweep
from experiments.options import cli
from experiments.records.run_folder import read_metrics
from experiments.sweeping import vmapped
from experiments.sweeping.result_file import read_result
from jaxsparse.checkpoint import restore_checkpoint

FLAGS = (
    "model=lenet_300_100 schedule=rigl sparsity=0.9 steps=24 batch_size=64 eval_every=12 "
    "update_interval=6"
)


def lanes_of(out, seeds=(0, 3), flags=FLAGS):
    """Lanes of `vmapped`, with one loading of the data."""
    lanes = []
    for seed in seeds:
        config = cli.parse(
            fashion_mnist.Config, [f"--{flag}" for flag in f"{flags} seed={seed}".split()]
        )
        run = lanes[0].run._replace(seed=seed) if lanes else fashion_mnist.run_of(config)
        lanes.append(
            vmapped.Lane(run, out / f"seed{seed}", cli.as_dict(config) | {"vmapped": True})
        )
    return lanes


def trained(lane):
    """The state that a finished run has left."""
    fresh = loop.create_state(lane.run)
    arrays = {"state": fresh, "best": fresh.variables}
    return restore_checkpoint(lane.out / "checkpoints", arrays).state["state"]


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """Two seeds trained together."""
    out = tmp_path_factory.mktemp("together")
    lanes = lanes_of(out)
    summaries = vmapped.train(lanes, out / "group", title="two seeds")
    assert not (out / "group").exists()
    return lanes, summaries


@pytest.mark.variants
@pytest.mark.slow
def test_they_are_the_single_runs_to_rounding(together, tmp_path):
    lanes, summaries = together
    for lane, summary in zip(lanes, summaries, strict=True):
        alone = lane._replace(out=tmp_path / lane.out.name)
        expected = loop.train(alone.run, alone.out, lane.config, title="one seed")
        ours, theirs = trained(lane), trained(alone)
        jax.tree.map(np.testing.assert_array_equal, ours.masks, theirs.masks)
        assert (ours.key == theirs.key).all()
        for x, y in zip(jax.tree.leaves(ours.params), jax.tree.leaves(theirs.params), strict=True):
            np.testing.assert_allclose(x, y, rtol=0, atol=1e-4)
        assert summary["num_active"] == expected["num_active"]
        assert summary["train_flops"] == expected["train_flops"]
        assert abs(summary["test_accuracy"] - expected["test_accuracy"]) < 0.01
        steps = [record["step"] for record in read_metrics(lane.out)]
        assert steps == [record["step"] for record in read_metrics(alone.out)]


@pytest.mark.slow
def test_the_seeds_are_not_each_other(together):
    (first, _), (second, _) = [(trained(lane), lane) for lane in together[0]]
    weights = lambda state: np.asarray(state.params["Dense_0"]["kernel"])
    masks = lambda state: np.asarray(state.masks["Dense_0"]["kernel"])
    assert (weights(first) != weights(second)).any()
    assert (masks(first) != masks(second)).any()


@pytest.mark.slow
@pytest.mark.parametrize("stop", ["after a checkpoint", "between two ends"])
def test_a_group_that_was_cut_off_goes_on_to_the_same_bits(stop, together, tmp_path, monkeypatch):
    lanes = lanes_of(tmp_path, flags=f"{FLAGS} checkpoint_every=8")

    class Cut(Exception):
        pass

    def cut(at, function):
        calls = []

        def wrapped(*args, **options):
            calls.append(args)
            if len(calls) == at:
                raise Cut
            return function(*args, **options)

        return wrapped

    name, at = {
        "after a checkpoint": ("save", 2),
        "between two ends": ("finish", 2),
    }[stop]
    with monkeypatch.context() as patch:
        patch.setattr(vmapped, name, cut(at, getattr(vmapped, name)))
        with pytest.raises(Cut):
            vmapped.train(lanes, tmp_path / "group", title="cut off")
    summaries = vmapped.train(lanes, tmp_path / "group", title="going on")
    assert len(summaries) == (1 if stop == "between two ends" else 2)
    for lane, reference in zip(lanes, together[0], strict=True):
        ours, theirs = trained(lane), trained(reference)
        equal = lambda x, y: np.testing.assert_array_equal(x, y)
        jax.tree.map(equal, (ours.params, ours.masks), (theirs.params, theirs.masks))
        accuracies = [
            [record["val_accuracy"] for record in read_metrics(run.out) if "val_accuracy" in record]
            for run in (lane, reference)
        ]
        assert accuracies[0] == accuracies[1]


@pytest.mark.slow
def test_a_seed_that_is_finished_stays_as_it_is(together, tmp_path):
    lanes = lanes_of(tmp_path)
    shutil.copytree(together[0][0].out, lanes[0].out)
    (lanes[0].out / "mark").touch()
    (summary,) = vmapped.train(lanes, tmp_path / "group", title="the other one")
    assert summary["seed"] == lanes[1].run.seed
    assert (lanes[0].out / "mark").exists()
    equal = lambda x, y: np.testing.assert_array_equal(x, y)
    jax.tree.map(equal, trained(lanes[1]).params, trained(together[0][1]).params)


@pytest.mark.parametrize(
    ("seeds", "flags", "message"),
    [
        ((0, 0), FLAGS, r"--seeds=0,0 must differ"),
        ((0, 1), f"{FLAGS} accumulate=2", "--accumulate=2 is not served for seeds trained toge"),
        ((0, 1), f"{FLAGS} dyrelu=True", "DyReLU is not served for seeds trained together"),
        ((0, 1), f"{FLAGS} batch_size=0", "--batch_size=0 must be a whole number in"),
    ],
)
def test_what_it_refuses(seeds, flags, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        vmapped.train(lanes_of(tmp_path, seeds, flags), tmp_path / "group", title="")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.processes
@pytest.mark.slow
def test_a_sweep_keeps_the_two_kinds_apart(tmp_path, capsys):
    argv = (
        "--model=lenet_300_100 --schedules static --sparsities 0.9 --seeds=2 --jobs=1 "
        "--flags steps=10 batch_size=256 eval_every=5"
    ).split()
    argv += [f"--out={tmp_path}/runs", f"--results={tmp_path}/results"]
    assert cli.run(sweep.main, sweep.Config, [*argv, "--vmap_seeds"]) == 0
    results = sorted((tmp_path / "results").rglob("*.json"))
    assert [path.stem for path in results] == [
        f"lenet_300_100-static-0.9-seed{seed}" for seed in (0, 1)
    ]
    assert all(read_result(path).config["vmapped"] for path in results)
    assert len({json.dumps(read_result(path).summary) for path in results}) == 2
    assert all(path.parent.name == "fashion_mnist-lenet_300_100-vmapped" for path in results)
    assert [path.name for path in (tmp_path / "runs").iterdir()] == [results[0].parent.name]
    capsys.readouterr()
    assert cli.run(sweep.main, sweep.Config, [*argv, "--list"]) == 0
    assert "lenet_300_100: 0 of 2 runs are finished" in capsys.readouterr().out
    shutil.rmtree(tmp_path / "results")
    assert cli.run(sweep.main, sweep.Config, [*argv, "--vmap_seeds"]) == 0  # out of the folders
    assert sorted((tmp_path / "results").rglob("*.json")) == results
