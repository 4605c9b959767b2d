"""Runs of a small network: order of the data, cut off and gone on, the best, no validation."""

import functools
import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsparse
from experiments import loop
from experiments.data.augment import crop_and_flip
from experiments.records import progress, report
from experiments.records.metrics import settled_step
from experiments.records.run_folder import read_metrics
from experiments.training.run import Phase
from tests.checkpoint.states import bits
from tests.experiments.small_runs import Net, make_run

pytestmark = pytest.mark.variants  # long, and one Python shows it for both

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


def test_weights_that_the_last_update_broke_are_not_saved(tmp_path):
    """The loss of that step is still finite."""
    rate = lambda count: jnp.where(count == 9, jnp.inf, 0.1)
    run = make_run(tx=optax.sgd(rate), checkpoint_every=5, eval_every=7)
    with pytest.raises(
        ValueError, match="weights are not finite after step 10, which is not saved"
    ):
        loop.train(run, tmp_path, CONFIG, title="")
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["5"]
    assert np.isfinite(read_metrics(tmp_path)[-1]["train_loss"])


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_out_of_range_is_refused(seed, tmp_path):
    with pytest.raises(
        ValueError, match=rf"--seed={seed} must be a whole number in \[0, 4294967295\]"
    ):
        loop.train(make_run(seed=seed), tmp_path / "run", CONFIG, title="")
    assert not (tmp_path / "run").exists()


def test_the_best_is_looked_for_after_the_last_change_of_sparsity():
    gmp = jaxsparse.gmp(sparsity=0.5, total_steps=20, update_interval=4, stop_step=13)
    assert settled_step(make_run(method=gmp)) == 12
    assert settled_step(make_run()) == 0
    # And after DyReLU has gone, whichever is later.
    assert settled_step(make_run(phase=Phase(3, 13))) == 13
    assert settled_step(make_run(method=gmp, phase=Phase(3, 13))) == 13
    assert settled_step(make_run(method=gmp, phase=Phase(3, 9))) == 12


def test_a_run_starts_from_the_masks_it_is_given(tmp_path):
    """GraNet-ST prunes on from them; a method of constant sparsity keeps their number."""
    scores = loop.create_state(make_run()).params
    masks = jaxsparse.magnitude_masks(scores, sparsity=0.25)
    granet = jaxsparse.granet_st(
        sparsity=0.9, initial_sparsity=0.5, total_steps=20, update_interval=4, stop_step=12
    )
    for name, method in {"rigl": make_run().method, "granet": granet}.items():
        run = make_run(method=method, masks=masks)
        assert bits(loop.create_state(run).masks) == bits(masks)
        loop.train(run, tmp_path / name, CONFIG, title="")
    densities = {
        name: [r["density"] for r in read_metrics(tmp_path / name) if "density" in r]
        for name in ("rigl", "granet")
    }
    assert set(densities["rigl"]) == {densities["rigl"][0]}
    assert densities["granet"][0] == densities["rigl"][0] == pytest.approx(0.75, abs=0.01)
    assert densities["granet"][-1] == pytest.approx(0.1, abs=0.01)


def prune_and_rewind(run, out):
    """Trains dense, keeps the larger half of the weights, and trains it again from step 6."""

    def fit(name, method, state=None, **fields):
        stretch = run._replace(method=method, **fields)
        with loop.opened(stretch, out / name, CONFIG, state=state) as (folder, begun):
            return loop.fit(begun, folder).state

    early = fit("early", jaxsparse.dense(total_steps=6))
    dense = jaxsparse.dense(total_steps=20)
    late = fit("late", dense, early.replace(method=dense))
    masks = jaxsparse.magnitude_masks(late.params, sparsity=0.5)
    static = jaxsparse.static(masks=masks, total_steps=20)
    params = jaxsparse.apply_masks(early.params, masks)
    ticket = early.replace(method=static, params=params, masks=masks, explored=masks)
    return fit("ticket", static, ticket)


@pytest.fixture(scope="module")
def rewound(tmp_path_factory):
    """The folder and the end of a driver that was never cut off."""
    out = tmp_path_factory.mktemp("driver")
    return out, prune_and_rewind(make_run(**FULL), out)


# The driver takes 6, 14 and 14 steps, each of which is recorded.
@pytest.mark.parametrize("cut", [4, 21, 33])
def test_a_driver_that_fits_three_times_goes_on_to_the_same_bits(
    cut, rewound, tmp_path, monkeypatch
):
    """Cut off within a stretch, or in the first step of one, when those before have ended."""
    record, run, calls = loop.record, make_run(**FULL), []

    def cut_off(*args):
        calls.append(args[2])
        if len(calls) == cut:
            raise KeyboardInterrupt
        return record(*args)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "record", cut_off)
        with pytest.raises(KeyboardInterrupt):
            prune_and_rewind(run, tmp_path)
    straight, state = rewound
    found = prune_and_rewind(run, tmp_path)
    assert bits(found) == bits(state)
    assert found.sparsity == pytest.approx(0.5, abs=0.01) and int(found.step) == 20
    for name in ("early", "late", "ticket"):
        assert read_metrics(tmp_path / name) == read_metrics(straight / name)
    assert [r["step"] for r in read_metrics(tmp_path / "ticket")] == list(range(6, 21))


@pytest.mark.parametrize("by", ["unit", "layer"])
def test_weights_scaled_to_the_masks_of_the_run(by):
    """The masks are those of the run without it; compiled, as on a mesh, it is the same start."""
    run = make_run(method=jaxsparse.static(sparsity=0.8, total_steps=20), sparse_init=by)
    plain, scaled = loop.create_state(run._replace(sparse_init=None)), loop.create_state(run)
    chex.assert_trees_all_equal(scaled.masks, plain.masks)
    expected = jaxsparse.sparse_init(loop.initial_variables(run)["params"], plain.masks, by=by)
    chex.assert_trees_all_close(scaled.params, expected, rtol=1e-6)
    compiled = jax.jit(functools.partial(loop.create_state, run))()
    chex.assert_trees_all_equal(compiled.masks, plain.masks)
    chex.assert_trees_all_close(compiled.params, expected, rtol=1e-6)
