"""Whether channels that a compactor makes 0 can be removed without a change of the outputs."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsparse.paths import leaves_by_path, listed, with_leaves
from jaxsparse.types import PyTree


def check_compactor(
    forward: Callable[[PyTree], Any],
    variables: PyTree,
    key: jax.Array,
    *,
    compactor: str,
    consumers: Mapping[str, int],
    tolerance: float = 1e-5,
) -> None:
    """Raises a ValueError unless dead channels of a compactor can be removed; says why not.

    Half of the compactor's rows are set to 0, and every other leaf is moved at random, so that a
    bias that is 0 at the start is found too. Removal is exact if and only if two things hold:

        1. Consumers read 0 from the dead channels: their weights for these channels do not matter.
        2. Nothing else reads the channels: if those weights are 0, the rows do not matter.

    A sigmoid, a bias or a norm between compactor and consumer breaks the first, and so does
    anything that is added on the way. A consumer that was not named, a residual connection, or a
    norm over channels (LayerNorm, GroupNorm, RMSNorm, softmax) breaks the second. ReLU, GELU, SiLU,
    pooling and dropout break neither.

    Args:
      forward: function of `variables` to outputs, with the data closed over, in inference or in
        training, such as `lambda v: model.apply(v, images)`.
      variables: any pytree of arrays; take the statistics of norms in.
      key: for the random moves.
      compactor: path of the matrix.
      consumers: paths of the kernels that read its channels, and their input axis.
      tolerance: of the outputs, as a share of the largest.

    Raises:
      ValueError: as above; or a path that is none of `variables`; or shapes that do not fit.

    >>> x = jnp.ones((1, 4))
    >>> variables = {"compactor": {"matrix": jnp.eye(4)}, "fc": {"kernel": jnp.ones((4, 2))}}
    >>> kept = lambda v: jax.nn.relu(x @ v["compactor"]["matrix"]) @ v["fc"]["kernel"]
    >>> lost = lambda v: jax.nn.sigmoid(x @ v["compactor"]["matrix"]) @ v["fc"]["kernel"]
    >>> where = {"compactor": "compactor/matrix", "consumers": {"fc/kernel": 0}}
    >>> check_compactor(kept, variables, jax.random.key(0), **where)
    >>> check_compactor(lost, variables, jax.random.key(0), **where)
    Traceback (most recent call last):
    ValueError: compactor/matrix: fc/kernel reads other values than 0 from channels that are 0
    behind the compactor; a bias, a norm, an addition or an activation that does not map 0 to 0
    (such as a sigmoid) stands between them
    """
    leaves = leaves_by_path(variables)
    for path in (compactor, *consumers):
        if path not in leaves:
            raise ValueError(f"variables has no leaf {path}; it has {listed(leaves)}")
    width = leaves[compactor].shape[1]
    for path, axis in consumers.items():
        if leaves[path].shape[axis] != width:
            raise ValueError(
                f"{path} {leaves[path].shape} has {leaves[path].shape[axis]} inputs on axis "
                f"{axis}, and {compactor} {width} channels"
            )
    dead = np.arange(width) % 2 == 0
    draws = [_moved(leaves, k) for k in jax.random.split(key, 2)]
    run = jax.jit(lambda new: forward(with_leaves(variables, new)))
    rows = {compactor: (1, dead)}
    slices = {path: (axis, dead) for path, axis in consumers.items()}

    def differ(zero: Any, change: Any) -> bool:
        base = _with_zeros(draws[0], zero)
        others = {
            path: jnp.where(_along(mask, x.ndim, axis), draws[1][path], x)
            for path, x, (axis, mask) in ((p, base[p], at) for p, at in change.items())
        }
        return _differ(run(base), run({**base, **others}), tolerance)

    if differ(zero=rows, change=slices):
        raise ValueError(
            f"{compactor}: {listed(consumers)} reads other values than 0 from channels that are 0 "
            "behind the compactor; a bias, a norm, an addition or an activation that does not map "
            "0 to 0 (such as a sigmoid) stands between them"
        )
    if differ(zero=slices, change=rows):
        raise ValueError(
            f"{compactor}: its channels reach the outputs not only as inputs of "
            f"{listed(consumers)}; name all consumers, and take no compactor before a residual "
            "connection or a norm over channels"
        )
    if not differ(zero={}, change=slices):
        raise ValueError(f"{compactor}: the outputs do not depend on {listed(consumers)}")


def _moved(leaves: Mapping[str, Any], key: jax.Array) -> dict[str, jax.Array]:
    """Every float leaf plus a tenth of its size, or of 1 if it is 0, times a normal draw."""
    keys = jax.random.split(key, max(len(leaves), 1))
    moved = {}
    for (path, leaf), k in zip(leaves.items(), keys, strict=True):
        x = jnp.asarray(leaf)
        if jnp.issubdtype(x.dtype, jnp.floating):
            size = jnp.sqrt(jnp.mean(jnp.square(x.astype(jnp.float32))))
            step = 0.1 * jnp.where(size > 0, size, 1) * jax.random.normal(k, x.shape)
            x = (x + step).astype(x.dtype)
        moved[path] = x
    return moved


def _with_zeros(leaves: Mapping[str, jax.Array], zero: Any) -> dict[str, jax.Array]:
    zeros = {p: jnp.where(_along(m, leaves[p].ndim, a), 0, leaves[p]) for p, (a, m) in zero.items()}
    return {**leaves, **zeros}


def _along(mask: np.ndarray, rank: int, axis: int) -> np.ndarray:
    """The mask of an axis in a shape that broadcasts to a leaf."""
    return mask.reshape([-1 if i == axis % rank else 1 for i in range(rank)])


def _differ(one: PyTree, other: PyTree, tolerance: float) -> bool:
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return any(
        bool(
            np.max(np.abs(np.asarray(x, np.float64) - np.asarray(y, np.float64)), initial=0.0)
            > tolerance * np.max(np.abs(np.asarray(x, np.float64)), initial=0.0)
        )
        for x, y in pairs
    )
