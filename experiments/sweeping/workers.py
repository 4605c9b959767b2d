"""Scripts as processes on cores of their own, which end when the program that started them does.

Such a process first runs this file as a program, `workers.py CORES PARENT SCRIPT FLAGS...`, which
is why it imports neither JAX nor jaxsparse.
"""

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def core_sets(num: int | None) -> list[frozenset[int]]:
    """Returns sets of the cores that this process may use, one for each run at a time.

    Args:
      num: number of runs at a time, at least 1. The sets are disjoint unless there are fewer cores.
        None means one run a core on CPU, and a single run with an accelerator.

    Raises:
      ValueError: JAX finds no device.
    """
    cores = own_cores()
    if num is None:
        num = len(cores) if _backend() == "cpu" else 1
    return shared_out(cores, num)


def shared_out(cores: Collection[int], num: int) -> list[frozenset[int]]:
    """Deals cores out to `num` runs; if there are fewer cores, some runs share one.

    >>> [sorted(share) for share in shared_out({0, 1, 2}, 2)]
    [[0, 2], [1]]
    >>> [sorted(share) for share in shared_out({0, 1}, 3)]
    [[0], [1], [0]]
    """
    each = sorted(cores)
    return [frozenset(each[i::num] or [each[i % len(each)]]) for i in range(num)]


def run_script(script: Path, flags: Mapping[str, Any], out: Path, cores: frozenset[int]) -> None:
    """Runs a script to its end, and appends its output to a file beside its folder, FOLDER.log.

    Args:
      script: a Python file.
      flags: the flags of the script by name, without `out`.
      out: folder of the run; the folder above it is created if missing.
      cores: the cores that the process is kept to, so that runs beside it do not slow it down.

    Raises:
      ValueError: the script failed. The message has the last line that it printed, and the file
        with the other lines.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, __file__, ",".join(map(str, cores)), str(os.getpid())]
    command += [os.fspath(script)]
    command += [f"--{flag}={value}" for flag, value in flags.items()] + [f"--out={out}"]
    log = out.with_name(f"{out.name}.log")
    with open(log, "a+b") as file:
        before = file.seek(0, os.SEEK_END)
        streams = {"stdin": subprocess.DEVNULL, "stdout": file, "stderr": subprocess.STDOUT}
        status = subprocess.run(command, check=False, **streams).returncode
        file.seek(before)
        printed = file.read().decode("utf-8", errors="replace")
    if status:
        how = f"status {status}" if status > 0 else f"killed by {signal.Signals(-status).name}"
        raise ValueError(f"{how}, {_last_line(printed)} ({log})")


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines()]  # a progress bar ends lines with \r
    return next((line for line in reversed(lines) if line), "no output")


def own_cores() -> set[int]:
    """Returns the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def _backend() -> str:
    """Asks for JAX's backend in another process, so that this one holds no accelerator's memory."""
    ask = [sys.executable, "-c", "import jax; print(jax.default_backend())"]
    answer = subprocess.run(ask, capture_output=True, text=True, check=False)
    if answer.returncode:
        raise ValueError(f"JAX finds no device: {_last_line(answer.stderr)}")
    return answer.stdout.strip()


def _become(cores: str, parent: str, *script: str) -> None:
    """Keeps to the cores, arranges to die with the parent, and turns into the script."""
    if sys.platform == "linux":
        os.sched_setaffinity(0, map(int, cores.split(",")))
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != int(parent):  # it died before the line above
            sys.exit(1)
    os.execv(sys.executable, [sys.executable, *script])


if __name__ == "__main__":
    _become(*sys.argv[1:])
