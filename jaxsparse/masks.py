"""Masks beside params: made, applied, counted and checked.

A tree of masks has the structure and shapes of params. Its leaves are bool, True where a weight is
active. Leaves that are not prunable (biases, norms, embeddings) are all True and are never counted.
The tree has no None, so `jax.tree.map(f, params, masks)` always works.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxsparse.counting import num_true
from jaxsparse.paths import check_like, leaves_by_path, prunable_leaves, with_leaves
from jaxsparse.types import PyTree, Rules


def dense_masks(params: PyTree) -> PyTree:
    """Returns masks that keep every weight: bool, all True, the structure and shapes of params.

    The mask of a weight that was placed on a mesh lies beside it.
    """
    is_array = lambda x: isinstance(x, jax.Array)
    ones = lambda x: jnp.ones_like(x, bool) if is_array(x) else jnp.ones(np.shape(x), bool)
    return jax.tree.map(ones, params)


def masks_from_params(params: PyTree, prunable: Rules | None = None) -> PyTree:
    """Returns the masks of an already sparse model: True where a prunable weight is not 0.

    Use it for models from elsewhere. Within a run keep the run's own masks, because a weight that
    was just grown is also 0.

    Args:
      params: any pytree of arrays.
      prunable: as in `prunable_paths`; the masks of other leaves are all True.

    >>> import jax.numpy as jnp
    >>> masks_from_params({"kernel": jnp.array([[0.0, -2.0]]), "bias": jnp.zeros(1)})
    {'bias': Array([ True], dtype=bool), 'kernel': Array([[False,  True]], dtype=bool)}
    """
    weights = prunable_leaves(params, prunable)
    return with_leaves(dense_masks(params), {p: jnp.asarray(w) != 0 for p, w in weights.items()})


def pruned_only(masks: PyTree, prunable: Rules | None = None) -> PyTree:
    """Returns masks with every leaf that is not prunable set to all True.

    Masks made by hand, such as `jax.tree.map(lambda p: p != 0, params)`, would otherwise keep
    biases at 0 that are 0 at the start.
    """
    return with_leaves(dense_masks(masks), prunable_leaves(masks, prunable))


def apply_mask(x: jax.Array, mask: jax.Array) -> jax.Array:
    """Returns x where the mask is True and exactly +0 elsewhere, in x's dtype.

    Unlike `x * mask`, it does not turn inf into nan or -1 into -0.

    Args:
      x: any dtype, any shape.
      mask: bool, x's shape.
    """
    x = jnp.asarray(x)
    return select(jnp.asarray(mask, bool), x, jnp.zeros((), x.dtype))


@jax.custom_jvp
@functools.partial(jax.jit, inline=True)  # one pass even if the caller is not compiled
def select(mask: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
    """Returns `jnp.where(mask, x, y)` for one dtype; floats are selected by bitwise operations.

    On CPU, the select of `jnp.where` keeps XLA from vectorising the loop that it is fused into. A
    masked optimizer step of 8M weights took 1.5 to 1.8 times the plain step with it, and 1.1 times
    with this function.

    Args:
      mask: bool[shape].
      x: [shape], the values where the mask is True.
      y: [shape] or [], x's dtype, the values elsewhere.
    """
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return jnp.where(mask, x, y)
    bits = jnp.dtype(f"int{jnp.finfo(x.dtype).bits}")
    of_x, of_y = (lax.bitcast_convert_type(z, bits) for z in (x, y))
    # -True is all ones, -False all zeros.
    return lax.bitcast_convert_type(of_y ^ ((of_x ^ of_y) & -mask.astype(bits)), x.dtype)


@select.defjvp
def _select_jvp(primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
    # A bit cast has no derivative: without this rule gradients would silently be 0.
    mask, x, y = primals
    return select(mask, x, y), jnp.where(mask, tangents[1], tangents[2])


def apply_masks(params: PyTree, masks: PyTree) -> PyTree:
    """Returns params with every inactive weight set to exactly 0.

    Do this once, when training starts; `masked` keeps it so. Do not do it inside the loss: the
    gradient of inactive weights would be 0, and methods grow weights by that gradient.

    An average of params over steps (`optax.incremental_update`, `optax.ema`) is not sparse, because
    it still holds weights that were dropped since. Apply the current masks to it when you evaluate
    it: `apply_masks(average, masks)`. For a weight that was dropped and grown again, the average
    also includes its values before the drop; `average = apply_masks(average, event.kept)` at every
    event removes those too.

    Args:
      params: any pytree of arrays.
      masks: bool, the structure and shapes of params.

    Raises:
      ValueError: the trees differ, or masks are not bool (because params and masks are swapped,
        for example); names the first leaf.
    """
    return jax.tree.map(apply_mask, params, check_masks(masks, params))


def all_finite(tree: PyTree) -> jax.Array:
    """Returns bool[], whether every entry of every floating-point leaf is finite.

    Works under jit. Leaves of other dtypes are not looked at.

    >>> bool(all_finite({"kernel": jnp.array([1.0, jnp.inf]), "step": jnp.array(3)}))
    False
    """
    leaves = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(jnp.result_type(x), jnp.inexact)]
    finite = [jnp.isfinite(x).all() for x in leaves]
    return jnp.stack(finite).all() if finite else jnp.array(True)


def sparsity(masks: PyTree, prunable: Rules | None = None) -> float:
    """Returns the share of prunable weights that are inactive, in [0, 1]; waits for the device.

    Masks may be sharded in any way. The sparsity of a tree without prunable weights is 0.

    >>> import jax.numpy as jnp
    >>> sparsity({"kernel": jnp.array([[True, False, False, False]])})
    0.75
    """
    leaves = prunable_leaves(masks, prunable).values()
    size = sum(int(np.size(mask)) for mask in leaves)
    return 1.0 - num_active(masks, prunable) / size if size else 0.0


def num_active(masks: PyTree, prunable: Rules | None = None) -> int:
    """Returns the number of active prunable weights, a Python int; waits for the device.

    Masks may be sharded in any way: only counts come to the host.
    """
    return sum(num_true(prunable_leaves(masks, prunable).values()))


def check_masks(masks: PyTree, params: PyTree) -> PyTree:
    """Returns the masks in the containers of params.

    Raises:
      ValueError: a leaf is missing, has another shape than in params, or is not bool; names the
        first one.
    """
    masks = check_like(masks, params, name="masks", like="params")
    for path, mask in leaves_by_path(masks).items():
        if jnp.result_type(mask) != jnp.bool_:
            raise ValueError(f"masks at {path} has dtype {jnp.result_type(mask)}; it must be bool")
    return masks
