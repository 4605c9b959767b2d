"""Which active weights lie on a path from input to output, and which layers and networks are dead.

At extreme sparsity a weight can be active and yet have no effect: it reads a constant, or nothing
reads its output. A layer is dead if none of its active weights has an effect. The network is cut if
no path is left at all: it gives every input the same output.

No data are needed to tell, as SynFlow observed (Tanaka et al., "Pruning neural networks without any
data by iteratively conserving synaptic flow", 2020): the gradient of the outputs of a network of
ones and zeros shows the paths. SynFlow's numbers, products along the paths, leave the range of
float32 in deep networks; here they are 0 and 1, see `jaxsparse.tracing.reach`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxsparse.counting import num_true
from jaxsparse.masks import check_masks, dense_masks
from jaxsparse.paths import leaves_by_path, prunable_leaves, with_leaves
from jaxsparse.text_table import text_table
from jaxsparse.tracing.owners import leaf
from jaxsparse.tracing.reach import Reach, Use, find_reach
from jaxsparse.types import Leaves, PyTree, Rules


class LayerPaths(NamedTuple):
    """One prunable leaf.

    Attributes:
      path: its path.
      num_active: its active weights.
      num_live: those of them that lie on a path from input to output.
    """

    path: str
    num_active: int
    num_live: int

    @property
    def is_dead(self) -> bool:
        """Whether it has active weights, but no live one. A layer without active ones is empty."""
        return self.num_active > 0 and not self.num_live


class Connectivity(NamedTuple):
    """All prunable leaves.

    Attributes:
      layers: in the order of the tree.
    """

    layers: tuple[LayerPaths, ...]

    @property
    def num_live(self) -> int:
        """Live weights, over all leaves."""
        return sum(layer.num_live for layer in self.layers)

    @property
    def is_cut(self) -> bool:
        """Whether no weight is live: no path through prunable leaves joins input and output."""
        return not self.num_live

    @property
    def alarms(self) -> list[str]:
        """A message for each dead layer, or a single one if the network is cut.

        A layer of a residual branch whose other layers are dead or empty is dead too. An empty
        layer is an alarm of `summary`.
        """
        if self.is_cut:
            return ["no path is left from input to output"]
        return [
            f"{layer.path}: none of the {layer.num_active:,} weights that are left lies on a path "
            f"from input to output"
            for layer in self.layers
            if layer.is_dead
        ]

    def __str__(self) -> str:
        """A line per layer and the total; alarms where there are any."""
        total = LayerPaths("total", sum(x.num_active for x in self.layers), self.num_live)
        rows = [("layer", "active", "live")] + [
            (layer.path, f"{layer.num_active:,}", f"{layer.num_live:,}")
            for layer in (*self.layers, total)
        ]
        return "\n".join([*text_table(rows), *(f"alarm: {alarm}" for alarm in self.alarms)])


def live_weights(
    forward: Callable[..., Any],
    params: PyTree,
    masks: PyTree,
    *inputs: Any,
    prunable: Rules | None = None,
) -> PyTree:
    """Tells which active weights lie on a path from input to output.

    A weight is live if its factor may depend on the input, and the product may have an effect on an
    output, through active weights alone. All other weights can be left out: with another value, the
    outputs move by a constant that no input changes, or not at all. A live weight may still be 0 or
    stand behind a ReLU that never opens, as only masks and shapes are looked at.

    The result is exact for networks of products with parameters, sums, activations, norms that use
    running statistics, pooling, padding and reshaping, at any depth: nothing over- or underflows.
    It is exact for kernels made from several leaves that are joined, scaled or added up. A kernel
    that may be other than 0 where its leaf is pruned, because of a constant or an exponential, is
    open there. Parameters that are only added, such as biases, start no path, and are not live if
    they are prunable.

    Elsewhere a dead weight may be called live, but never a live one dead. A value computed from
    several data counts as depending on all of them: a gate that dead weights close closes nothing
    here. So does everything in a loop or branch (`lax.scan`, `lax.cond`) or a ragged product. Norms
    of the batch or the layer join what they average.

    Args:
      forward: function of (params, *inputs), such as
        `lambda params, x: model.apply({"params": params, **collections}, x)`, without dropout.
        It is traced, never run.
      params: pytree of arrays or `jax.ShapeDtypeStruct`.
      masks: bool, the structure and shapes of params.
      *inputs: pytrees of arrays or `jax.ShapeDtypeStruct`; a batch of 1 will do.
      prunable: as in `prunable_paths`.

    Returns:
      Masks of the live weights, within `masks`; all True for leaves that are not prunable. Works
      under `jax.jit`, with the masks as its argument.

    Raises:
      ValueError: the trees differ, or masks are not bool; names the first leaf.

    >>> import jax.numpy as jnp
    >>> forward = lambda p, x: jax.nn.relu(x @ p[0]["kernel"]) @ p[1]["kernel"]
    >>> masks = [{"kernel": jnp.array(m, bool)} for m in ([[1, 1, 0]], [[1], [0], [1]])]
    >>> live = live_weights(forward, masks, masks, jax.ShapeDtypeStruct((1, 1), jnp.float32))
    >>> [mask["kernel"].ravel().tolist() for mask in live]
    [[True, False, False], [True, False, False]]
    """
    masks = check_masks(masks, params)
    kernels = prunable_leaves(masks, prunable)

    def num_reached(kernels: Leaves) -> jax.Array:
        outputs, _ = _run(forward, params, with_leaves(masks, kernels), inputs)
        reached = [x.on.sum() for x in outputs if isinstance(x, Reach) and x.origin is None]
        return sum(reached, jnp.zeros((), jnp.float32))

    as_floats = {path: jnp.asarray(mask, jnp.float32) for path, mask in kernels.items()}
    # Op by op: the operations are compiled once, a `jax.jit` of a new function at every call.
    found = jax.grad(num_reached)(as_floats)
    live = {path: jnp.asarray(mask) & (found[path] > 0.5) for path, mask in kernels.items()}
    return with_leaves(dense_masks(masks), live)


def count_live(masks: PyTree, live: PyTree, prunable: Rules | None = None) -> Connectivity:
    """Counts active and live weights per layer; waits for the device.

    Masks may be sharded in any way: only counts come to the host.

    Args:
      masks: bool, as given to `live_weights`.
      live: what it returned.
      prunable: as in `prunable_paths`.

    >>> masks = {"kernel": np.ones((1, 4), bool)}
    >>> count_live(masks, {"kernel": np.zeros((1, 4), bool)}).alarms
    ['no path is left from input to output']
    """
    live = check_masks(live, masks)
    active, others = prunable_leaves(masks, prunable), prunable_leaves(live, prunable)
    counts = zip(active, num_true(active.values()), num_true(others.values()), strict=True)
    return Connectivity(tuple(LayerPaths(*found) for found in counts))


def where_paths_end(
    forward: Callable[..., Any], params: PyTree, masks: PyTree, *inputs: Any
) -> str | None:
    """Returns the layer at which the last path from the input ends, if none reaches an output.

    It is the last layer, in the order of execution, that reads anything depending on the input.

    Args:
      forward: as in `live_weights`.
      params: as in `live_weights`.
      masks: bool, the structure and shapes of params.
      *inputs: as in `live_weights`.

    Returns:
      The path of its kernel, or several if it is made from several leaves, such as "k/kernel and
      q/kernel". None if an output is reached, or if no layer reads the input.

    Raises:
      ValueError: as in `live_weights`.
    """
    masks = check_masks(masks, params)
    outputs, uses = _run(forward, params, masks, inputs)
    if any(x.on.any() for x in outputs if isinstance(x, Reach) and x.origin is None):
        return None
    reached = [" and ".join(use.paths) for use in uses if use.is_reached]
    return reached[-1] if reached else None


def _run(
    forward: Callable[..., Any], params: PyTree, masks: PyTree, inputs: tuple[Any, ...]
) -> tuple[list[Any], list[Use]]:
    """Runs the function on the masks and on inputs of ones."""
    closed = jax.make_jaxpr(forward)(params, *inputs)
    weights = [
        Reach(jnp.asarray(mask, jnp.float32), leaf(path, np.shape(mask)))
        for path, mask in leaves_by_path(masks).items()
    ]
    data = [Reach(jnp.ones(np.shape(x), jnp.float32)) for x in jax.tree.leaves(inputs)]
    return find_reach(closed, [*weights, *data])
