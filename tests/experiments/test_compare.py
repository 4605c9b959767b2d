"""Tables of many runs, from folders and result files whose statistics are checked by eye."""

import csv
import json

import pytest
from matplotlib.image import imread

from experiments import compare
from experiments.options import cli
from tests.experiments.written_runs import config_and_summary, write_result, write_run


@pytest.fixture
def many(tmp_path):
    """Folders, deep and flat, and files: 3 seeds of rigl, 2 of set, one of it sparser, dense."""
    for seed, accuracy in enumerate((0.80, 0.82, 0.84)):
        write_run(tmp_path / "a" / "deep" / f"rigl-{seed}", accuracy, seed=seed)
    write_run(tmp_path / "a" / "set-1", 0.81, schedule="set", seed=1, ratios=(0.1, 0.1))
    write_result(tmp_path / "a" / "set-2.json", 0.79, schedule="set", seed=2, ratios=(0.3, 0.1))
    write_result(tmp_path / "a" / "set-98.json", 0.7, schedule="set", sparsity=0.98)
    dense = {"schedule": "dense", "ratios": (1.0, 1.0)}
    write_run(tmp_path / "a" / "dense-0", 0.9, seed=0, **dense)
    write_run(tmp_path / "a" / "dense-1", 0.91, seed=1, sparsity=0.98, **dense)  # it has none
    return tmp_path / "a"


def run(*argv):
    return cli.run(compare.main, compare.Config, [str(x) for x in argv])


def tables(text):
    """The tables of what was printed, each a list of lines of cells."""
    blocks = [block.splitlines() for block in text.strip().split("\n\n")]
    return [
        [[c.strip() for c in row.split("  ") if c.strip()] for row in block[1:]]
        for block in blocks
        if len(block) > 1
    ]


def test_the_table_by_eye(many, capsys):
    assert run(many) == 0
    assert capsys.readouterr().out == (
        "sample, lenet5: test_accuracy in %, mean ± sd (n)\n"
        "sparsity               0 %              90 %       98 %\n"
        "dense     90.50 ± 0.71 (2)\n"
        "set                         80.00 ± 1.41 (2)  70.00 (1)\n"
        "rigl                        82.00 ± 2.00 (3)\n"
        "\n"
        "sample, lenet5: FLOPs of training / of inference, dense = 1\n"
        "sparsity            0 %           90 %           98 %\n"
        "dense     1.000 / 1.000\n"
        "set                      0.200 / 0.100  0.200 / 0.100\n"
        "rigl                     0.200 / 0.100\n"
        "\n"
        "device: cpu; jax: 0.10.2; commit: abc1234+; machine: Some CPU, 2 cores\n"
    )
    assert imread(many / "compare-test_accuracy.png").shape[1] == 1_200


def test_runs_stand_under_the_sparsity_that_they_had(tmp_path, capsys):
    """2:4 in one layer: 95 % was asked for. Rounding to whole weights changes no column."""
    for name, had, flags in (
        ("plain", 0.9502, {"sparsity": 0.95}),
        ("pattern", 0.55231, {"sparsity": 0.95, "pattern": "2:4"}),
        ("dense", 0.0, {"schedule": "dense"}),
    ):
        folder = write_run(tmp_path / name, **flags)
        summary = json.loads((folder / "summary.json").read_text())
        (folder / "summary.json").write_text(json.dumps(summary | {"sparsity": had}))
    assert run("--against=dense", tmp_path) == 0
    accuracies, differences, *_ = tables(capsys.readouterr().out)
    assert accuracies[0] == ["sparsity", "0 %", "55.23 %", "95 %"]
    assert [row[0] for row in accuracies[1:]] == [
        "dense",
        "rigl",
        "rigl sparsity=0.95 pattern=2:4",
    ]
    assert len(differences) == 3  # the dense run is the partner of both


def test_runs_that_share_weights_stand_under_the_sparsity_without(tmp_path, capsys):
    for name, had, flags in (
        ("plain", {"sparsity": 0.99}, {}),
        ("shared", {"sparsity": 0.981, "unshared_sparsity": 0.99}, {"weight_sharing": True}),
        ("dense", {"sparsity": 0.0, "unshared_sparsity": 0.475}, {"schedule": "dense"}),
    ):
        folder = write_run(tmp_path / name, sparsity=0.99, **flags)
        summary = json.loads((folder / "summary.json").read_text())
        (folder / "summary.json").write_text(json.dumps(summary | had))
    assert run("--against=rigl", tmp_path) == 0
    accuracies, *_ = tables(capsys.readouterr().out)
    assert accuracies[0] == ["sparsity", "0 %", "99 %"]
    assert {row[0] for row in accuracies[1:]} == {"dense", "rigl", "rigl weight_sharing=True"}


