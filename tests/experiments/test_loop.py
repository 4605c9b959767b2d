"""Runs of a small network: order of the data, cut off and gone on, the best, no validation."""

import functools
import json

import pytest

import jaxsparse
from experiments import loop
from experiments.data.augment import crop_and_flip
from experiments.records import progress, report
from experiments.records.run_folder import read_metrics
from experiments.training.run import Phase
from tests.checkpoint.states import bits
from tests.experiments.small_runs import Net, make_run

CONFIG = {"model": "net", "schedule": "rigl_itop"}
FULL = {
    "model": Net(norm=True, dropout_rate=0.25),
    "augment": functools.partial(crop_and_flip, mode="zero", pad=2),
}


class Unplugged:
    """Images that are gone when somebody looks: the process ends in the middle of its run."""

    @property
    def labels(self):
        raise KeyboardInterrupt


def reached(run, out):
    return progress.resume(out / "checkpoints", run, loop.create_state(run))


@pytest.mark.parametrize("accumulate", [1, 4])
def test_a_run_that_was_cut_off_ends_as_the_straight_one(accumulate, tmp_path):
    """With batch statistics, dropout and augmentation, to the bit."""
    run = make_run(**FULL, accumulate=accumulate, eval_every=15)
    straight = loop.train(run, tmp_path / "straight", CONFIG, title="")
    cut_off = run._replace(dataset=run.dataset._replace(val=Unplugged()))
    with pytest.raises(KeyboardInterrupt):
        loop.train(cut_off, tmp_path / "run", CONFIG, title="")
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["10"]
    resumed = loop.train(run, tmp_path / "run", CONFIG, title="")
    assert read_metrics(tmp_path / "run") == read_metrics(tmp_path / "straight")
    differ = {"steps_per_second", "peak_memory_mib"}
    assert {k for k in straight if straight[k] != resumed[k]} <= differ
    ours, theirs = (reached(run, tmp_path / name) for name in ("run", "straight"))
    assert bits(ours.state) == bits(theirs.state)
    assert bits(ours.best.variables) == bits(theirs.best.variables)


def test_the_best_model_is_whole_and_is_the_one_that_was_evaluated(tmp_path):
    run = make_run(**FULL, eval_every=1)
    summary = loop.train(run, tmp_path, CONFIG, title="")
    best = reached(run, tmp_path).best
    accuracies = {r["step"]: r["val_accuracy"] for r in read_metrics(tmp_path)[1:]}
    assert summary["best_val_accuracy"] == best.val_accuracy == max(accuracies.values())
    assert best.step == min(s for s, a in accuracies.items() if a == best.val_accuracy)
    assert report.evaluate(run, best.variables, run.dataset.val) == best.val_accuracy
    found = report.evaluate(run, best.variables, run.dataset.test)
    assert found == summary["best_test_accuracy"]
    # With the statistics of that time.
    assert best.step < run.steps
    end = reached(run, tmp_path).state.collections
    assert bits(best.variables["batch_stats"]) != bits(end["batch_stats"])


def test_without_validation_images_the_last_model_is_taken(tmp_path, capfd):
    run = make_run(**FULL, num_val=0)
    summary = loop.train(run, tmp_path, CONFIG, title="")
    assert summary["val_accuracy"] is None and summary["best_val_accuracy"] is None
    assert summary["best_step"] == run.steps
    assert summary["best_test_accuracy"] == summary["test_accuracy"]
    end = reached(run, tmp_path)
    assert bits(end.best.variables) == bits(end.state.variables)
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    records = read_metrics(tmp_path)
    assert [r["step"] for r in records if "density" in r] == [0, 4, 5, 8, 10, 12, 15, 16, 20]
    assert not any("val_accuracy" in record for record in records)
    assert "nan" not in capfd.readouterr().err.lower()  # nor a warning of TensorBoard's writer
    assert (tmp_path / "plot.png").stat().st_size > 10_000
    assert "without validation images" in report.describe(summary | {"out": tmp_path})


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_out_of_range_is_refused(seed, tmp_path):
    with pytest.raises(
        ValueError, match=rf"--seed={seed} must be a whole number in \[0, 4294967295\]"
    ):
        loop.train(make_run(seed=seed), tmp_path / "run", CONFIG, title="")
    assert not (tmp_path / "run").exists()


def test_the_best_is_looked_for_after_the_last_change_of_sparsity():
    gmp = jaxsparse.gmp(sparsity=0.5, total_steps=20, update_interval=4, stop_step=13)
    assert loop.settled_step(make_run(method=gmp)) == 12
    assert loop.settled_step(make_run()) == 0
    # And after DyReLU has gone, whichever is later.
    assert loop.settled_step(make_run(phase=Phase(3, 13))) == 13
    assert loop.settled_step(make_run(method=gmp, phase=Phase(3, 13))) == 13
    assert loop.settled_step(make_run(method=gmp, phase=Phase(3, 9))) == 12
