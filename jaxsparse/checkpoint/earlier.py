"""Leaves that checkpoints of earlier versions lack."""

import re
from collections.abc import Container, Iterable, Mapping
from typing import Any

import numpy as np

ADDED: tuple[tuple[str, int | float], ...] = (
    (r"(^|/)events/num_(taken|left_out)$", -(2**30)),  # unknown, see event_counts.UNKNOWN
    (r"(^|/)event_metrics/num_left_out$", 0),  # no event was left out
)
"""(path regex, value) for the leaves that later versions added to the states they make.

An older checkpoint lacks these leaves; it is restored with the value in every entry."""


def added_since(
    saved: Container[str],
    leaves: Mapping[str, Any],
    added: Iterable[tuple[str, int | float]] = ADDED,
) -> dict[str, np.ndarray]:
    """Returns values, by path, for the leaves that a checkpoint of an earlier version lacks.

    Args:
      saved: paths of the leaves in the checkpoint.
      leaves: arrays and numbers of the state at hand, by path.
      added: (path regex, value) pairs; the first regex found in a path decides (`re.search`). A
        missing leaf that matches none is left out: it is missing for another reason.

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
