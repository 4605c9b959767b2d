"""Finished runs as sources of masks, whatever method found them."""

import dataclasses
import json
from pathlib import Path
from typing import Any, NamedTuple

from experiments.options import flags
from experiments.options.schedules import pattern_of
from experiments.tickets.scripts import SCRIPTS, shapes_of
from jaxsparse.checkpoint import restore_masks
from jaxsparse.patterns import PatternRules


class Source(NamedTuple):
    """A finished run.

    Attributes:
      path: its folder.
      config: its flags, as those of a dense run of the script.
      summary: its `summary.json`.
      masks: those that it ended with.
      pattern: rules of the masks' pattern; None if they have none.
    """

    path: Path
    config: Any
    summary: dict[str, Any]
    masks: Any
    pattern: PatternRules | None


def read(path: Path, data_dir: Path | None = None) -> Source:
    """Reads the folder of a finished run: one of a script, or a round of lottery tickets.

    Args:
      path: the folder.
      data_dir: of its data; None is the run's own.

    Raises:
      ValueError: no finished run, a dense one, one of a script that is not known, or a checkpoint
        that does not fit the network.
    """
    for name in ("config.json", "summary.json"):
        if not (path / name).exists():
            raise ValueError(f"{path} is no folder of a finished run: it has no {name}")
    given, summary = (_read(path / name) for name in ("config.json", "summary.json"))
    if "layers" not in summary:
        raise ValueError(f"{path} holds many runs; give the folder of one, such as a round")
    if summary["method"] == "dense":
        raise ValueError(f"{path} holds a dense run, whose masks say nothing")
    config = dense_config(given, summary)
    if data_dir is not None:
        config = dataclasses.replace(config, data_dir=data_dir)
    pattern = pattern_of(given.get("pattern"), given.get("pattern_layers"))
    masks = restore_masks(path / "checkpoints", like=shapes_of(config))
    return Source(path, config, summary, masks, pattern)


def dense_config(given: dict[str, Any], summary: dict[str, Any]) -> Any:
    """Returns a script's flags for the dense network that a run ended with.

    DyReLU is gone at the end of a run, and shared weights stay shared.

    Args:
      given: the run's flags.
      summary: of the run.

    Raises:
      ValueError: the data set belongs to no script that can train a mask.
    """
    data = str(summary["dataset"])
    script = next((s for name, s in SCRIPTS.items() if data.startswith(name)), None)
    if script is None or given.get("model") not in script.MODELS:
        known = ", ".join(SCRIPTS)
        raise ValueError(f"--run is one of {given.get('model')} on {data}; there are {known}")
    names = {field.name for field in dataclasses.fields(script.Config)}
    left_out = {f.name for cls in (flags.Pruning, flags.Tricks) for f in dataclasses.fields(cls)}
    kept = {name: value for name, value in given.items() if name in names - left_out}
    if kept.get("data_dir") is not None:
        kept["data_dir"] = Path(kept["data_dir"])
    if "recipe" in names and kept.get("recipe") is None and given["schedule"] == "east":
        kept["recipe"] = "east"
    if "sharing_owners" in summary["resolved"]:
        kept["weight_sharing"] = True
    return script.Config(**kept | {"schedule": "dense", "plan": False, "out": None})


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text("utf-8"))
    except ValueError as error:  # no JSON, or no text
        raise ValueError(f"{path} cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} is no object of JSON")
    return content
