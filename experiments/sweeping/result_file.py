"""The small file that a finished run leaves in a sweep: its flags, its summary, and what made it.

{"config": {...}, "summary": {...}, "commit": "4367ec9", "machine": {...}}

A run that was cut off may go on with other code. So every start notes its commit in a file beside
the run's folder, FOLDER.commits, and the result has all commits that took part.
"""

import json
import os
import platform
import subprocess
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from experiments.options.defaults import IDLE_FLAGS, without_defaults


class Result(NamedTuple):
    """The record of a finished run that is kept.

    Attributes:
      config: its flags, without those of IDLE_FLAGS.
      summary: the content of its `summary.json`.
      commit: the commit of the code that made it, with "+" if files had been changed since. Several
        commits, with spaces between, if the run went on with other code; "" if unknown.
      machine: "cpu", number of "cores" that the run had, and version of "python".
    """

    config: dict[str, Any]
    summary: dict[str, Any]
    commit: str
    machine: dict[str, Any]


def result_of(folder: Path, cores: Collection[int]) -> Result:
    """Reads the folder of a finished run.

    Args:
      folder: the folder.
      cores: the cores that the run had.

    Raises:
      ValueError: a file in it is damaged.
      OSError: it holds no finished run.
    """
    config = _read(folder / "config.json")
    for flag in IDLE_FLAGS:
        config.pop(flag, None)
    machine = {"cpu": _cpu(), "cores": len(cores), "python": platform.python_version()}
    summary = _read(folder / "summary.json")
    return Result(config, summary, " ".join(_commits(folder)) or commit(), machine)


def note_start(folder: Path, commit: str) -> None:
    """Notes the commit with which a run starts or goes on; the folder may be missing."""
    noted = _commits(folder)
    if commit not in noted:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _commits_file(folder).write_text(" ".join([*noted, commit]), "utf-8")


def _commits(folder: Path) -> list[str]:
    file = _commits_file(folder)
    return file.read_text("utf-8").split() if file.exists() else []


def _commits_file(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.commits")


def read_result(path: Path) -> Result:
    """Reads a result.

    Raises:
      ValueError: the file is damaged, or is no result.
    """
    content = _read(path)
    objects = all(isinstance(content.get(name), dict) for name in ("config", "summary", "machine"))
    if not (objects and content.keys() == set(Result._fields)):
        raise ValueError(f"{path} is no result of a run, which has {', '.join(Result._fields)}")
    return Result(**content)


def write_result(path: Path, result: Result) -> None:
    """Writes a result, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(result._asdict(), indent=1, allow_nan=False) + "\n", "utf-8")
    os.replace(temporary, path)


def flags_that_differ(
    config: Mapping[str, Any], flags: Mapping[str, Any]
) -> list[tuple[str, Any, Any]]:
    """Returns (flag, value in the config, value asked for) for each flag in which the two differ.

    A flag that is left out (missing or None) has its default.

    >>> flags_that_differ({"steps": 100, "seed": 1}, {"steps": 100, "seed": 2, "out": "x"})
    [('seed', 1, 2)]
    >>> flags_that_differ({"schedule": "rigl"}, {"schedule": "rigl", "dyrelu": False})
    []
    """
    ours, theirs = without_defaults(config), without_defaults(flags)
    return [
        (name, config.get(name), value)
        for name, value in flags.items()
        if name not in IDLE_FLAGS and ours.get(name) != theirs.get(name)
    ]


def commit() -> str:
    """Returns the commit of this checkout, "+" after it if files were changed; "" without git."""
    git = ["git", "-C", os.fspath(Path(__file__).parent)]
    try:
        revision = subprocess.run(
            [*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
        )
        status = subprocess.run(
            [*git, "status", "--porcelain", "--untracked-files=no"],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return revision.stdout.strip() + ("+" if status.stdout.strip() else "")


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} cannot be read: it holds no object")
    return content


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
