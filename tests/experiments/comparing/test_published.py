"""Ours beside published numbers: the same methods, and whether they differ."""

import json
import math

import pytest

from experiments import compare
from experiments.comparing import published
from experiments.comparing.finished_runs import find_runs
from experiments.comparing.published import beside, read_published
from experiments.comparing.seeds import group_runs
from experiments.comparing.tables import make_tables
from experiments.options import cli
from experiments.options.schedules import METHODS
from experiments.sweeping.grid import interleaved
from experiments.sweeping.named import grids_of
from tests.experiments.written_runs import write_run

TABLE = {
    "source": "a paper",
    "notes": ["five seeds"],
    "dataset": "sample",
    "models": ["lenet5"],
    "metric": "test_accuracy",
    "flags": {"sparse_init": None},
    "rows": [
        {
            "name": "SET there",
            "schedule": "set",
            "flags": {"distribution": "uniform"},
            "spread": "standard_error",
            "n": 4,
            "percent": {"0.9": [78.0, 0.5], "0.98": [70.0, None]},
        },
        {"name": "DSR", "schedule": None, "spread": "sd", "n": 5, "percent": {"0.9": [81.0, 0.2]}},
    ],
}


@pytest.fixture
def of_paper(tmp_path, monkeypatch):
    folder = tmp_path / "tables"
    folder.mkdir()
    (folder / "paper.json").write_text(json.dumps(TABLE))
    monkeypatch.setattr(published, "FOLDER", folder)
    monkeypatch.setattr(published, "NAMES", ["paper"])


@pytest.fixture
def runs(tmp_path):
    """SET at 90 % has 80, 82 and 84: mean 82, sd 2. There: 78, standard error 0.5 of 4, so sd 1."""
    folder = tmp_path / "runs"
    for seed, accuracy in enumerate((0.80, 0.82, 0.84)):
        flags = {"schedule": "set", "distribution": "uniform"}
        write_run(folder / f"set-{seed}", accuracy, seed=seed, **flags)
        write_run(folder / f"98-{seed}", 0.7, seed=seed, sparsity=0.98, **flags)
    write_run(folder / "erk", 0.85, schedule="set")
    write_run(folder / "unit", 0.86, schedule="set", distribution="uniform", sparse_init="unit")
    return folder


def test_the_table_by_eye(of_paper, runs, capsys):
    """4 points are 4 / sqrt(5) = 1.79 joint standard deviations."""
    argv = ["--published=paper", str(runs)]
    assert cli.run(compare.main, compare.Config, argv) == 0
    *_, text, source, _ = capsys.readouterr().out.split("\n\n")
    assert text == (
        "sample, lenet5: test_accuracy in %, mean ± sd (n), ours beside published; the joint sd is "
        "the root of the sum of both variances\n"
        "                                           sparsity              ours         published"
        "  difference  joint sd  beyond two\n"
        "set                                            90 %         85.00 (1)\n"
        "set distribution=uniform                       90 %  82.00 ± 2.00 (3)  78.00 ± 1.00 (4)"
        "       +4.00      2.24          no\n"
        "                                               98 %  70.00 ± 0.00 (3)         70.00 (4)"
        "       +0.00   unknown     unknown\n"
        "set distribution=uniform sparse_init=unit      90 %         86.00 (1)\n"
        "(DSR)                                          90 %                    81.00 ± 0.20 (5)"
    )
    assert source == "published: a paper\nfive seeds"


@pytest.mark.parametrize(("mean", "beyond"), [(78.0, False), (77.5, True), (86.5, True)])
def test_more_than_two_joint_standard_deviations_are_beyond(mean, beyond, of_paper, runs):
    table = read_published("paper")
    (table_of_ours,) = make_tables(group_runs(find_runs([runs]).runs))
    cell = table.rows[0].cells[0.9]
    row = table.rows[0]._replace(cells={0.9: cell._replace(mean=mean / 100)})
    lines = beside(table._replace(rows=(row,)), table_of_ours.rows)
    (line,) = [line for line in lines if line.ours and line.theirs]
    assert (line.joint_sd, line.is_beyond) == (pytest.approx(0.05**0.5 / 10), beyond)


def test_in_markdown(of_paper, runs, capsys):
    assert (
        cli.run(compare.main, compare.Config, ["--published=paper", "--markdown", str(runs)]) == 0
    )
    printed = capsys.readouterr().out
    assert (
        "|  | sparsity | ours | published | difference | joint sd | beyond two |\n| ---" in printed
    )
    assert "| (DSR) | 90 % |  | 81.00 ± 0.20 (5) |  |  |  |\n" in printed


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("papre", "unknown published table 'papre'; did you mean 'paper'?"),
        ("paper", "--published=paper has sample, lenet5; the runs are of sample, lenet_300_100"),
    ],
)
def test_what_does_not_fit_is_one_line(name, message, of_paper, tmp_path, capsys):
    folder = write_run(tmp_path / "other", model="lenet_300_100")
    assert cli.run(compare.main, compare.Config, [f"--published={name}", str(folder)]) == 2
    assert capsys.readouterr().err == f"error: {message}\n"


@pytest.mark.parametrize("name", published.NAMES)
def test_tables_are_of_methods_that_are_here_or_known_to_lack(name):
    table = read_published(name)
    for row in table.rows:
        assert row.schedule in (*METHODS, "snip", None)
        for sparsity, cell in row.cells.items():
            assert 0 <= sparsity < 1 and 0 < cell.mean < 1
            assert math.isnan(cell.sd) or 0 < cell.sd < 0.1


def test_the_table_of_mnist():
    """Standard errors of five runs became standard deviations."""
    rows = {row.name: row for row in read_published("mnist").rows}
    momentum = rows["sparse momentum"].cells[0.95]
    assert momentum == pytest.approx((0.9853, 0.0003 * 5**0.5, 5))
    assert rows["static random"].cells[0.99] == pytest.approx((0.4949, 0.059, 5))
    assert math.isnan(rows["SET"].cells[0.95].sd)


def test_the_grid_of_mnist_has_a_run_for_every_published_cell(tmp_path):
    for job in interleaved(grids_of("mnist")):
        if job.flags["seed"] == 0:
            flags = {"weights": "pytorch", "sparsity": 0.0} | job.flags
            write_run(tmp_path / job.name, dataset="mnist", **flags)
    ours, normed = make_tables(group_runs(find_runs([tmp_path]).runs))
    published = read_published("mnist")
    assert (ours.title, normed.title) == tuple(f"mnist, {model}" for model in published.models)
    lines = beside(published, ours.rows)
    assert {line.label for line in lines if line.ours is None} == {"(DSR)"}
    theirs = beside(published, normed.rows, missing=False)
    assert [line.sparsity for line in theirs if line.theirs] == [
        0.9, 0.95, 0.96, 0.97, 0.98, 0.99, 0.9, 0.95, 0.96, 0.99, 0.98, 0.99
    ]  # fmt: skip
    # Dense has one cell, SNIP two; three of the four others also have variants at two sparsities.
    assert sum(bool(line.ours and line.theirs) for line in lines) == 1 + 2 + 4 * 6 + 3 * 2
