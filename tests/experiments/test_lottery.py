"""The driver's flags, and rounds and ablations of a LeNet on the shipped sample."""

import json

import pytest

from experiments import ablations, lottery
from experiments.comparing.finished_runs import find_runs
from experiments.options import cli
from experiments.sweeping import jobs
from experiments.sweeping.grid import Tickets
from experiments.tickets import sources
from jaxsparse.checkpoint import restore_part
from tests.checkpoint.states import bits


def run(capsys, *flags):
    """The exit status, and what was printed."""
    status = cli.run(lottery.main, lottery.Config, list(flags))
    printed = capsys.readouterr()
    return status, printed.out + printed.err


def test_the_plan_says_every_density(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, text = run(capsys, "--rounds=20", "--plan")
    assert status == 0
    lines = {line.split()[0]: line.split()[1:] for line in text.splitlines()}
    assert lines["0"] == ["1.000000", "0", "%", "266,200"]
    assert lines["10"] == ["0.107378", "89.26", "%", "28,584"]
    assert lines["20"] == ["0.011533", "98.85", "%", "3,070"]
    status, text = run(
        capsys,
        "--rounds=1",
        "--plan",
        "--scope=layer",
        "--rates=Dense_2=0.1",
        "--model=lenet_300_100",
    )
    assert text.splitlines()[-1].split()[-3:] == ["188,160", "24,000", "900"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--rate=1"], "--rate=1.0 must be in (0, 1)"),
        (["--rate=0"], "--rate=0.0 must be in (0, 1)"),
        (["--rounds=0"], "--rounds=0 must be a whole number, at least 1"),
        (["--rounds=99"], "--rounds=99 is more than rate 0.2 allows: round 51 would leave 4 of"),
        (["--seeds=0"], "--seeds=0 must be a whole number, at least 1"),
        (["--rewind_step=50", "--steps=50"], "--rewind_step=50 must be in [0, 49], below --steps"),
        (["--rewind_step=-1"], "--rewind_step=-1 must be in [0, 1999], below --steps"),
        (["--arm=rewnd"], "unknown arm 'rewnd'; did you mean 'rewind'?"),
        (["--scope=all"], "--scope=all must be 'global' or 'layer'"),
        (["--scope=layer", "--min_keep=3"], "--min_keep=3 needs scope 'global'"),
        (["--rates=fc=0"], "--rates=fc is the first match of no leaf; there are Dense_0/kernel"),
        (["--rates=Dense=1"], "--rates=Dense=1.0 must have a rate in [0, 1)"),
        (["--rates=0.1"], "--rates takes REGEX=RATE, not '0.1'"),
        (["--pattern=2:4"], "--pattern=2:4 fixes the density of Dense_0/kernel"),
        (["--model=lenet"], "unknown model 'lenet'; did you mean 'lenet5'?"),
        (["--experiment=fashion"], "unknown experiment 'fashion'; did you mean 'fashion_mnist'?"),
        (["--flags=sparsity=0.5"], "--flags takes no sparsity"),
        (["--flags=dyrelu=True"], "--flags takes no dyrelu"),
        (["--flags=batchsize=3"], "unknown flag '--batchsize'; did you mean '--batch_size'?"),
        (["--learning_rate=-1"], "--learning_rate=-1.0 must be in [0, inf)"),
        (["--sanity", "--learning_rates", "0.1", "-1"], "--learning_rate=-1.0 must be in [0, inf)"),
        (["--flags=batch_size=9999"], "--batch_size=9999 must be a whole number in [1, 4500]"),
        (["--data_dir=nowhere"], "Fashion-MNIST: train-images-idx3-ubyte.gz"),
        (["--learning_rates", "0.1"], "--learning_rates=(0.1,) needs --sanity"),
        (["--sanity", "--arm=fine_tuning"], "--arm=fine_tuning: --sanity asks about the initial"),
        (["--sanity", "--experiment=cifar", "--model=vgg16"], "--model=vgg16 has no widths"),
    ],
)
def test_flags_that_cannot_work_are_refused_before_anything_is_written(
    flags, message, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    status, text = run(capsys, *flags)
    assert (status, text.count("\n")) == (2, 1)
    assert text.startswith(f"error: {message}")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    out = tmp_path_factory.mktemp("lottery") / "run"
    config = lottery.Config(rounds=1, rate=0.9, steps=8, eval_every=8, checkpoint_every=0, out=out)
    return config, lottery.train(config)


@pytest.mark.variants
def test_the_folder_of_all_rounds(trained):
    config, summary = trained
    kept = json.loads((config.out / "summary.json").read_text())
    assert kept.keys() == summary.keys() - {"out"}
    assert (kept["method"], kept["steps"], kept["seeds"]) == ("imp", 8, [0])
    assert [row["density"] for row in summary["rounds"]] == [1.0, 0.1]
    assert [row["num_active"] for row in summary["rounds"]] == [266_200, 26_620]
    assert all(row["test_accuracy"]["mean"] > 0.3 for row in summary["rounds"])  # chance is 0.1
    assert (config.out / "plot.png").stat().st_size > 10_000
    assert "0.100000   26,620" in lottery.describe(summary)
    with pytest.raises(ValueError, match="holds a finished run"):
        lottery.train(config)


@pytest.mark.variants
def test_retrained_from_its_own_weights_a_round_of_the_original_paper_comes_out_again(
    trained, tmp_path
):
    """Since k = 0: the ablation "own" is the same run, from masks in a checkpoint."""
    folder = trained[0].out / "seed0" / "round01"
    config = ablations.Config(run=folder, others=(folder,), arms=("own",), out=tmp_path / "arms")
    summary = ablations.train(config)
    params = lambda path: bits(restore_part(path / "checkpoints", "state/params"))
    assert params(tmp_path / "arms" / "own") == params(folder)
    assert summary["arms"]["own"] == summary["arms"]["as trained"]
    assert summary["layers"]["total"] == [0.1, 0.1]
    assert "overlap with the first" in ablations.describe(summary)
    assert ablations.arms_of(ablations.Config()) == ["own", "shuffle", "reinit"]


@pytest.mark.variants
def test_a_sweep_keeps_a_round_as_it_keeps_a_run(trained, tmp_path):
    out, results = trained[0].out, tmp_path / "results"
    given = {"rounds": 1, "rate": 0.9, "steps": 8, "eval_every": 8}
    (job,) = Tickets("lenet_300_100", ("rewind",), (1,), 1, given).jobs()
    sweep = tmp_path / "sweep"
    sweep.mkdir()
    (sweep / job.process).symlink_to(out)
    (result,) = jobs.run([job], sweep, frozenset({0}))
    jobs.keep(job, result, sweep, results)
    assert jobs.is_finished(job, results)
    (found,) = find_runs([results]).runs
    assert (found.config["schedule"], found.config["sparsity"]) == ("imp_rewind", 0.9)
    assert found.config["rate"] == 0.9
    assert found.summary["num_active"] == 26_620
    other = job._replace(flags=job.flags | {"rewind_step": 4})
    with pytest.raises(
        ValueError, match="is the result of a run without --rewind_step, not with 4"
    ):
        jobs.is_finished(other, results)


@pytest.mark.variants
def test_folders_that_are_no_sources_are_refused(trained, tmp_path):
    out = trained[0].out
    for path, message in [
        (tmp_path, "is no folder of a finished run: it has no config.json"),
        (out, "holds many runs; give the folder of one, such as a round"),
        (out / "seed0" / "round00", "holds a dense run, whose masks say nothing"),
    ]:
        with pytest.raises(ValueError, match=message):
            sources.read(path)
    with pytest.raises(ValueError, match="--run is missing"):
        ablations.read(ablations.Config())
    with pytest.raises(ValueError, match="--arms swap needs --others"):
        ablations.read(ablations.Config(run=out, arms=("swap",)))
    with pytest.raises(ValueError, match="unknown arm 'shufle'; did you mean 'shuffle'?"):
        ablations.read(ablations.Config(run=out, arms=("shufle",)))
    with pytest.raises(ValueError, match="--draws=0 must be a whole number, at least 1"):
        ablations.read(ablations.Config(run=out, draws=0))
