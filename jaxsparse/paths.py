"""Leaves by path: names and comparison of trees of any kind, and which leaves are prunable.

The core works on any pytree by the paths of its leaves ("Dense_0/kernel"). It therefore treats
linen dicts, NNX states, Equinox modules, lists and NamedTuples in the same way.
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from jaxsparse.names import is_weight
from jaxsparse.types import Leaves, OptionError, PyTree, Rules, Shapes


def leaf_paths(tree: PyTree, is_leaf: Callable[[Any], bool] | None = None) -> list[str]:
    """Returns the path of every leaf, in the tree's order, such as "Dense_0/kernel".

    A last part "value" without siblings is left out: it is the box of an NNX variable or of a linen
    `Partitioned`. One rule thus serves linen and NNX, boxed or not.

    >>> leaf_paths({"a": {"kernel": 1.0, "bias": 2.0}})
    ['a/bias', 'a/kernel']
    >>> leaf_paths({"a": {"value": 1.0}, "memory": {"key": 2.0, "value": 3.0}})
    ['a', 'memory/key', 'memory/value']
    """
    return [path for path, _ in _places(tree, is_leaf)]


def _places(
    tree: PyTree, is_leaf: Callable[[Any], bool] | None = None
) -> list[tuple[str, type | None]]:
    """The path of every leaf and the class of the node that holds it, without boxes."""
    leaves, structure = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_leaf)
    places = []
    for (keys, _), above in zip(leaves, _nodes_above(structure), strict=True):
        names = [jax.tree_util.keystr((key,), simple=True) for key in keys]
        if len(names) > 1 and names[-1] == "value" and len(above[-1].children()) == 1:
            names, above = names[:-1], above[:-1]
        places.append(("/".join(names), above[-1].node_data()[0] if above else None))
    return places


def _nodes_above(node: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The nodes of a tree's structure that lead to each leaf, outermost first."""
    if node.node_data() is None:
        yield above
    else:
        for child in node.children():
            yield from _nodes_above(child, (*above, node))


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


def check_like(tree: PyTree, reference: PyTree, *, name: str, like: str) -> PyTree:
    """Returns the tree in the containers of `reference`, whose leaves have the same paths.

    The containers may differ: Flax NNX holds the same leaves with or without variables, other trees
    hold them in tuples or lists.

    Args:
      tree: any pytree.
      reference: a pytree whose leaves have the same paths and shapes.
      name: name of `tree`, for messages.
      like: name of `reference`, for messages.

    Raises:
      ValueError: the trees differ; names the first leaf with another path or shape.

    >>> check_like([1.0], (2.0,), name="grads", like="params")
    (1.0,)
    """
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
    structure = jax.tree.structure(reference)
    if jax.tree.structure(tree) == structure:
        return tree
    return jax.tree.unflatten(structure, [ours[path] for path in theirs])


