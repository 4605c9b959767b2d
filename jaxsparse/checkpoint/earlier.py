"""Checkpoints of earlier versions: leaves that they lack or name otherwise."""

import re
from collections.abc import Container, Iterable, Mapping
from typing import Any

import numpy as np

ADDED: tuple[tuple[str, int | float], ...] = (
    (r"(^|/)events/num_(taken|left_out)$", -(2**30)),  # unknown: the counting began later
)
"""(regex of a path, value) of the leaves that a later version added to the states it makes.

A checkpoint that was saved before lacks them, and is restored with the value in every entry."""


def added_since(
    saved: Container[str],
    leaves: Mapping[str, Any],
    added: Iterable[tuple[str, int | float]] = ADDED,
) -> dict[str, np.ndarray]:
    """Returns the values, by path, of leaves that a checkpoint of an earlier version lacks.

    Args:
      saved: the paths that the checkpoint has.
      leaves: arrays and numbers of the state at hand, by path.
      added: (path regex, value); the first regex found in a path decides (`re.search`). A leaf
        without one is left out: it is missing for another reason.

    >>> added_since({"step"}, {"step": 1, "runs": np.ones(2, int)}, [("runs$", -1)])
    {'runs': array([-1, -1])}
    """
    added, found = list(added), {}
    for path, leaf in leaves.items():
        if path not in saved:
            value = next((value for regex, value in added if re.search(regex, path)), None)
            if value is not None:
                found[path] = np.full(
                    np.shape(leaf), value, getattr(leaf, "dtype", None) or type(leaf)
                )
    return found


def renamed_since(saved: Iterable[str], wanted: Iterable[str] | None = None) -> dict[str, str]:
    """Returns the paths of a checkpoint by their names of today: today's -> saved.

    The key "value" of a dict was left out of paths, as the field of NNX variables still is.

    Args:
      saved: the paths that the checkpoint has.
      wanted: today's. If unknown, a path with others inside it is taken as one without its "value".

    >>> renamed_since(["memory/key", "memory"])
    {'memory/key': 'memory/key', 'memory/value': 'memory'}
    """
    saved = list(saved)
    if wanted is None:
        above = {path[:end] for path in saved for end, sign in enumerate(path) if sign == "/"}
        return {f"{path}/value" if path in above else path: path for path in saved}
    wanted = set(wanted)
    with_value = lambda path: f"{path}/value" if f"{path}/value" in wanted else path
    return {path if path in wanted else with_value(path): path for path in saved}
