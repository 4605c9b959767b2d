"""Leaves by path: how trees of any kind are named and compared, and which leaves are prunable.

The core works on any pytree by the paths of its leaves ("Dense_0/kernel"), so linen dicts, NNX
states, Equinox modules, lists and NamedTuples are all served the same way.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np

from jaxsparse.types import Leaves, OptionError, PyTree, Rules

_PRUNED = re.compile(r"(^|/)(kernel|weight)$")
# Leaves whose owner is a norm or an embedding: BatchNorm_0/kernel, norm1/weight, bn/weight.
_DENSE = re.compile(r"(norm|embed|embedding|(?<![a-z])bn)_?\d*/[^/]+$", re.IGNORECASE)


def leaf_paths(tree: PyTree) -> list[str]:
    """Returns the path of every leaf, in the tree's order, such as "Dense_0/kernel".

    The trailing "/value" of Flax NNX variables is left out, so one rule serves linen and NNX.

    >>> leaf_paths({"a": {"kernel": 1.0, "bias": 2.0}})
    ['a/bias', 'a/kernel']
    """
    paths, _ = jax.tree_util.tree_flatten_with_path(tree)
    names = (jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in paths)
    return [name.removesuffix("/value") for name in names]


def leaves_by_path(tree: PyTree) -> dict[str, Any]:
    """Returns the leaves by path, in the tree's order.

    Raises:
      ValueError: two leaves share a path, such as {"a": {"b": x}, "a/b": y}.
    """
    paths, leaves = leaf_paths(tree), jax.tree.leaves(tree)
    by_path = dict(zip(paths, leaves, strict=True))
    if len(by_path) < len(paths):
        path = next(path for path in paths if paths.count(path) > 1)
        raise ValueError(f"two leaves have the path {path}; rename a key that holds a '/'")
    return by_path


def with_leaves(tree: PyTree, leaves: Leaves) -> PyTree:
    """Returns `tree` with the leaves at the given paths replaced."""
    new = [leaves.get(path, old) for path, old in leaves_by_path(tree).items()]
    return jax.tree.unflatten(jax.tree.structure(tree), new)


def check_like(tree: PyTree, reference: PyTree, *, name: str, like: str) -> None:
    """Raises a ValueError if two trees differ, with the first leaf of another path or shape."""
    ours, theirs = leaves_by_path(tree), leaves_by_path(reference)
    for path, leaf in theirs.items():
        if path not in ours:
            raise ValueError(f"{name} has no leaf {path}, which {like} has")
        if np.shape(ours[path]) != np.shape(leaf):
            raise ValueError(
                f"{name} at {path} has shape {np.shape(ours[path])}, {like} has {np.shape(leaf)}"
            )
    for path in ours:
        if path not in theirs:
            raise ValueError(f"{name} has a leaf {path}, which {like} lacks")
    if jax.tree.structure(tree) != jax.tree.structure(reference):
        raise ValueError(
            f"{name} has the leaves of {like} in other containers (tuple or list, say)"
        )


def prunable_paths(params: PyTree, prunable: Rules | None = None) -> list[str]:
    """Returns the paths of the leaves that methods may prune, in the tree's order.

    Args:
      params: any pytree of arrays (or of masks, or of `jax.ShapeDtypeStruct`).
      prunable: ordered (path regex, bool) pairs; for each leaf the first regex found in its path
        (`re.search`) decides, and a leaf without a match stays dense. None is the default: leaves
        named kernel or weight of rank 2 or more, no embeddings, no norms.

    Raises:
      ValueError: a rule is nobody's first match, no leaf is left, two leaves share a path, or a
        leaf is too large to count.

    >>> import jax.numpy as jnp
    >>> params = {"conv": {"kernel": jnp.ones((3, 3, 1, 8)), "bias": jnp.ones(8)}}
    >>> prunable_paths(params)
    ['conv/kernel']
    >>> prunable_paths(params, ((r"bias", True), (r".", False)))
    ['conv/bias']
    """
    leaves = leaves_by_path(params)
    rules = check_rules(prunable)
    if rules is None:
        chosen = [p for p, x in leaves.items() if _is_prunable_by_default(p, x)]
    else:
        first = first_matches([pattern for pattern, _ in rules], leaves, name="prunable rule")
        chosen = [p for p, i in first.items() if i is not None and rules[i][1]]
    if not chosen:
        names = [f"{path} {np.shape(leaf)}" for path, leaf in leaves.items()]
        hint = (
            ""
            if any(np.ndim(leaf) > 1 for leaf in leaves.values())
            else (" (all have fewer than two axes; a compressed state is to be expanded first)")
        )
        raise ValueError(f"no leaf is prunable; the leaves are {listed(names)}{hint}")
    for path in chosen:
        if np.size(leaves[path]) >= 2**31:
            raise ValueError(
                f"leaf {path} has {np.size(leaves[path])} entries; at most {2**31 - 1} count"
            )
    return chosen


def prunable_leaves(
    tree: PyTree, prunable: Rules | None = None, *, paths: list[str] | None = None
) -> dict[str, Any]:
    """Returns the prunable leaves of params, masks or grads by path, in the tree's order.

    Args:
      tree: params, or a tree like it.
      prunable: as in `prunable_paths`.
      paths: the paths, where they are known already; then `prunable` is not looked at.
    """
    paths = prunable_paths(tree, prunable) if paths is None else paths
    leaves = leaves_by_path(tree)
    return {path: leaves[path] for path in paths}


def leaf_shapes(leaves: Leaves) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every leaf, by path."""
    return {path: tuple(np.shape(leaf)) for path, leaf in leaves.items()}


def check_rules(prunable: Rules | None) -> tuple[tuple[str, bool], ...] | None:
    """Returns the rules as a tuple of pairs, raises a ValueError if they are anything else."""
    if prunable is None:
        return None
    try:
        rules = tuple((pattern, take) for pattern, take in prunable)
    except (TypeError, ValueError):
        rules = ((None, None),)
    if not all(isinstance(pattern, str) and isinstance(take, bool) for pattern, take in rules):
        raise ValueError(f"prunable {prunable!r} must be (path regex, bool) pairs")
    return tuple((str(pattern), bool(take)) for pattern, take in rules)


def first_matches(
    patterns: Sequence[str], paths: Iterable[str], *, name: str
) -> dict[str, int | None]:
    """Returns for each path the index of the first regex found in it, or None.

    Raises:
      ValueError: a pattern that is no regex, or nobody's first match; `name` says what it is.
    """
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise OptionError(name, pattern, f"is no regular expression: {error}") from None
    first = {
        path: next((i for i, pattern in enumerate(patterns) if re.search(pattern, path)), None)
        for path in paths
    }
    for index, pattern in enumerate(patterns):
        if index not in first.values():
            wrong = f"is the first match of no leaf; there are {listed(first)}"
            raise OptionError(name, pattern, wrong)
    return first


def listed(names: Iterable[str], most: int = 8) -> str:
    """Returns the names as an error message lists them, of many only the first.

    >>> listed(["a", "b", "c"], most=2)
    'a, b and 1 more'
    """
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _is_prunable_by_default(path: str, leaf: Any) -> bool:
    return bool(_PRUNED.search(path)) and not _DENSE.search(path) and np.ndim(leaf) >= 2
