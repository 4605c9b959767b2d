"""Parts of a saved state by name."""

from collections.abc import Iterable, Mapping

import numpy as np

from jaxsparse.flat_state import Record, check_leaves, dtype_of, renamed
from jaxsparse.paths import listed
from jaxsparse.types import PyTree


def under(names: Iterable[str], part: str) -> dict[str, str]:
    """Returns the leaves of a part, as a dict from the path below the part to the whole path.

    If several fields or keys have the name, the outermost one is the part.

    Args:
      names: paths of all leaves of a state.
      part: a name, or several names joined by "/".

    Raises:
      ValueError: no field has the name, or several at the same depth; says which there are.

    >>> under(["step", "run/masks/a/kernel", "run/old/masks/a/kernel"], "masks")
    {'a/kernel': 'run/masks/a/kernel'}
    """
    names = list(names)
    above: dict[str, str] = {}  # for each path that contains the part: what comes before it
    for name in names:
        head, found, _ = f"/{name}/".partition(f"/{part}/")
        if found:
            above[name] = head
    depth = min((head.count("/") for head in above.values()), default=0)
    heads = sorted({head for head in above.values() if head.count("/") == depth})
    if not heads:
        raise ValueError(f"has no part {part}; it has {listed(fields(names), 20)}")
    if len(heads) > 1:
        longer = (f"{head}/{part}".strip("/") for head in heads)
        raise ValueError(f"has several parts {part}; name one by its path: {listed(longer)}")
    start = len(f"{heads[0]}/{part}/") - 1  # without the "/" before it
    return {name[start:]: name for name, head in above.items() if head == heads[0]}


def fields(names: Iterable[str]) -> list[str]:
    """Returns the outermost fields or keys of some paths; below a single one, those inside it.

    >>> fields(["run/params/kernel", "run/step"])
    ['run/params', 'run/step']
    """
    split = [name.split("/") for name in names]
    depth = 0
    while len({tuple(parts[: depth + 1]) for parts in split}) == 1 < min(map(len, split)) - depth:
        depth += 1
    return list(dict.fromkeys("/".join(parts[: depth + 1]) for parts in split))


def fields_by_fit(records: Mapping[str, Record], state: PyTree) -> tuple[list[str], list[str]]:
    """Returns the fields that a checkpoint and a state share leaf for leaf, and all others.

    Args:
      records: records of the checkpoint, as `flatten` makes them.
      state: the state at hand.

    >>> from jaxsparse.flat_state import flatten
    >>> _, records = flatten({"params": 1.0, "opt_state": [1.0]})
    >>> fields_by_fit(records, {"params": 2.0, "opt_state": {"mu": 2.0}})
    (['params'], ['opt_state'])
    """
    leaves = check_leaves(state)
    theirs = {p: (record.shape, record.dtype) for p, record in renamed(records, leaves).items()}
    ours = {path: (tuple(np.shape(leaf)), dtype_of(leaf)) for path, leaf in leaves.items()}
    everywhere = [*theirs, *(path for path in ours if path not in theirs)]
    differ = [path for path in everywhere if ours.get(path) != theirs.get(path)]
    unlike = [
        name
        for name in fields(everywhere)
        if any(f"{path}/".startswith(f"{name}/") for path in differ)
    ]
    return [name for name in fields(everywhere) if name not in unlike], unlike
