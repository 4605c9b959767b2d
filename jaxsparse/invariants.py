"""The invariant of sparse training: an inactive weight, and each of its slots, is exactly 0."""

import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxsparse.counting import count_true
from jaxsparse.masks import check_masks
from jaxsparse.meshes import awaited
from jaxsparse.paths import leaf_paths
from jaxsparse.types import PyTree


def check(params: PyTree, opt_state: PyTree, masks: PyTree) -> None:
    """Checks that every inactive weight and optimizer slot is exactly 0; waits for the device.

    Only counts come to the host, so the arrays may be sharded over devices and processes.

    Slots are found without the optimizer. Every part of its state with the structure of params is a
    tree of slots. Elsewhere (under `optax.masked` or `optax.partition`) a slot belongs to the
    parameter with the longest path that its own path ends in. Slots of another shape than their
    parameter are not checked.

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
    paths = leaf_paths(params)
    by_path = dict(zip(paths, jax.tree.leaves(masks), strict=True))
    leaves = [(f"params at {p}", x, p) for p, x in zip(paths, jax.tree.leaves(params), strict=True)]
    leaves += [
        (f"optimizer slot {name}", slot, path)
        for name, slot, path in _slots(opt_state, params)
        if np.shape(slot) == np.shape(by_path[path])
    ]
    counts = [awaited(_num_bad(_countable(leaf), by_path[path])) for _, leaf, path in leaves]
    for (name, leaf, path), (num_bad, num_inactive) in zip(
        leaves, jax.device_get(counts), strict=True
    ):
        if num_bad:
            where, value = _first_bad(leaf, by_path[path])
            raise ValueError(
                f"{name}: {num_bad} of {num_inactive} inactive entries are not 0, "
                f"the first at {where} is {value}"
            )


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


def _countable(leaf: Any) -> Any:
    """The argument of `_is_set`: a JAX array itself, else bool, whether each entry is not 0.

    JAX would cut other arrays to 32 bits, in which a small float64 is 0.
    """
    return leaf if isinstance(leaf, jax.Array) else np.asarray(leaf) != 0


def _is_set(leaf: jax.Array) -> jax.Array:
    """Whether each entry is not 0.

    A float is 0 if no bit but its sign is set. On CPU, XLA compares denormal numbers as 0.
    """
    bits = _bits(leaf)
    has_sign = bits is not leaf and "fnuz" not in leaf.dtype.name  # whose 0x80 is NaN, no -0
    return (bits << 1 if has_sign else bits) != 0


def _bits(leaf: jax.Array) -> jax.Array:
    """The bits of floats as unsigned integers; anything else as it is."""
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        return leaf
    return lax.bitcast_convert_type(leaf, jnp.dtype(f"uint{jnp.finfo(leaf.dtype).bits}"))


@jax.jit
def _num_bad(leaf: jax.Array, mask: jax.Array) -> tuple[jax.Array, ...]:
    """int32[] twice: inactive entries that are not 0, and all inactive ones."""
    return count_true(~mask & _is_set(leaf), ~mask)


def _first_bad(leaf: Any, mask: Any) -> tuple[tuple[int, ...], Any]:
    """The place of the first bad entry in C order, and its value."""
    first, bits = jax.device_get(_find_first_bad(_countable(leaf), mask))
    where = tuple(int(i) for i in np.unravel_index(int(first), np.shape(leaf)))
    if not isinstance(leaf, jax.Array):
        return where, np.asarray(leaf)[where]
    return where, bits.view(leaf.dtype)[()]


@jax.jit
def _find_first_bad(leaf: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The index in C order and the bits of the first bad entry, by reductions alone.

    An index or a reshape would gather a sharded leaf.
    """
    bits = _bits(leaf)
    zero = bits ^ bits  # sharded as the leaf if axes are explicit, which `zeros_like` is not
    index = zero.astype(jnp.uint32)
    for axis in range(leaf.ndim):
        stride = math.prod(leaf.shape[axis + 1 :])
        index += lax.broadcasted_iota(jnp.uint32, leaf.shape, axis) * np.uint32(stride)
    bad = ~mask & _is_set(leaf)
    first = jnp.where(bad, index, np.uint32(2**32 - 1)).min()
    return first, jnp.where(index == first, bits, zero).sum(dtype=bits.dtype)
