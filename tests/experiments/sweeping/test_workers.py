"""Cores are shared out, and what a script that fails has printed last is in the error."""

import os
import subprocess
import sys

import pytest

from experiments.sweeping import workers
from experiments.sweeping.workers import core_sets, run_script, shared_out

CORES = frozenset(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else frozenset({0})


@pytest.mark.parametrize(
    ("num", "expected"),
    [
        (1, [{0, 1, 4, 5}]),
        (2, [{0, 4}, {1, 5}]),
        (3, [{0, 5}, {1}, {4}]),
        (4, [{0}, {1}, {4}, {5}]),
        (6, [{0}, {1}, {4}, {5}, {0}, {1}]),
    ],
)
def test_cores_are_shared_out(num, expected):
    assert shared_out({5, 1, 0, 4}, num) == expected


@pytest.mark.slow
def test_one_run_a_core_where_jax_has_a_cpu_alone():
    assert core_sets(None) == [{core} for core in sorted(CORES)]  # tests keep JAX to the CPU


@pytest.fixture
def script(tmp_path):
    """Writes a script."""

    def make(text):
        (tmp_path / "script.py").write_text(text)
        return tmp_path / "script.py"

    return make


@pytest.mark.skipif(sys.platform != "linux", reason="cores are kept to on Linux")
def test_a_script_gets_its_flags_and_its_cores(script, tmp_path):
    name = script("import os, sys\nprint(sys.argv[1:], os.sched_getaffinity(0))\n")
    one = min(CORES)
    out = tmp_path / "sweep" / "run"
    run_script(name, {"steps": 7, "augment": False}, out, frozenset({one}))
    printed = f"['--steps=7', '--augment=False', '--out={out}'] {{{one}}}\n"
    assert (tmp_path / "sweep" / "run.log").read_text() == printed
    assert not out.exists()  # the script's own business


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import sys; print('first'); print('last\\n'); sys.exit(2)", "^status 2, last ("),
        ("raise KeyError('x')", "^status 1, KeyError: 'x' ("),
        ("import sys; sys.exit(3)", "^status 3, no output ("),
        (
            "import os, sys; print('1 %\\r2 %\\r3 %', end='', flush=True); os.kill(os.getpid(), 9)",
            "^killed by SIGKILL, 3 % (",
        ),
    ],
)
def test_a_failure_says_what_was_printed_last_and_where_the_rest_is(
    text, message, script, tmp_path
):
    name = script(text)
    pattern = message.replace("(", rf"\({tmp_path}/run.log\)$")
    for _ in range(2):
        with pytest.raises(ValueError, match=pattern):
            run_script(name, {}, tmp_path / "run", CORES)


def test_the_output_of_an_earlier_start_is_kept_and_not_taken_for_the_last(script, tmp_path):
    with pytest.raises(ValueError, match="^status 1, early "):
        run_script(script("import sys; sys.exit('early')"), {}, tmp_path / "run", CORES)
    with pytest.raises(ValueError, match="^status 4, no output "):
        run_script(script("import sys; sys.exit(4)"), {}, tmp_path / "run", CORES)
    assert (tmp_path / "run.log").read_text() == "early\n"


@pytest.mark.skipif(sys.platform != "linux", reason="processes end with their parent on Linux")
def test_a_process_whose_parent_is_gone_does_not_start(tmp_path):
    command = [sys.executable, workers.__file__, str(min(CORES)), "1", "nowhere.py"]
    assert subprocess.run(command, capture_output=True).returncode == 1
