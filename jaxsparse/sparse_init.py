"""Initial weights of a sparse network: as large as its units' own number of inputs asks for.

A dense initialiser gives a weight a variance of c / fan_in. A unit of a sparse network sums over
fewer weights, so its output is smaller, and smaller again with every layer; gradients likewise.
"""

from typing import Literal

import jax
import jax.numpy as jnp

from jaxsparse.axes import AxesByPath, axes_of, fan_in, kept_axes, num_places
from jaxsparse.masks import check_masks
from jaxsparse.paths import leaves_by_path, prunable_leaves, with_leaves
from jaxsparse.types import KernelAxes, OptionError, PyTree, Rules

Unit = Literal["unit", "layer"]


def sparse_init(
    params: PyTree,
    masks: PyTree,
    *,
    by: Unit = "unit",
    prunable: Rules | None = None,
    axes: AxesByPath | None = None,
) -> PyTree:
    """Scales initial weights to the masks of a sparse network, whatever initialiser drew them.

        params = model.init(key, x)["params"]
        masks = method.init(mask_key, params)
        params = jaxsparse.sparse_init(params, masks)
        state = TrainState.create(params=params, masks=masks, method=method, ...)

    Active weights are multiplied by sqrt(fan_in / number of active inputs), and the others are 0.
    So a unit of n active inputs has the variance that the initialiser has for fan_in n.

    Args:
      params: weights as a dense initialiser with variance c / fan_in has drawn them.
      masks: a tree like params, bool[leaf] at prunable leaves.
      by: "unit" counts the inputs of each output unit, over the taps of a convolution too (Evci et
        al.); "layer" takes their mean over the units of a layer, which is 1 / density (Liu et al.).
      prunable: as in `prunable_paths`; other leaves stay as they are.
      axes: axes of leaves whose layout the default rules do not know, by path, as `kernel_axes`
        finds them.

    Returns:
      Params with the dtypes and on the devices of the given ones. A unit without inputs is 0. With
      masks that are all True they are equal to params.

    Raises:
      ValueError: `by` is something else, or the masks do not fit params.

    Differs from the code of Evci et al. in: it rescales what was drawn, where they draw anew; their
    initialiser scales by the mean of fan-in and fan-out, and draws from a uniform distribution.

    Reference: Evci et al., "Gradient Flow in Sparse Neural Networks and How Lottery Tickets Win",
    AAAI 2022, section 3; Liu et al., "Rethinking the Value of Network Pruning", ICLR 2019
    ("layer").

    >>> params = {"kernel": jnp.ones((4, 2))}
    >>> masks = {"kernel": jnp.array([[True, True], [False, True], [False, True], [False, True]])}
    >>> sparse_init(params, masks)["kernel"]
    Array([[2., 1.],
           [0., 1.],
           [0., 1.],
           [0., 1.]], dtype=float32)
    """
    if by not in ("unit", "layer"):
        raise OptionError("by", by, "must be unit or layer")
    weights = prunable_leaves(params, prunable)
    given, kept = leaves_by_path(check_masks(masks, params)), kept_axes(axes)
    return with_leaves(
        params,
        {
            path: _scaled(jnp.asarray(w), given[path], axes_of(path, w.shape, kept), by)
            for path, w in weights.items()
        },
    )


def _scaled(w: jax.Array, mask: jax.Array, axes: KernelAxes, by: Unit) -> jax.Array:
    summed = (*axes.inputs, *axes.window)
    active = jnp.sum(mask, axis=summed, keepdims=True, dtype=jnp.int32)
    if by == "layer":
        units = num_places(w.shape, axes.outputs)
        mean = jnp.sum(active, axis=axes.outputs, keepdims=True, dtype=jnp.float32) / units
        scale = jnp.sqrt(fan_in(w.shape, axes) / jnp.maximum(mean, 1 / units))
    else:
        scale = jnp.sqrt(fan_in(w.shape, axes) / jnp.maximum(active, 1).astype(jnp.float32))
    wide = jnp.promote_types(w.dtype, jnp.float32)
    return jnp.where(mask, w.astype(wide) * scale.astype(wide), 0).astype(w.dtype)
