"""Small files of finished runs: read back, damaged, with the commits of all starts."""

import json
import subprocess

import pytest

from experiments.sweeping import result_file
from experiments.sweeping.result_file import (
    Result,
    flags_that_differ,
    read_result,
    result_of,
    write_result,
)

RESULT = Result({"seed": 0}, {"test_accuracy": 0.5, "val": None}, "4367ec9", {"cores": 1})


def test_a_result_is_read_back(tmp_path):
    path = tmp_path / "new" / "a.json"
    write_result(path, RESULT)
    assert read_result(path) == RESULT
    assert json.loads(path.read_text()) == RESULT._asdict()
    assert [file.name for file in path.parent.iterdir()] == ["a.json"]


def test_a_result_that_cannot_be_written_leaves_the_old_one(tmp_path):
    path = tmp_path / "a.json"
    write_result(path, RESULT)
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_result(path, RESULT._replace(summary={"test_accuracy": float("nan")}))
    assert read_result(path) == RESULT


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "a.json cannot be read: Expecting value"),
        ('{"config": {}', "a.json cannot be read: Expecting ','"),
        ("[]", "a.json cannot be read: it holds no object"),
        ("{}", "a.json is no result of a run, which has config, summary, commit, machine"),
        (
            '{"config": 1, "summary": {}, "commit": "", "machine": {}}',
            "a.json is no result of a run",
        ),
    ],
)
def test_a_damaged_result_is_named(content, message, tmp_path):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(ValueError, match=message) as raised:
        read_result(tmp_path / "a.json")
    assert str(raised.value).startswith(str(tmp_path))


def test_flags_differ_by_value_and_places_do_not_count():
    config = {"sparsity": 0.9, "steps": 100, "learning_rate": None, "data_dir": "a"}
    assert flags_that_differ(config, {"sparsity": 0.90, "steps": 100, "data_dir": "b"}) == []
    assert flags_that_differ(config, {"learning_rate": 0.1, "sparsity": 0.95}) == [
        ("learning_rate", None, 0.1),
        ("sparsity", 0.9, 0.95),
    ]
    assert flags_that_differ(config, {"out": "x", "checkpoint_every": 5}) == []


def finished(folder):
    folder.mkdir(parents=True)
    config = {"seed": 3, "out": "x", "data_dir": "y", "checkpoint_every": 5, "plan": False}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "summary.json").write_text('{"test_accuracy": 0.5}')
    return folder


def test_the_result_of_a_folder(tmp_path):
    result = result_of(finished(tmp_path / "run"), [0, 1])
    assert result.config == {"seed": 3}  # nothing of where it lay
    assert result.summary == {"test_accuracy": 0.5}
    assert result.machine.keys() == {"cpu", "cores", "python"}
    assert result.machine["cores"] == 2
    assert result.commit == result_file.commit()


def test_all_commits_that_took_part_are_in_the_result(tmp_path):
    folder = tmp_path / "sweep" / "run"
    for commit in ("aaa", "aaa", "bbb+", "aaa", "ccc"):
        result_file.note_start(folder, commit)
    assert not folder.exists()
    assert result_of(finished(folder), [0]).commit == "aaa bbb+ ccc"


def test_the_commit_of_this_checkout():
    asked = [
        "git",
        "-C",
        str(result_file.__file__).rsplit("/", 1)[0],
        "rev-parse",
        "--short",
        "HEAD",
    ]
    done = subprocess.run(asked, capture_output=True, text=True)
    assert result_file.commit().removesuffix("+") == done.stdout.strip()  # "" where there is no git


@pytest.mark.parametrize("missing", ["config.json", "summary.json"])
def test_an_unfinished_folder_has_no_result(missing, tmp_path):
    (finished(tmp_path / "run") / missing).unlink()
    with pytest.raises(FileNotFoundError, match=missing):
        result_of(tmp_path / "run", [0])
