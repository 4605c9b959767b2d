"""Looking at masks: a table per layer, alarms, dead channels, a check of the invariants."""

import math
from collections.abc import Collection, Iterator
from types import MappingProxyType
from typing import NamedTuple

import jax
import numpy as np

from jaxsparse.axes import AxesByPath, axes_of, num_places
from jaxsparse.masks import check_masks
from jaxsparse.paths import dense_shapes, describe_dense, leaf_paths, listed, prunable_leaves
from jaxsparse.types import KernelAxes, PyTree, Rules, Shapes


class DeadChannels(NamedTuple):
    """Channels of one leaf without an active weight.

    Attributes:
      num_in: input channels that no active weight reads.
      num_out: output channels that no active weight feeds; such a channel is constant.
    """

    num_in: int
    num_out: int


class LayerSummary(NamedTuple):
    """One prunable leaf.

    Attributes:
      path: its path.
      shape: its shape.
      num_active: active weights.
      size: all weights.
      dead: its channels without an active weight.
      num_outputs: its output channels.
    """

    path: str
    shape: tuple[int, ...]
    num_active: int
    size: int
    dead: DeadChannels
    num_outputs: int = 1

    @property
    def density(self) -> float:
        """num_active / size, in [0, 1]; 0 for an empty leaf."""
        return self.num_active / self.size if self.size else 0.0

    @property
    def alarm(self) -> str | None:
        """What is wrong with a layer, or None: it is empty, or no active weight reaches an output.

        Such an output is constant whatever the input. An alarm, no error: ERK and global pruning
        get there at high sparsity, and a residual branch or a wide layer can do without some
        channels.
        """
        if not self.size:
            return None
        if not self.num_active:
            return f"{self.path}: no weight is left"
        if self.dead.num_out:
            return (
                f"{self.path}: {self.num_active:,} weights are left, and none reaches "
                f"{self.dead.num_out:,} of {self.num_outputs:,} outputs"
            )
        return None


class Summary(NamedTuple):
    """All prunable leaves; `print(summary)` shows the table.

    Attributes:
      layers: in the order of the tree.
      dense: shapes of the leaves that stay dense (biases, norms, embeddings), by path.
      frozen: shapes of the leaves that the optimizer never moves, by path; they are counted apart.
      notes: what of the method did not happen, see `events.event_notes`.
    """

    layers: tuple[LayerSummary, ...]
    dense: Shapes
    frozen: Shapes = MappingProxyType({})
    notes: tuple[str, ...] = ()

    @property
    def num_other(self) -> int:
        """Parameters in leaves that stay dense, not counted in the sparsity."""
        return sum(map(math.prod, self.dense.values()))

    @property
    def num_frozen(self) -> int:
        """Parameters in leaves that are frozen, not counted in the sparsity."""
        return sum(map(math.prod, self.frozen.values()))

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

    @property
    def dead(self) -> DeadChannels:
        """Channels without an active weight, over all layers."""
        return DeadChannels(*map(sum, zip(*(layer.dead for layer in self.layers), strict=True)))

    @property
    def alarms(self) -> list[str]:
        """One message for each layer that has one, see `LayerSummary.alarm`."""
        return [layer.alarm for layer in self.layers if layer.alarm]

    def __str__(self) -> str:
        """A line per layer and the total, what stays dense; dead channels and alarms if any."""
        total = LayerSummary("total", (), self.num_active, self.num_prunable, self.dead)
        cells = [("layer", "shape", "active", "weights", "sparsity", "dead in", "dead out")] + [
            (
                layer.path,
                str(layer.shape or ""),
                f"{layer.num_active:,}",
                f"{layer.size:,}",
                f"{1 - layer.density:.4f}",
                f"{layer.dead.num_in:,}",
                f"{layer.dead.num_out:,}",
            )
            for layer in (*self.layers, total)
        ]
        if not any(self.dead):
            cells = [row[:-2] for row in cells]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        align = ("<", "<", *">>>>>"[: len(widths) - 2])
        lines = [
            "  ".join(f"{c:{a}{w}}" for c, a, w in zip(row, align, widths, strict=True))
            for row in cells
        ]
        lines.append(describe_dense(self.dense))
        if self.frozen:
            lines.append(f"and {self.num_frozen:,} frozen parameters: {listed(self.frozen)}")
        return "\n".join([*lines, *(f"alarm: {alarm}" for alarm in (*self.alarms, *self.notes))])