def test_markdown(many, capsys):
    assert run("--markdown", many) == 0
    assert capsys.readouterr().out.split("\n\n")[:2] == [
        "sample, lenet5: test_accuracy in %, mean ± sd (n)",
        "| sparsity | 0 % | 90 % | 98 % |\n"
        "| --- | --- | --- | --- |\n"
        "| dense | 90.50 ± 0.71 (2) |  |  |\n"
        "| set |  | 80.00 ± 1.41 (2) | 70.00 (1) |\n"
        "| rigl |  | 82.00 ± 2.00 (3) |  |",
    ]


def test_differences_by_seed(many, capsys):
    """Seeds 1 and 2: set - rigl is -1 and -5 points: mean -3, sd 2.83, standard error 2."""
    assert run(many, "--against=rigl") == 0
    difference = tables(capsys.readouterr().out)[1]
    assert difference == [["sparsity", "90 %"], ["set", "-3.00 ± 2.00 (2)"]]
    assert run(many, "--against=dense") == 0
    # rigl 80 - 90 and 82 - 91; set has seed 1 in common at 90 % and seed 0 at 98 %.
    assert tables(capsys.readouterr().out)[1] == [
        ["sparsity", "90 %", "98 %"],
        ["set", "-10.00 (1)", "-20.00 (1)"],
        ["rigl", "-9.50 ± 0.50 (2)"],
    ]


def test_the_numbers_as_a_file(many, tmp_path):
    path = tmp_path / "new" / "numbers.csv"
    assert run(many, f"--csv={path}", "--against=rigl", f"--out={tmp_path}/plots") == 0
    rows = list(csv.DictReader(path.read_text().splitlines()))
    sought = ("row", "sparsity", "n", "seeds", "pairs")
    assert [tuple(row[name] for name in sought) for row in rows] == [
        ("dense", "0.0", "2", "0 1", "0"),
        ("set", "0.9", "2", "1 2", "2"),
        ("set", "0.98", "1", "0", "0"),
        ("rigl", "0.9", "3", "0 1 2", "0"),
    ]
    assert float(rows[1]["mean"]) == pytest.approx(0.8)
    assert float(rows[1]["sd"]) == pytest.approx(0.0141421356)
    assert float(rows[1]["difference"]) == pytest.approx(-0.03)
    assert float(rows[1]["standard_error"]) == pytest.approx(0.02)
    assert rows[2]["sd"] == rows[2]["difference"] == ""
    assert (tmp_path / "plots" / "compare-test_accuracy.png").exists()


def test_other_lengths_and_flags_are_rows_of_their_own(tmp_path, capsys):
    write_run(tmp_path / "a", 0.1, seed=0)
    write_run(tmp_path / "b", 0.2, seed=1, steps=200)
    write_run(tmp_path / "c", 0.3, seed=1, update_interval=5)
    write_run(tmp_path / "d", 0.4, seed=1, sparsity=0.95)
    write_run(tmp_path / "e", 0.5, seed=1, model="lenet_300_100", steps=300)
    write_run(tmp_path / "f", 0.6, seed=1, dataset="full", data_dir="data", steps=400)
    assert run(tmp_path) == 0
    text = capsys.readouterr().out
    full, lenet5, other = tables(text)[::2]
    assert full == [["sparsity", "90 %"], ["rigl", "60.00 (1)"]]
    assert other == [["sparsity", "90 %"], ["rigl", "50.00 (1)"]]
    assert lenet5 == [
        ["sparsity", "90 %", "95 %"],
        ["rigl steps=100", "10.00 (1)", "40.00 (1)"],
        ["rigl steps=100 update_interval=5", "30.00 (1)"],
        ["rigl steps=200", "20.00 (1)"],
    ]
    titles = [line.split(":")[0] for line in text.splitlines() if "mean" in line]
    assert titles == ["full, lenet5", "sample, lenet5", "sample, lenet_300_100"]


