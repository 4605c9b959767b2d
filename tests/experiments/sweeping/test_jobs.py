"""Jobs: their flags as the script takes them, and results that are not taken for another's."""

import json

import pytest

from experiments.options import cli
from experiments.sweeping import jobs
from experiments.sweeping.grid import Job
from experiments.sweeping.kinds import kind_of
from experiments.sweeping.result_file import Result, read_result, write_result

FLAGS = {"model": "lenet_300_100", "schedule": "static", "seed": 0, "sparsity": 0.9, "steps": 60}
JOB = Job("fashion_mnist", "lenet_300_100-static-0.9-seed0", FLAGS)


def result(job=JOB, dataset="fashion_mnist_sample", **changes):
    config = cli.as_dict(kind_of(job).config_of(job)) | changes
    return Result(config, {"dataset": dataset, "test_accuracy": 0.5}, "abc", {"cores": 1})


def test_flags_are_parsed_as_the_script_does():
    config = kind_of(JOB).config_of(JOB)
    assert (config.model, config.steps, config.sparsity) == ("lenet_300_100", 60, 0.9)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"stpes": 5}, "unknown flag '--stpes'; did you mean '--steps'"),
        ({"model": "lenet"}, "unknown model 'lenet'; did you mean 'lenet5'"),
        ({"drop_fraction": 0.1}, "--drop_fraction is no option of static"),
    ],
)
def test_flags_that_the_script_does_not_take(flags, message):
    with pytest.raises(ValueError, match=message):
        kind_of(JOB).config_of(JOB._replace(flags=FLAGS | flags))


def test_a_run_is_finished_when_its_result_is_there(tmp_path):
    assert not jobs.is_finished(JOB, tmp_path)
    write_result(tmp_path / f"{JOB.name}.json", result())
    assert jobs.is_finished(JOB, tmp_path)


@pytest.mark.parametrize(
    ("job", "found", "message"),
    [
        (
            JOB,
            result(steps=61),
            "is the result of a run with --steps=61, not 60; pass another --re",
        ),
        (
            JOB,
            result(vmapped=True),
            "run with --vmap_seeds, not without it; pass another --results",
        ),
        (JOB._replace(vmapped=True), result(), "run without --vmap_seeds, not with it"),
        (JOB, result(dataset="fashion_mnist"), "on fashion_mnist, not .*; pass --data_dir=DIR to"),
    ],
)
def test_the_result_of_another_run_is_refused(job, found, message, tmp_path):
    write_result(tmp_path / f"{JOB.name}.json", found)
    with pytest.raises(ValueError, match=message):
        jobs.is_finished(job, tmp_path)


def test_a_finished_folder_is_read_and_not_run_again(tmp_path):
    folder = tmp_path / "out" / JOB.name
    folder.mkdir(parents=True)
    config = json.loads(json.dumps(cli.as_dict(kind_of(JOB).config_of(JOB)), default=str))
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "summary.json").write_text(json.dumps(result().summary))
    (found,) = jobs.run([JOB], tmp_path / "out", frozenset({0}))
    assert found.summary == result().summary
    assert [path.name for path in folder.parent.iterdir()] == [JOB.name]  # no log of a process
    jobs.keep(JOB, found, tmp_path / "out", tmp_path / "results")
    assert read_result(tmp_path / "results" / f"{JOB.name}.json") == found
    other = JOB._replace(flags=FLAGS | {"seed": 1})
    with pytest.raises(ValueError, match="holds a run with --seed=0, not 1; pass another --out"):
        jobs.keep(other, found, tmp_path / "out", tmp_path / "results")
