"""Masks beside params: which leaves are prunable, and masks made, applied, counted and checked.

A tree of masks has the structure and shapes of params and bool leaves, True where a weight is
active. Leaves that are not prunable (biases, norms, embeddings) are all True and are never counted.
There is no None in it, so `jax.tree.map(f, params, masks)` always works.
"""

import re
import zlib
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxsparse.types import PyTree, Rules

_NEVER = re.compile(r"embed|norm|(^|[/_])bn_?\d*(/|$)", re.IGNORECASE)
_ALWAYS = re.compile(r"(^|/)(kernel|weight)$")


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
    if prunable is None:
        chosen = [p for p, x in leaves.items() if _is_prunable_by_default(p, x)]
    else:
        first = first_matches([pattern for pattern, _ in prunable], leaves, name="prunable rule")
        chosen = [p for p, i in first.items() if i is not None and prunable[i][1]]
    if not chosen:
        names = [f"{path} {np.shape(leaf)}" for path, leaf in leaves.items()]
        raise ValueError(f"no leaf is prunable; the leaves are {_listed(names)}")
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
            raise ValueError(f"{name} {pattern!r} is no regular expression: {error}") from None
    first = {
        path: next((i for i, pattern in enumerate(patterns) if re.search(pattern, path)), None)
        for path in paths
    }
    for index, pattern in enumerate(patterns):
        if index not in first.values():
            raise ValueError(
                f"{name} {pattern!r} is the first match of no leaf; there are {_listed(first)}"
            )
    return first


def with_leaves(tree: PyTree, leaves: dict[str, jax.Array]) -> PyTree:
    """Returns `tree` with the leaves at the given paths replaced."""
    new = [leaves.get(path, old) for path, old in leaves_by_path(tree).items()]
    return jax.tree.unflatten(jax.tree.structure(tree), new)


def dense_masks(params: PyTree) -> PyTree:
    """Returns masks that keep every weight: a tree of True like params."""
    return jax.tree.map(lambda x: jnp.ones(np.shape(x), bool), params)


def masks_from_params(params: PyTree, prunable: Rules | None = None) -> PyTree:
    """Returns the masks of an already sparse model: True where a prunable weight is not 0.

    Args:
      params: any pytree of arrays.
      prunable: as in `prunable_paths`; other leaves are all True.

    >>> import jax.numpy as jnp
    >>> masks_from_params({"kernel": jnp.array([[0.0, -2.0]]), "bias": jnp.zeros(1)})
    {'bias': Array([ True], dtype=bool), 'kernel': Array([[False,  True]], dtype=bool)}
    """
    weights = prunable_leaves(params, prunable)
    return with_leaves(dense_masks(params), {p: jnp.asarray(w) != 0 for p, w in weights.items()})


def pruned_only(masks: PyTree, prunable: Rules | None = None) -> PyTree:
    """Returns masks with every leaf that is not prunable all True.

    Masks made by hand, `jax.tree.map(lambda p: p != 0, params)` say, would else hold on to biases
    that are 0 at the start.
    """
    return with_leaves(dense_masks(masks), prunable_leaves(masks, prunable))


def apply_mask(x: jax.Array, mask: jax.Array) -> jax.Array:
    """Returns x where the mask is True and exactly +0 elsewhere, in x's dtype.

    Unlike `x * mask` it does not turn inf into nan or -1 into -0.

    Args:
      x: any dtype, any shape.
      mask: bool, x's shape.
    """
    return jnp.where(mask, x, jnp.zeros((), jnp.result_type(x)))


def apply_masks(params: PyTree, masks: PyTree) -> PyTree:
    """Returns params with every inactive weight at exactly 0.

    Do this once, when training starts; `masked` keeps it so. Do not do it inside the loss: the
    gradient of inactive weights, which methods grow by, would be 0.

    Args:
      params: any pytree of arrays.
      masks: bool, the structure and shapes of params.

    Raises:
      ValueError: the trees differ; names the first leaf.
    """
    check_like(masks, params, name="masks", like="params")
    return jax.tree.map(apply_mask, params, masks)


def sparsity(masks: PyTree, prunable: Rules | None = None) -> float:
    """Returns the share of prunable weights that are inactive, in [0, 1], computed on the host.

    >>> import jax.numpy as jnp
    >>> sparsity({"kernel": jnp.array([[True, False, False, False]])})
    0.75
    """
    leaves = prunable_leaves(masks, prunable).values()
    size = sum(int(np.size(mask)) for mask in leaves)
    return 1.0 - num_active(masks, prunable) / size if size else 0.0


def num_active(masks: PyTree, prunable: Rules | None = None) -> int:
    """Returns the number of active prunable weights, a Python int (waits for the device)."""
    return sum(
        int(np.count_nonzero(np.asarray(m))) for m in prunable_leaves(masks, prunable).values()
    )


def count_true(*masks: jax.Array) -> jax.Array:
    """Returns int32[len(masks)], the number of True in each mask, in one pass over what they share.

    Args:
      *masks: bool, all of one shape.
    """
    ones = tuple(mask.astype(jnp.int32) for mask in masks)
    # One variadic reduction: on CPU, separate sums would each compute and read their mask.
    zeros = tuple(np.int32(0) for _ in ones)
    counts = lax.reduce(ones, zeros, lambda a, b: tuple(map(lax.add, a, b)), range(ones[0].ndim))
    return jnp.stack(counts)


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


def check_masks(masks: PyTree, params: PyTree) -> None:
    """Raises a ValueError that names the first leaf of masks that is no mask of params."""
    check_like(masks, params, name="masks", like="params")
    for path, mask in leaves_by_path(masks).items():
        if jnp.result_type(mask) != jnp.bool_:
            raise ValueError(f"masks at {path} has dtype {jnp.result_type(mask)}; it must be bool")


def fold_key(key: jax.Array | None, *data: int | str | jax.Array) -> jax.Array | None:
    """Folds tags, steps and paths into a key, in order; strings by a hash that never changes.

    None stays None, so that a method that needs no randomness needs no key.
    """
    for item in data:
        if key is None:
            return None
        number = zlib.crc32(item.encode()) & 0x7FFFFFFF if isinstance(item, str) else item
        key = jax.random.fold_in(key, number)
    return key


def _is_prunable_by_default(path: str, leaf: Any) -> bool:
    return bool(_ALWAYS.search(path)) and not _NEVER.search(path) and np.ndim(leaf) >= 2


def _listed(names: Iterable[str], most: int = 8) -> str:
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
