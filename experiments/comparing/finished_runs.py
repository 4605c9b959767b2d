"""Finds finished runs: their folders, and the result files that a sweep keeps.

A result file is one JSON object, {"config": {...}, "summary": {...}, "commit": "...", "machine":
{...}}, whose first two are the config.json and the summary.json of the run's folder.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments.options.defaults import IDLE_FLAGS, default_of, without_defaults


class FinishedRun(NamedTuple):
    """One run that came to its end.

    Attributes:
      path: its folder or result file, for messages.
      config: the flags that tell it from other runs: without those of IDLE_FLAGS and those at their
        defaults, but always with the recipe if it has one.
      summary: the content of its summary.json.
      commit: the commit of the code that ran; "" if unknown.
      machine: the machine on which it ran; "" if unknown.
    """

    path: Path
    config: dict[str, Any]
    summary: dict[str, Any]
    commit: str
    machine: str


class Found(NamedTuple):
    """The runs under some paths.

    Attributes:
      runs: every finished run once, in the order of the paths.
      unfinished: folders of runs that have not ended.
      conflicts: pairs of paths with the same flags and two results; the first of them counts.
    """

    runs: list[FinishedRun]
    unfinished: list[Path]
    conflicts: list[tuple[Path, Path]]


def find_runs(paths: Sequence[Path]) -> Found:
    """Looks for runs: in their folders, in folders that hold many, however deep, and in files.

    Runs with the same data set and the same flags, the seed among them, are the same run, which
    counts once: it may be found in its folder and as a result file. Flags that change no result are
    not looked at, and a flag at its default is as one left out.

    Args:
      paths: folders of runs, folders that hold them, and result files.

    Raises:
      ValueError: a path does not exist; a file is no JSON, or lacks what every run has; a file
        given by name is no result; or there is no finished run at all.
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
    """Returns the data set and the flags of a run as text, which tells it from other runs.

    Args:
      run: the run. The sparsity of a dense run is left out, as it changes nothing.
      without: names of other flags to leave out, such as "seed".
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
    """Reads a folder or a result file; returns None for another JSON file."""
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
    given = content["config"]
    config = {n: value for n, value in without_defaults(given).items() if n not in IDLE_FLAGS}
    if "recipe" in given:  # methods are compared with one recipe, which is not the default of each
        config["recipe"] = given["recipe"] or default_of("recipe", given["schedule"])
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
    except ValueError as error:  # no JSON, or no text
        if path.suffix != ".json":
            raise ValueError(f"{path} is no result: it is no JSON file") from None
        raise ValueError(f"{path} cannot be read: {error}") from None