def summary(
    params: PyTree,
    masks: PyTree,
    prunable: Rules | None = None,
    *,
    frozen: Collection[str] = (),
    axes: AxesByPath | None = None,
) -> Summary:
    """Counts active weights per layer, on the host.

    Args:
      params: any pytree of arrays.
      masks: bool, the structure and shapes of params.
      prunable: as in `prunable_paths`.
      frozen: paths of leaves that the optimizer never moves, see `frozen_paths`.
      axes: what is an input and what an output, by path, from `kernel_axes` or by hand; leaves
        without an entry, and all where it is None, go by the rules of `jaxsparse.axes`.

    Raises:
      ValueError: the trees differ, or axes do not fit their leaf; names the first leaf.

    >>> import jax.numpy as jnp
    >>> params = {"fc": {"kernel": jnp.ones((2, 4)), "bias": jnp.ones(4)}}
    >>> masks = {"fc": {"kernel": jnp.eye(2, 4, dtype=bool), "bias": jnp.ones(4, bool)}}
    >>> print(summary(params, masks))
    layer      shape   active  weights  sparsity  dead in  dead out
    fc/kernel  (2, 4)       2        8    0.7500        0         2
    total                   2        8    0.7500        0         2
    and 4 parameters that stay dense
    alarm: fc/kernel: 2 weights are left, and none reaches 2 of 4 outputs
    """
    masks = check_masks(masks, params)
    leaves = prunable_leaves(masks, prunable)
    given = axes or {}
    layers = tuple(_layer(path, np.asarray(mask), given) for path, mask in leaves.items())
    others = dense_shapes(masks, prunable)
    apart = {path: shape for path, shape in others.items() if path in frozen}
    dense = {path: shape for path, shape in others.items() if path not in apart}
    return Summary(layers, dense, apart)


def _layer(path: str, mask: np.ndarray, given: AxesByPath) -> LayerSummary:
    found = axes_of(path, mask.shape, given)
    outputs = num_places(mask.shape, (*found.batch, *found.outputs))
    num_active = int(np.count_nonzero(mask))
    dead = dead_channels(mask, found)
    return LayerSummary(path, mask.shape, num_active, mask.size, dead, outputs)


def dead_channels(mask: jax.Array | np.ndarray, axes: KernelAxes | None = None) -> DeadChannels:
    """Counts the channels of one leaf without an active weight, on the host.

    A channel is one place of all input axes together, or of all output axes: each feature of each
    head of an attention's query. Of a convolution in groups the input channels are those of one
    group. The kernels of a batch have channels of their own.

    Args:
      mask: bool, of any rank.
      axes: of the leaf; None is Flax's layout: the last axis is the outputs, the one before it the
        inputs, others are taps. A stack of layers is then one leaf, whose channel is dead where it
        is dead in all of them, and a leaf of rank 1 has outputs only.

    Raises:
      ValueError: axes do not name each axis of the leaf once.

    >>> dead_channels(np.eye(3, 5, dtype=bool))
    DeadChannels(num_in=0, num_out=2)
    >>> dead_channels(np.eye(3, 5, dtype=bool), KernelAxes(inputs=(1,), outputs=(0,)))
    DeadChannels(num_in=2, num_out=0)
    """
    mask = np.asarray(mask)
    found = axes_of("mask", mask.shape, {} if axes is None else {"mask": axes})

    def num_dead(side: tuple[int, ...]) -> int:
        others = tuple(i for i in range(mask.ndim) if i not in (*side, *found.batch))
        return int(np.count_nonzero(~mask.any(others))) if side else 0

    return DeadChannels(num_dead(found.inputs), num_dead(found.outputs))


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
    masks = check_masks(masks, params)
    by_path = dict(zip(leaf_paths(masks), jax.tree.leaves(masks), strict=True))
    for path, leaf in zip(leaf_paths(params), jax.tree.leaves(params), strict=True):
        _check_leaf(f"params at {path}", leaf, by_path[path])
    for name, slot, path in _slots(opt_state, params):
        if np.shape(slot) == by_path[path].shape:
            _check_leaf(f"optimizer slot {name}", slot, by_path[path])


def _slots(opt_state: PyTree, params: PyTree) -> Iterator[tuple[str, jax.Array, str]]:
    """Yields (name, slot, path of its parameter); a slot without a parameter is left out."""
    structure, paths = jax.tree.structure(params), leaf_paths(params)

    def like_params(node: PyTree) -> bool:
        return jax.tree.structure(node) == structure

    nodes = jax.tree.leaves(opt_state, is_leaf=like_params)
    for name, node in zip(leaf_paths(opt_state, is_leaf=like_params), nodes, strict=True):
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
