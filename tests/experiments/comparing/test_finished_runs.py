"""Runs are found in folders and files, however deep, and each counts once."""

import json

import pytest

from experiments.comparing.finished_runs import find_runs, identity
from tests.experiments.written_runs import write_result, write_run


def test_a_run_given_twice_counts_once(tmp_path):
    folder = write_run(tmp_path / "runs" / "a", 0.8)
    file = write_result(tmp_path / "results" / "a.json", 0.8)
    same = write_run(tmp_path / "runs" / "elsewhere", 0.8, data_dir="/data")
    found = find_runs([folder, tmp_path, file, same, folder])
    assert [run.path for run in found.runs] == [folder]
    assert (found.unfinished, found.conflicts) == ([], [])


def test_the_first_of_two_results_of_one_run_counts(tmp_path):
    first, second = (write_run(tmp_path / name, x) for name, x in (("a", 0.8), ("b", 0.7)))
    found = find_runs([tmp_path])
    assert [run.path for run in found.runs] == [first]
    assert found.conflicts == [(first, second)]


def test_unfinished_runs_are_told_apart(tmp_path):
    write_run(tmp_path / "a")
    (write_run(tmp_path / "b", seed=1) / "summary.json").unlink()
    found = find_runs([tmp_path, tmp_path / "b"])
    assert (len(found.runs), found.unfinished) == (1, [tmp_path / "b"])


def test_what_lies_inside_a_run_or_is_something_else_is_not_looked_at(tmp_path):
    folder = write_run(tmp_path / "a")
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "index.json").write_text("{")
    (tmp_path / "analysis.json").write_text('{"points": [1, 2]}')
    (tmp_path / "notes.txt").write_text("mine")
    assert [run.path for run in find_runs([tmp_path]).runs] == [folder]


def test_a_result_file_says_where_it_was_made(tmp_path):
    (run,) = find_runs([write_result(tmp_path / "a.json")]).runs
    assert (run.commit, run.machine) == ("abc1234+", "Some CPU, 2 cores")
    (run,) = find_runs([write_run(tmp_path / "b")]).runs
    assert (run.commit, run.machine) == ("", "")


def test_identity_is_the_data_set_and_the_flags(tmp_path):
    write_run(tmp_path / "a", seed=0, schedule="dense", sparsity=0.5)
    write_run(tmp_path / "b", seed=1, schedule="dense", sparsity=0.9)
    write_run(tmp_path / "c", seed=1, schedule="dense", dataset="full")
    a, b, c = find_runs([tmp_path]).runs
    assert identity(a) != identity(b)
    assert identity(a, without=["seed"]) == identity(b, without=["seed"])  # dense has no sparsity
    assert identity(b) != identity(c)


@pytest.mark.parametrize(
    ("given", "recipe"),
    [({"recipe": None}, "granet"), ({"recipe": "granet"}, "granet"), ({}, None)],
)
def test_the_recipe_stays_in_the_flags(given, recipe, tmp_path):
    """EAST and RigL with the recipe of EAST are compared, though it is the default of one alone."""
    (run,) = find_runs([write_run(tmp_path / "a", **given)]).runs
    assert run.config.get("recipe") == recipe


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{'", "a.json cannot be read: Expecting property"),
        ("[]", "a.json is no result: it has no config and summary"),
        (json.dumps({"config": {"schedule": "rigl"}, "summary": {}}), "a.json has no model in its"),
    ],
)
def test_a_file_that_is_no_result_is_named(content, message, tmp_path):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        find_runs([tmp_path / "a.json"])


def test_nothing_found_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=f"no finished run in {tmp_path}$"):
        find_runs([tmp_path])
    with pytest.raises(ValueError, match="nowhere does not exist; give folders of runs or result"):
        find_runs([tmp_path / "nowhere"])