def test_a_run_with_two_results_is_said(tmp_path, capsys):
    write_run(tmp_path / "runs" / "elsewhere", 0.8)
    write_run(tmp_path / "runs" / "other", 0.7)
    assert run(tmp_path / "runs") == 0
    captured = capsys.readouterr()
    assert tables(captured.out)[0][1] == ["rigl", "80.00 (1)"]
    runs = tmp_path / "runs"
    assert captured.err.splitlines()[0] == (
        f"{runs}/other has the flags of {runs}/elsewhere and another test accuracy; left out"
    )


def test_unfinished_runs_are_one_line(many, capsys):
    for name in ("cut", "off"):
        (write_run(many / name, seed=7) / "summary.json").unlink()
    assert run(many) == 0
    captured = capsys.readouterr()
    assert captured.err.splitlines()[0] == f"unfinished, left out: {many}/cut, {many}/off"
    assert "82.00 ± 2.00 (3)" in captured.out


def test_other_metrics(many, capsys):
    assert run(many, "--metric=train_flops_ratio") == 0
    assert tables(capsys.readouterr().out)[0][2] == ["set", "0.200 ± 0.141 (2)", "0.200 (1)"]
    assert (many / "compare-train_flops_ratio.png").exists()


def test_runs_that_do_not_know_their_flops_have_no_table_of_them(tmp_path, capsys):
    path = write_run(tmp_path / "a")
    (path / "summary.json").write_text('{"dataset": "sample", "test_accuracy": 0.5}')
    assert run(tmp_path, f"--csv={tmp_path}/x.csv") == 0
    assert "FLOPs" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "no RUN given"),
        (["{}/nothing"], "{}/nothing does not exist; give folders of runs"),
        (["{}/empty"], "no finished run in {}/empty"),
        (["{}/cut"], "no finished run in {}/cut; unfinished: {}/cut/a"),
        (["{}/damaged"], "{}/damaged/a.json cannot be read: Expecting property"),
        (["{}/damaged/b"], "{}/damaged/b/config.json cannot be read: 'utf-8' codec"),
        (["{}/text.md"], "{}/text.md is no result: it is no JSON file"),
        (["{}/good", "{}/other.json"], "{}/other.json is no result: it has no config and summary"),
        (["{}/lacking.json"], "{}/lacking.json has no seed in its config"),
        (["{}/good", "--metric=test_acuracy"], "unknown metric 'test_acuracy'; did you mean 'tes"),
        (["{}/good", "--metric=alarms"], "unknown metric 'alarms'"),
        (["{}/good", "--metric=val_accuracy"], "unknown metric 'val_accuracy'; did you mean 'tes"),
        (["{}/some", "--metric=val_accuracy"], "val_accuracy of {}/some/b is null; leave the run"),
        (["{}/good", "--against=rigle"], "unknown method 'rigle'; did you mean 'rigl'?"),
        (["{}/good", "--against=set"], "unknown method 'set'; there are rigl"),
        (["{}/good", "--runs=x"], "unknown flag '--runs'"),
        (["{}/good", "--metric=a", "b"], "'b'; flags are written --flag=value, and all others sta"),
        (["{}/good", "--out={}/other.json/x"], "other.json"),
    ],
)
def test_bad_input_is_one_line(argv, message, tmp_path, capsys):
    write_run(tmp_path / "good")
    (tmp_path / "empty").mkdir()
    (write_run(tmp_path / "cut" / "a") / "summary.json").unlink()
    (write_run(tmp_path / "damaged" / "b") / "config.json").write_bytes(b"\xff")
    (tmp_path / "damaged" / "a.json").write_text("{'")
    (tmp_path / "other.json").write_text("[]")
    (tmp_path / "text.md").write_text("# Text")
    lacking = {"config": {"schedule": "rigl", "model": "lenet5"}, "summary": {"dataset": "sample"}}
    (tmp_path / "lacking.json").write_text(json.dumps(lacking))
    write_run(tmp_path / "some" / "b", seed=1)
    summary = config_and_summary()[1] | {"val_accuracy": 0.5}
    (write_run(tmp_path / "some" / "a") / "summary.json").write_text(json.dumps(summary))

    assert run(*(x.format(tmp_path) for x in argv)) == 2
    complaint = capsys.readouterr().err.splitlines()
    assert len(complaint) == 1
    assert message.replace("{}", str(tmp_path)) in complaint[0]


def test_help_says_what_every_argument_is(capsys):
    with pytest.raises(SystemExit):
        cli.parse(compare.Config, ["--help"])
    text = capsys.readouterr().out
    assert "RUN..." in text and "--runs" not in text
    for name in ("metric", "against", "markdown", "csv", "out"):
        assert f"--{name}" in text
