"""The checkpoints of a folder by their steps."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

StrPath: TypeAlias = str | os.PathLike[str]

_OF_ORBAX = {"_CHECKPOINT_METADATA", "commit_success.txt"}  # beside the items of any checkpoint


def steps(folder: Path) -> list[int]:
    """Steps of the whole checkpoints: Orbax gives one its number for a name when all is written.

    Raises:
      ValueError: another program wrote one of them. It is not ours to rename, and Orbax would
        delete it as the oldest.
    """
    try:
        entries = list(folder.iterdir())
    except FileNotFoundError:
        return []
    found = [p for p in entries if re.fullmatch(r"0|[1-9][0-9]*", p.name) and p.is_dir()]
    for path in found:
        items = {p.name for p in path.glob("*")} - _OF_ORBAX  # none if a run just deleted it
        # Without contents it can still be what is left of ours, where a kill cut its deletion off.
        if "contents" not in items and items - {"arrays"}:
            raise ValueError(f"checkpoint {path} was not written by jaxsparse; take another folder")
    return [int(path.name) for path in found]


def set_aside(folder: Path, damage: Mapping[int, str]) -> str | None:
    """Renames damaged checkpoints, never over anything, and says so in one line."""
    notes = []
    for step, reason in damage.items():
        aside = folder / f"damaged-{step}"
        while aside.exists():
            aside = aside.with_name(f"{aside.name}-again")
        (folder / str(step)).rename(aside)
        notes.append(f"checkpoint {step} cannot be read ({reason}) and is now {aside}")
    return "; ".join(notes) or None
