"""Statistics of masks: a table of layers, alarms, and dead channels."""

import functools
import math
from collections.abc import Collection
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxsparse.axes import AxesByPath, axes_of, num_places
from jaxsparse.counting import count_true
from jaxsparse.masks import check_masks
from jaxsparse.meshes import awaited
from jaxsparse.paths import dense_shapes, describe_dense, listed, prunable_leaves
from jaxsparse.text_table import text_table
from jaxsparse.types import KernelAxes, PyTree, Rules, Shapes


class DeadChannels(NamedTuple):
    """Numbers of channels of one leaf that have no active weight.

    Attributes:
      num_in: input channels that no active weight reads.
      num_out: output channels that no active weight feeds; the output of such a channel is
        constant.
    """

    num_in: int
    num_out: int


class LayerSummary(NamedTuple):
    """Counts of one prunable leaf.

    Attributes:
      path: path of the leaf.
      shape: shape of the leaf.
      num_active: number of active weights.
      size: number of all weights.
      dead: numbers of channels without an active weight.
      num_outputs: number of output channels.
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
        """A message if the layer is empty or no active weight reaches some output, else None.

        Such an output is constant for every input. This is no error: ERK and global pruning cause
        it at high sparsity, and a residual branch or a wide layer can work without some channels.
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
    """Counts of all prunable leaves; `print(summary)` shows a table.

    Attributes:
      layers: one entry per prunable leaf, in the order of the tree.
      dense: shapes of the leaves that stay dense (biases, norms, embeddings), by path.
      frozen: shapes of the leaves that the optimizer never moves, by path; counted apart.
      notes: messages about events that did not happen, see `event_counts.event_notes`.
    """

    layers: tuple[LayerSummary, ...]
    dense: Shapes
    frozen: Shapes = MappingProxyType({})
    notes: tuple[str, ...] = ()

    @property
    def num_other(self) -> int:
        """Number of parameters in leaves that stay dense; not counted in the sparsity."""
        return sum(map(math.prod, self.dense.values()))

    @property
    def num_frozen(self) -> int:
        """Number of parameters in frozen leaves; not counted in the sparsity."""
        return sum(map(math.prod, self.frozen.values()))

    @property
    def num_active(self) -> int:
        """Number of active prunable weights."""
        return sum(layer.num_active for layer in self.layers)

    @property
    def num_prunable(self) -> int:
        """Number of all prunable weights."""
        return sum(layer.size for layer in self.layers)

    @property
    def sparsity(self) -> float:
        """Share of prunable weights that are inactive, in [0, 1]."""
        return 1.0 - self.num_active / max(self.num_prunable, 1)

    @property
    def dead(self) -> DeadChannels:
        """Numbers of channels without an active weight, summed over all layers."""
        return DeadChannels(*map(sum, zip(*(layer.dead for layer in self.layers), strict=True)))

    @property
    def alarms(self) -> list[str]:
        """The messages of `LayerSummary.alarm`, for layers that have one."""
        return [layer.alarm for layer in self.layers if layer.alarm]

    def __str__(self) -> str:
        """A table of layers with a total, what stays dense, and alarms.

        The columns of dead channels are left out if no channel is dead.
        """
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
        lines = text_table(cells, align="<<")
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
    """Counts active weights and dead channels per layer; waits for the device.

    Masks may be sharded in any way: only counts come to the host.

    Args:
      params: any pytree of arrays.
      masks: bool, the structure and shapes of params.
      prunable: as in `prunable_paths`.
      frozen: paths of leaves that the optimizer never moves, see `frozen_paths`.
      axes: which axes are inputs and which are outputs, by path, from `kernel_axes` or by hand.
        Leaves without an entry follow the rules of `jaxsparse.axes`; so do all leaves if None.

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
    found = {path: axes_of(path, np.shape(mask), axes or {}) for path, mask in leaves.items()}
    counts = {path: awaited(_counts(mask, found[path])) for path, mask in leaves.items()}
    counts = jax.device_get(counts)
    layers = tuple(
        _layer(path, np.shape(mask), found[path], *counts[path]) for path, mask in leaves.items()
    )
    others = dense_shapes(masks, prunable)
    apart = {path: shape for path, shape in others.items() if path in frozen}
    dense = {path: shape for path, shape in others.items() if path not in apart}
    return Summary(layers, dense, apart)


def _layer(
    path: str, shape: tuple[int, ...], axes: KernelAxes, num_active: Any, num_in: Any, num_out: Any
) -> LayerSummary:
    dead = DeadChannels(int(num_in), int(num_out))
    num_outputs = num_places(shape, (*axes.batch, *axes.outputs))
    return LayerSummary(path, shape, int(num_active), math.prod(shape), dead, num_outputs)


def dead_channels(mask: jax.Array | np.ndarray, axes: KernelAxes | None = None) -> DeadChannels:
    """Counts the channels of one leaf that have no active weight; waits for the device.

    A channel is one index into all input axes together, or into all output axes together. The
    query of an attention, for example, has one output channel for each feature of each head. The
    input channels of a grouped convolution are those of one group. Each kernel of a batch has its
    own channels.

    Args:
      mask: bool, any rank, sharded in any way.
      axes: axes of the leaf. None means Flax's layout: the last axis is the outputs, the one before
        it the inputs, and the others are taps. A stack of layers then counts as one leaf, whose
        channel is dead if it is dead in every layer. A leaf of rank 1 has only outputs.

    Raises:
      ValueError: axes do not name each axis of the leaf once.

    >>> dead_channels(np.eye(3, 5, dtype=bool))
    DeadChannels(num_in=0, num_out=2)
    >>> dead_channels(np.eye(3, 5, dtype=bool), KernelAxes(inputs=(1,), outputs=(0,)))
    DeadChannels(num_in=2, num_out=0)
    """
    given = {} if axes is None else {"mask": axes}
    _, *dead = jax.device_get(_counts(mask, axes_of("mask", np.shape(mask), given)))
    return DeadChannels(*map(int, dead))


def _counts(mask: jax.Array | np.ndarray, axes: KernelAxes) -> tuple[Any, Any, Any]:
    """Active weights, dead inputs and dead outputs, counted where the mask is: host or device."""
    if isinstance(mask, jax.Array):
        return _counts_on_device(mask, axes)
    mask = np.asarray(mask)
    return np.count_nonzero(mask), *_num_dead(mask, axes)


@functools.partial(jax.jit, static_argnums=1)
def _counts_on_device(mask: jax.Array, axes: KernelAxes) -> tuple[Any, Any, Any]:
    return *count_true(mask != 0), *_num_dead(mask, axes)


def _num_dead(mask: Any, axes: KernelAxes) -> tuple[Any, Any]:
    """Dead inputs and dead outputs; `mask` is an array of NumPy or of JAX."""

    def num_dead(side: tuple[int, ...]) -> Any:
        others = tuple(i for i in range(mask.ndim) if i not in (*side, *axes.batch))
        return (~mask.any(others)).sum() if side else 0

    return num_dead(axes.inputs), num_dead(axes.outputs)
