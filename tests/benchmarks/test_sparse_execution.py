"""The benchmark as a user calls it, on a small network: its output, not its times."""

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import sparse_execution

SCRIPT = Path(sparse_execution.__file__)


@pytest.mark.processes
@pytest.mark.long
def test_the_command_ends_with_a_line_of_json():
    command = [sys.executable, SCRIPT, "--model=resnet8", "--batch=2", "--sparsity=0.9"]
    done = subprocess.run(
        [*command, "--rounds=1", "--retries=0", "--json", "-"],
        capture_output=True,
        text=True,
        check=True,
    )
    *lines, last = done.stdout.splitlines()
    found = json.loads(last)
    assert (found["model"], found["batch"], found["sparsity"]) == ("resnet8", 2, 0.9)
    for what in ("train", "infer"):
        for form in ("", "dense_", "stock_"):
            assert found[f"{form}{what}_ms"] > 0
            assert found[f"{form}{what}_temp_bytes"] > 0
        ratio = found[f"dense_{what}_ms"] / found[f"{what}_ms"]
        assert math.isclose(found[f"{what}_speedup"], ratio)  # of one round
        assert found[f"{what}_difference"] < 1e-3
        assert found[f"stock_{what}_difference"] < 1e-3
    assert found["optimizer_bytes"] < found["dense_optimizer_bytes"] / 2
    rows = [line for line in lines if line.startswith("| resnet8 | 2 | 90 % |")]
    assert [row.split("|")[4].strip() for row in rows] == ["train", "infer"] * 2
    for row in rows[:2]:
        assert row.count("|") == sparse_execution.SPEED.count("|")
    for row in rows[2:]:
        assert row.count("|") == sparse_execution.COST.count("|")


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--model=resnet7", "resnet7 must be one of resnet8, resnet20"),
        ("--sparsity=0.5,1", r"1.0 must be in \[0.0, 1.0\)"),
        ("--batch=0", "0 must be in \\[1, "),
        ("--batch=many", "invalid int value: 'many'"),
        ("--rounds=0", "--rounds=0 must be at least 1"),
    ],
)
def test_wrong_flags_are_named(flag, message, capsys):
    with pytest.raises(SystemExit):
        sparse_execution.main([flag])
    assert re.search(message, capsys.readouterr().err)