def prunable_paths(params: PyTree, prunable: Rules | None = None) -> list[str]:
    """Returns the paths of the leaves that methods may prune, in the tree's order.

    Args:
      params: any pytree of arrays (or of masks, or of `jax.ShapeDtypeStruct`).
      prunable: ordered pairs of a path regex and True, False or None. For each leaf the first regex
        found in its path (`re.search`) decides; a leaf without a match stays dense. A rule with
        None leaves the decision to the default: `((r"^head/", False), (r"", None))` is the default
        without the head. If `prunable` itself is None, the default decides for all leaves. By
        default a leaf is prunable if it has rank 2 or more and the name of a weight (kernel,
        weight, w, weight_ih), unless an embedding, a position or a norm holds it. The holder is
        known by its class in Equinox modules, else by its name (`jaxsparse.names`).

    Raises:
      ValueError: a rule is the first match of no leaf, no leaf is prunable, two leaves share a
        path, or a leaf has 2**31 entries or more.

    >>> import jax.numpy as jnp
    >>> params = {"conv": {"kernel": jnp.ones((3, 3, 1, 8)), "bias": jnp.ones(8)}}
    >>> prunable_paths(params)
    ['conv/kernel']
    >>> prunable_paths(params, ((r"bias", True), (r".", False)))
    ['conv/bias']
    >>> prunable_paths(params, ((r"bias", True), (r"", None)))
    ['conv/bias', 'conv/kernel']
    """
    leaves = leaves_by_path(params)
    default = _by_default(params)
    rules = check_rules(prunable)
    if rules is None:
        chosen = [path for path in leaves if default[path]]
    else:
        first = first_matches([pattern for pattern, _ in rules], leaves, name="prunable rule")
        said = {path: False if i is None else rules[i][1] for path, i in first.items()}
        chosen = [path for path, take in said.items() if (default[path] if take is None else take)]
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
      paths: the prunable paths if they are known already; then `prunable` is not used.
    """
    paths = prunable_paths(tree, prunable) if paths is None else paths
    leaves = leaves_by_path(tree)
    return {path: leaves[path] for path in paths}


def dense_shapes(params: PyTree, prunable: Rules | None = None) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of the leaves that stay dense, by path, in the tree's order.

    Args:
      params: as in `prunable_paths`.
      prunable: as in `prunable_paths`.
    """
    chosen = set(prunable_paths(params, prunable))
    shapes = leaf_shapes(leaves_by_path(params))
    return {path: shape for path, shape in shapes.items() if path not in chosen}


def describe_dense(shapes: Shapes) -> str:
    """Returns a line about the leaves that stay dense: largest first, vectors only counted.

    >>> print(describe_dense({"tok_embed/weight": (90, 8), "fc/bias": (8,), "cls": (1, 1, 8)}))
    and 736 parameters that stay dense: tok_embed/weight (90, 8); and 2 vectors
    """
    others = {path: shape for path, shape in shapes.items() if not is_vector(shape)}
    line = f"and {sum(map(math.prod, shapes.values())):,} parameters that stay dense"
    if not others:
        return line
    by_size = sorted(others.items(), key=lambda item: -math.prod(item[1]))
    line += f": {listed(f'{path} {shape}' for path, shape in by_size)}"
    num = len(shapes) - len(others)
    return line + (f"; and {num} vector{'s' * (num > 1)}" if num else "")


def is_vector(shape: tuple[int, ...]) -> bool:
    """Returns whether at most one axis is longer than 1, as in biases, norms and class tokens."""
    return sum(n > 1 for n in shape) < 2


def leaf_shapes(leaves: Leaves) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every leaf, by path."""
    return {path: tuple(np.shape(leaf)) for path, leaf in leaves.items()}


def check_rules(prunable: Rules | None) -> tuple[tuple[str, bool | None], ...] | None:
    """Returns the rules as a tuple of pairs, None for None; raises a ValueError otherwise."""
    if prunable is None:
        return None
    try:
        rules = tuple((pattern, take) for pattern, take in prunable)
    except (TypeError, ValueError):
        rules = ((None, None),)
    if not all(
        isinstance(pattern, str) and isinstance(take, bool | None) for pattern, take in rules
    ):
        raise ValueError(f"prunable {prunable!r} must be (path regex, True, False or None) pairs")
    return tuple((str(pattern), take) for pattern, take in rules)


def first_matches(
    patterns: Sequence[str], paths: Iterable[str], *, name: str
) -> dict[str, int | None]:
    """Returns for each path the index of the first regex found in it, or None.

    Args:
      patterns: regexes.
      paths: paths of leaves.
      name: what a pattern is called in messages, such as "prunable rule".

    Raises:
      ValueError: a pattern is no regex, or is the first match of no path.
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
    """Returns names as a list for a message: the first `most` of them, and how many more.

    >>> listed(["a", "b", "c"], most=2)
    'a, b and 1 more'
    """
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _by_default(params: PyTree) -> dict[str, bool]:
    """By path, whether each leaf is prunable by default."""
    places = zip(_places(params), jax.tree.leaves(params), strict=True)
    return {
        path: is_weight(path, np.ndim(leaf), holder.__mro__ if holder else ())
        for (path, holder), leaf in places
    }
