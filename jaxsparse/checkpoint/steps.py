"""The checkpoints in a folder, by their steps."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

StrPath: TypeAlias = str | os.PathLike[str]

_OF_ORBAX = {"_CHECKPOINT_METADATA", "commit_success.txt"}  # in every checkpoint of Orbax


def steps(folder: Path) -> list[int]:
    """Returns the steps of the complete checkpoints in a folder, in any order.

    A complete checkpoint has its step as its name: Orbax renames it when everything is written.

    Raises:
      ValueError: another program wrote one of them. We must not rename it, and Orbax would delete
        it as the oldest.
    """
    try:
        entries = list(folder.iterdir())
    except FileNotFoundError:
        return []
    found = [p for p in entries if re.fullmatch(r"0|[1-9][0-9]*", p.name) and p.is_dir()]
    for path in found:
        items = {p.name for p in path.glob("*")} - _OF_ORBAX  # empty if a run just deleted it
        # Without contents it may still be ours, if a kill interrupted its deletion.
        if "contents" not in items and items - {"arrays"}:
            raise ValueError(f"checkpoint {path} was not written by jaxsparse; take another folder")
    return [int(path.name) for path in found]


def set_aside(folder: Path, damage: Mapping[int, str]) -> str | None:
    """Renames damaged checkpoints to `damaged-STEP`, without replacing anything.

    Args:
      folder: the folder of the checkpoints.
      damage: reasons by step.

    Returns:
      A line that says what was renamed and why, or None if nothing was.
    """
    notes = []
    for step, reason in damage.items():
        aside = folder / f"damaged-{step}"
        while aside.exists():
            aside = aside.with_name(f"{aside.name}-again")
        (folder / str(step)).rename(aside)
        notes.append(f"checkpoint {step} cannot be read ({reason}) and is now {aside}")
    return "; ".join(notes) or None
