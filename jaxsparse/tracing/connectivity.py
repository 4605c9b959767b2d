"""Which active weights lie on a path from input to output, and which layers and networks are dead.

At extreme sparsity a weight can be active and yet without any effect: what it reads is constant, or
nobody reads what it writes. A layer all of whose weights are so is dead, and when no path is left
at all, the network is cut: it gives every input the same output.

That no data are needed to tell is the observation of SynFlow (Tanaka et al., "Pruning neural
networks without any data by iteratively conserving synaptic flow", 2020): of a network of ones and
zeros, the gradient of the outputs shows the paths. Its numbers, products along the paths, leave the
range of float32 in deep networks; here they are 0 and 1, see `jaxsparse.tracing.reach`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxsparse.masks import check_masks, dense_masks
from jaxsparse.paths import leaves_by_path, prunable_leaves, with_leaves
from jaxsparse.tracing.owners import leaf
from jaxsparse.tracing.reach import Signal, Use, run_on_signals
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
        """Whether it has active weights, none of which is live. Without any it is empty."""
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
        """A message for each dead layer; of a network that is cut the one that says so.

        A layer of a residual branch whose other layers are dead or empty is dead too. That a layer
        is empty is an alarm of `summary`.
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
        cells = [("layer", "active", "live")] + [
            (layer.path, f"{layer.num_active:,}", f"{layer.num_live:,}")
            for layer in (*self.layers, total)
        ]
        path, active, live = (max(map(len, column)) for column in zip(*cells, strict=True))
        lines = [f"{a:<{path}}  {b:>{active}}  {c:>{live}}" for a, b, c in cells]
        return "\n".join([*lines, *(f"alarm: {alarm}" for alarm in self.alarms)])


def live_weights(
    forward: Callable[..., Any],
    params: PyTree,
    masks: PyTree,
    *inputs: Any,
    prunable: Rules | None = None,
) -> PyTree:
    """Tells which active weights lie on a path from input to output.

    A weight is live if what it is multiplied with may depend on the input, and the product may have
    an effect on an output, through active weights alone. The others can be left out: with another
    value, the outputs move by a constant that no input changes, or not at all. A live weight may
    still be 0 or stand behind a ReLU that never opens; nothing but masks and shapes is looked at.

    Exact for networks of products with parameters, sums, activations, norms that use running
    statistics, pooling, padding and reshaping, at any depth: nothing over- or underflows. So are
    kernels made from several leaves that are joined, scaled or added up. A kernel may be other than
    0 where its leaf is pruned, because of a constant or an exponential, say: it is open there. A
    value computed from several data counts as depending on all of them (a gate that is closed by
    dead weights closes nothing here), as does everything in a loop or branch (`lax.scan`,
    `lax.cond`) or a ragged product, and norms of the batch or the layer join what they average:
    there it may call a dead weight live, never a live one dead. Parameters that are only added,
    such as biases, start no path; where they are prunable they are not live.

    Args:
      forward: function of (params, *inputs), such as
        `lambda params, x: model.apply({"params": params, **collections}, x)`, without dropout.
        It is traced, never run.
      params: pytree of arrays or `jax.ShapeDtypeStruct`.
      masks: bool, the structure and shapes of params.
      *inputs: pytrees of arrays or `jax.ShapeDtypeStruct`; a batch of 1 will do.
      prunable: as in `prunable_paths`.

    Returns:
      Masks of the live weights, within `masks`; other leaves are all True. Works under `jax.jit`,
      with the masks as its argument.

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
        reached = [x.on.sum() for x in outputs if isinstance(x, Signal) and x.origin is None]
        return sum(reached, jnp.zeros((), jnp.float32))

    as_floats = {path: jnp.asarray(mask, jnp.float32) for path, mask in kernels.items()}
    # Op by op, which is compiled once; a `jax.jit` of what is new at every call never is.
    found = jax.grad(num_reached)(as_floats)
    live = {path: jnp.asarray(mask) & (found[path] > 0.5) for path, mask in kernels.items()}
    return with_leaves(dense_masks(masks), live)


def count_live(masks: PyTree, live: PyTree, prunable: Rules | None = None) -> Connectivity:
    """Counts active and live weights per layer, on the host.

    Args:
      masks: bool, as given to `live_weights`.
      live: what it returned.
      prunable: as in `prunable_paths`.

    >>> masks = {"kernel": np.ones((1, 4), bool)}
    >>> count_live(masks, {"kernel": np.zeros((1, 4), bool)}).alarms
    ['no path is left from input to output']
    """
    live = check_masks(live, masks)
    count = lambda mask: int(np.count_nonzero(np.asarray(mask)))
    active, others = prunable_leaves(masks, prunable), prunable_leaves(live, prunable)
    return Connectivity(tuple(LayerPaths(p, count(active[p]), count(others[p])) for p in active))


def where_paths_end(
    forward: Callable[..., Any], params: PyTree, masks: PyTree, *inputs: Any
) -> str | None:
    """Returns the layer that ends the last path from the input, where none reaches an output.

    It is the last one, in the order of execution, that reads anything that depends on the input.

    Args:
      forward: as in `live_weights`.
      params: as in `live_weights`.
      masks: bool, the structure and shapes of params.
      *inputs: as in `live_weights`.

    Returns:
      The path of its kernel, of one made from several leaves such as "k/kernel and q/kernel". None
      where an output is reached, or where no layer reads the input.

    Raises:
      ValueError: as in `live_weights`.
    """
    masks = check_masks(masks, params)
    outputs, uses = _run(forward, params, masks, inputs)
    if any(x.on.any() for x in outputs if isinstance(x, Signal) and x.origin is None):
        return None
    reached = [" and ".join(use.paths) for use in uses if use.is_reached]
    return reached[-1] if reached else None


def _run(
    forward: Callable[..., Any], params: PyTree, masks: PyTree, inputs: tuple[Any, ...]
) -> tuple[list[Any], list[Use]]:
    """Runs the function on the masks and on inputs of ones."""
    closed = jax.make_jaxpr(forward)(params, *inputs)
    weights = [
        Signal(jnp.asarray(mask, jnp.float32), leaf(path, np.shape(mask)))
        for path, mask in leaves_by_path(masks).items()
    ]
    data = [Signal(jnp.ones(np.shape(x), jnp.float32)) for x in jax.tree.leaves(inputs)]
    return run_on_signals(closed, [*weights, *data])
