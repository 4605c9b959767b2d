"""Finds finished runs: their folders, and the result files that are kept of them.

A result file is one JSON object, {"config": {...}, "summary": {...}, "commit": "...", "machine":
{...}}, whose first two are the config.json and the summary.json of the run's folder.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments.options.defaults import without_defaults
from experiments.records.run_folder import FREE_FLAGS

# Flags that say where things are, or what to print, and nothing of what comes out: which data set
# it was is in the summary.
IDLE_FLAGS = (*FREE_FLAGS, "data_dir", "plan")


class FinishedRun(NamedTuple):
    """One run that came to its end.

    Attributes:
      path: its folder or result file, for messages.
      config: its flags, without those of IDLE_FLAGS and those that came to their defaults, given
        or not.
      summary: what came out.
      commit: of the code that ran, empty where that is not known.
      machine: on which it ran, empty where that is not known.
    """

    path: Path
    config: dict[str, Any]
    summary: dict[str, Any]
    commit: str
    machine: str


class Found(NamedTuple):
    """What lies under some paths.

    Attributes:
      runs: every finished run once, in the order of the paths.
      unfinished: folders of runs that have not ended.
      conflicts: pairs of paths with one configuration and two outcomes, of which the first counts.
    """

    runs: list[FinishedRun]
    unfinished: list[Path]
    conflicts: list[tuple[Path, Path]]


def find_runs(paths: Sequence[Path]) -> Found:
    """Looks for runs: in their folders, in folders that hold many, however deep, and in files.

    A run that is found twice, in its folder and as a result file say, counts once: one data set and
    equal flags, the seed among them, but for flags that change nothing; a flag at its default is as
    one left out.

    Args:
      paths: folders and result files.

    Raises:
      ValueError: a path that does not exist; a file that is no JSON, lacks what every run has, or
        was given by name and is no result; no finished run at all.
    """
    runs: dict[str, FinishedRun] = {}
    unfinished, conflicts = [], []
    for given in paths:
        for place in _places(given):
            if place.is_dir() and not (place / "summary.json").exists():
                unfinished.append(place)
            elif run := _read_run(place):
                first = runs.setdefault(identity(run), run)
                if first.summary.get("test_accuracy") != run.summary.get("test_accuracy"):
                    conflicts.append((first.path, run.path))
            elif place == given:
                raise ValueError(f"{given} is no result: it has no config and summary")
    unfinished = list(dict.fromkeys(unfinished))
    if not runs:
        known = f"; unfinished: {', '.join(map(str, unfinished))}" if unfinished else ""
        raise ValueError(f"no finished run in {', '.join(map(str, paths))}{known}")
    return Found(list(runs.values()), unfinished, conflicts)


def identity(run: FinishedRun, *, without: Iterable[str] = ()) -> str:
    """Returns what tells a run from others, as a text: its data set and its flags.

    Args:
      run: a run. A dense one has no sparsity, whatever its flag says.
      without: flags to leave out, such as "seed".
    """
    without = {*without, "sparsity"} if run.config["schedule"] == "dense" else set(without)
    flags = {name: value for name, value in run.config.items() if name not in without}
    return json.dumps([run.summary["dataset"], flags], sort_keys=True)


def _places(path: Path) -> Iterator[Path]:
    """Yields the folders of runs and the JSON files under a path, in the order of their names."""
    if not path.exists():
        raise ValueError(f"{path} does not exist; give folders of runs or result files")
    if path.is_file() or (path / "config.json").exists():
        yield path
        return
    for inside in sorted(path.iterdir()):
        if inside.is_dir() or inside.suffix == ".json":
            yield from _places(inside)


def _read_run(path: Path) -> FinishedRun | None:
    """Reads a folder or a result file; None for a file that is neither."""
    if path.is_dir():
        content = {name: _read_json(path / f"{name}.json") for name in ("config", "summary")}
    else:
        content = _read_json(path)
        if not isinstance(content, dict) or not {"config", "summary"} <= content.keys():
            return None
    for part, names in (("config", ("schedule", "model", "seed")), ("summary", ("dataset",))):
        for name in names:
            if not isinstance(content[part], dict) or name not in content[part]:
                raise ValueError(f"{path} has no {name} in its {part}, which every run has")
    config = {
        name: value
        for name, value in without_defaults(content["config"]).items()
        if name not in IDLE_FLAGS
    }
    machine = content.get("machine") or {}
    cores = f", {machine['cores']} cores" if machine.get("cores") else ""
    return FinishedRun(
        path=path,
        config=config,
        summary=content["summary"],
        commit=content.get("commit") or "",
        machine=f"{machine.get('cpu', '')}{cores}",
    )


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except ValueError as error:  # of JSON, or of bytes that are no text
        if path.suffix != ".json":
            raise ValueError(f"{path} is no result: it is no JSON file") from None
        raise ValueError(f"{path} cannot be read: {error}") from None
