"""The levels of instructions below this machine's best one compute the same."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kernels import sanitize

FILES = [
    Path(__file__).with_name(f"test_{name}.py")
    for name in ("windows", "elementwise", "interleaving", "chunks", "drawn")
]


@pytest.mark.processes
@pytest.mark.long
@pytest.mark.parametrize("level", sanitize.levels()[1:])
def test_lower_levels(level):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", *map(str, FILES)]
    environment = os.environ | {"JAXSPARSE_KERNELS": level}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
