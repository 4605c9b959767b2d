"""Scripts as processes on cores of their own, which end when the program that started them does.

As a program it is what such a process does first: `workers.py CORES PARENT SCRIPT FLAGS...`.
"""

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SCRIPTS = Path(__file__).parent
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def core_sets(num: int | None) -> list[frozenset[int]]:
    """Returns disjoint sets of the cores that this process may use, one for each run at a time.

    Args:
      num: how many, at least 1; more than there are cores share them. None: one a core on CPU, one
        altogether where there is an accelerator.

    Raises:
      ValueError: `num` is below 1.
    """
    if num is not None and num < 1:
        raise ValueError(f"--jobs {num} must be at least 1")
    cores = sorted(_cores())
    if num is None:
        num = len(cores) if _backend() == "cpu" else 1
    return [frozenset(cores[i::num] or [cores[i % len(cores)]]) for i in range(num)]


def run_script(name: str, flags: Mapping[str, Any], out: Path, cores: frozenset[int]) -> None:
    """Runs a script of experiments/ to its end, unless its folder holds the finished run already.

    Its output goes to a file beside the folder.

    Args:
      name: of the script, without ".py".
      flags: of the script, but for `--out`.
      out: folder of the run; the folder above it is created if missing.
      cores: that the process is kept to, so that runs beside it do not slow it down.

    Raises:
      ValueError: it failed; the message is the last line that it printed, and where the others are.
    """
    if (out / "summary.json").exists():
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, __file__, ",".join(map(str, cores)), str(os.getpid())]
    command += [os.fspath(SCRIPTS / f"{name}.py")]
    command += [f"--{flag}={value}" for flag, value in flags.items()] + [f"--out={out}"]
    log = out.with_name(f"{out.name}.log")
    with open(log, "ab") as file:
        streams = {"stdin": subprocess.DEVNULL, "stdout": file, "stderr": subprocess.STDOUT}
        status = subprocess.run(command, check=False, **streams).returncode
    if status:
        lines = log.read_text("utf-8", errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "no output")
        raise ValueError(f"status {status}, {last} ({log})")


def _cores() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def _backend() -> str:
    """JAX's backend, asked in a process of its own: this one shall hold no accelerator's memory."""
    ask = [sys.executable, "-c", "import jax; print(jax.default_backend())"]
    return subprocess.run(ask, capture_output=True, text=True, check=True).stdout.strip()


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
