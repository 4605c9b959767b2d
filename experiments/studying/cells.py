"""The finished cells of a study, a line of JSON each, after which a killed study goes on."""

import json
import math
import os
from pathlib import Path

from jaxsparse.studies import Plasticity


def read_cells(path: Path) -> list[Plasticity]:
    """Reads the cells of a file, which may be missing; a last line that was cut off is removed.

    Raises:
      ValueError: a line is no cell; names the file.
    """
    if not path.exists():
        return []
    text = path.read_text("utf-8")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        temporary = path.with_name(f".{path.name}.tmp")
        temporary.write_text(whole, "utf-8")
        os.replace(temporary, path)
    try:
        return [Plasticity.from_dict(json.loads(line)) for line in whole.splitlines()]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} cannot be read: {error}; delete it to start over") from None


def append_cell(path: Path, cell: Plasticity) -> None:
    """Adds a cell; it is in the file when this returns. NaN becomes null."""
    plain = lambda x: None if isinstance(x, float) and not math.isfinite(x) else x
    line = json.dumps({name: plain(x) for name, x in cell.as_dict().items()}, allow_nan=False)
    with open(path, "a", encoding="utf-8") as file:
        file.write(line + "\n")
