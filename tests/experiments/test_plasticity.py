"""A tiny study on the sample: its numbers, and that it goes on after being cut off."""

import json

import pytest

from experiments import plasticity
from experiments.options import cli

FLAGS = "--model=lenet_300_100 --steps=8 --steps_after=2 --at 0.25 1.0 --rates 0.9"


@pytest.mark.variants
def test_a_study_that_was_cut_off_comes_to_the_same(tmp_path, capsys):
    flags = [*FLAGS.split(), f"--out={tmp_path}", "--scopes", "layer"]
    assert cli.run(plasticity.main, plasticity.Config, flags) == 0
    table = capsys.readouterr().out
    file = tmp_path / "seed0" / "cells.jsonl"
    whole = file.read_text()
    cells = [json.loads(line) for line in whole.splitlines()]
    assert [(c["checkpoint"], c["regenerate"]) for c in cells] == [
        (2, False),
        (2, True),
        (8, False),
        (8, True),
    ]
    assert [round(c["sparsity"], 3) for c in cells] == [0.9, 0.0, 0.9, 0.0]
    assert cells[0]["acc_pruned"] == cells[1]["acc_pruned"]  # what regrows is 0
    assert cells[0]["control_after"] == cells[1]["control_after"]
    for name in ("over_training", "over_rates"):
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000

    file.write_text(whole[: len(whole) // 2])
    assert cli.run(plasticity.main, plasticity.Config, flags) == 0
    assert file.read_text() == whole
    assert capsys.readouterr().out.endswith(table)
    assert cli.run(plasticity.main, plasticity.Config, [*flags, "--batch_size=64"]) == 2
    assert "with --batch_size=128, not 64" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--sparsity=1", "--sparsity=1.0 must be in [0, 1)"),
        ("--rates 0.5 1.5", "--rates=1.5 must be in [0, 1)"),
        ("--at 0.5 0.1", "--at gives the steps [1000, 200] of 2000; they must ascend"),
        ("--at 0.5 0.5", "--at takes at least one value, and each once"),
        ("--scopes block", "unknown scope 'block'"),
        ("--regrow=maybe", "unknown regrow 'maybe'"),
        ("--steps_after=0", "--steps_after=0 must be a whole number, at least 1"),
    ],
)
def test_a_wrong_flag_is_one_line_and_nothing_is_written(flag, message, tmp_path, capsys):
    flags = ["--steps=2000", *flag.split(), f"--out={tmp_path / 'study'}"]
    assert cli.run(plasticity.main, plasticity.Config, flags) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1
    assert not (tmp_path / "study").exists()
