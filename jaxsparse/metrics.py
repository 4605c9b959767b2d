"""Looking at masks: a table per layer, a check of the invariants, exploration over time."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxsparse.masks import check_masks
from jaxsparse.paths import leaf_paths, prunable_leaves
from jaxsparse.types import PyTree, Rules


class LayerSummary(NamedTuple):
    """One prunable leaf.

    Attributes:
      path: its path.
      shape: its shape.
      num_active: active weights.
      size: all weights.
    """

    path: str
    shape: tuple[int, ...]
    num_active: int
    size: int

    @property
    def density(self) -> float:
        """num_active / size, in [0, 1]; 0 for an empty leaf."""
        return self.num_active / self.size if self.size else 0.0


class Summary(NamedTuple):
    """All prunable leaves; `print(summary)` shows the table.

    Attributes:
      layers: in the order of the tree.
      num_other: parameters in leaves that stay dense (biases, norms), not counted in the sparsity.
    """

    layers: tuple[LayerSummary, ...]
    num_other: int

    @property
    def num_active(self) -> int:
        """Active prunable weights."""
        return sum(layer.num_active for layer in self.layers)

    @property
    def num_prunable(self) -> int:
        """All prunable weights."""
        return sum(layer.size for layer in self.layers)

    @property
    def sparsity(self) -> float:
        """Share of prunable weights that are inactive, in [0, 1]."""
        return 1.0 - self.num_active / max(self.num_prunable, 1)

    def __str__(self) -> str:
        """A table with one line per layer and the total."""
        total = LayerSummary("total", (), self.num_active, self.num_prunable)
        head = ("layer", "shape", "active", "weights", "sparsity")
        cells = [head] + [
            (r.path, str(r.shape or ""), f"{r.num_active:,}", f"{r.size:,}", f"{1 - r.density:.4f}")
            for r in (*self.layers, total)
        ]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        align = ("<", "<", ">", ">", ">")
        lines = [
            "  ".join(f"{c:{a}{w}}" for c, a, w in zip(row, align, widths, strict=True))
            for row in cells
        ]
        return "\n".join([*lines, f"and {self.num_other:,} parameters that stay dense"])


def summary(params: PyTree, masks: PyTree, prunable: Rules | None = None) -> Summary:
    """Counts active weights per layer, on the host.

    Args:
      params: any pytree of arrays.
      masks: bool, the structure and shapes of params.
      prunable: as in `prunable_paths`.

    Raises:
      ValueError: the trees differ; names the first leaf.

    >>> import jax.numpy as jnp
    >>> params = {"fc": {"kernel": jnp.ones((2, 4)), "bias": jnp.ones(4)}}
    >>> masks = {"fc": {"kernel": jnp.eye(2, 4, dtype=bool), "bias": jnp.ones(4, bool)}}
    >>> print(summary(params, masks))
    layer      shape   active  weights  sparsity
    fc/kernel  (2, 4)       2        8    0.7500
    total                   2        8    0.7500
    and 4 parameters that stay dense
    """
    check_masks(masks, params)
    leaves = prunable_leaves(masks, prunable)
    layers = tuple(
        LayerSummary(path, tuple(mask.shape), int(np.count_nonzero(np.asarray(mask))), mask.size)
        for path, mask in leaves.items()
    )
    everything = sum(math.prod(np.shape(x)) for x in jax.tree.leaves(params))
    return Summary(layers, everything - sum(layer.size for layer in layers))


def check(params: PyTree, opt_state: PyTree, masks: PyTree) -> None:
    """Checks that every inactive weight and optimizer slot is exactly 0, on the host.

    Slots are found without the optimizer: every part of its state with the structure of params is
    a tree of slots; elsewhere (under `optax.masked` or `optax.partition`) a slot belongs to the
    parameter with the longest path that its own path ends in. The shapes must agree as well.

    Args:
      params: any pytree of arrays.
      opt_state: any pytree; pass () to check only params.
      masks: bool, the structure and shapes of params.

    Raises:
      ValueError: names the first bad leaf, how many entries are bad, and the first of them.

    >>> import jax.numpy as jnp
    >>> check({"kernel": jnp.array([[0.0, 3.0]])}, (), {"kernel": jnp.array([[True, False]])})
    Traceback (most recent call last):
    ...
    ValueError: params at kernel: 1 of 1 inactive entries are not 0, the first at (0, 1) is 3.0
    """
    check_masks(masks, params)
    by_path = dict(zip(leaf_paths(masks), jax.tree.leaves(masks), strict=True))
    for path, leaf in zip(leaf_paths(params), jax.tree.leaves(params), strict=True):
        _check_leaf(f"params at {path}", leaf, by_path[path])
    for name, slot, path in _slots(opt_state, params):
        if np.shape(slot) == by_path[path].shape:
            _check_leaf(f"optimizer slot {name}", slot, by_path[path])


def explore(explored: PyTree, masks: PyTree) -> PyTree:
    """Adds the masks after an event to all that has been active so far; works under jit.

    Args:
      explored: bool, like masks: the union of all masks so far. Start with the initial masks.
      masks: the new masks.
    """
    return jax.tree.map(jnp.logical_or, explored, masks)


def exploration_rate(explored: PyTree, prunable: Rules | None = None) -> jax.Array:
    """R_s, the share of prunable weights that were active at some time, float32[] in [0, 1].

        R_s = |M_0 or M_1 or ... or M_t| / N

    Reference: Liu et al., "In-Time Over-Parameterization in Sparse Training", ICML 2021.

    >>> import jax.numpy as jnp
    >>> masks = [
    ...     {"kernel": jnp.array([m], bool)} for m in ([1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1])
    ... ]
    >>> explored = explore(explore(masks[0], masks[1]), masks[2])
    >>> float(exploration_rate(explored))
    1.0
    """
    leaves = prunable_leaves(explored, prunable).values()
    counts = [mask.sum(dtype=jnp.int32).astype(jnp.float32) for mask in leaves]
    return jnp.stack(counts).sum() / max(sum(mask.size for mask in leaves), 1)


def _slots(opt_state: PyTree, params: PyTree) -> Iterator[tuple[str, jax.Array, str]]:
    """Yields (name, slot, path of its parameter); a slot without a parameter is left out."""
    structure, paths = jax.tree.structure(params), leaf_paths(params)

    def like_params(node: PyTree) -> bool:
        return jax.tree.structure(node) == structure

    for at, node in jax.tree_util.tree_flatten_with_path(opt_state, is_leaf=like_params)[0]:
        name = jax.tree_util.keystr(at, simple=True, separator="/").removesuffix("/value")
        if like_params(node):
            for path, slot in zip(paths, jax.tree.leaves(node), strict=True):
                yield f"{name}/{path}".strip("/"), slot, path
        elif owners := [path for path in paths if f"/{name}".endswith(f"/{path}")]:
            yield name, node, max(owners, key=len)


def _check_leaf(name: str, leaf: jax.Array, mask: jax.Array) -> None:
    inactive = ~np.asarray(mask)
    bad = inactive & (np.asarray(leaf) != 0)
    if bad.any():
        where = tuple(int(i) for i in np.argwhere(bad)[0])
        raise ValueError(
            f"{name}: {bad.sum()} of {inactive.sum()} inactive entries are not 0, "
            f"the first at {where} is {np.asarray(leaf)[where]}"
        )
