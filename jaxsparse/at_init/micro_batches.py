"""Means over micro-batches, each of which counts by its number of examples.

The mean loss of N examples is the sum of n_i / N times the mean loss of micro-batch i, and so are
its gradient and its Hessian. Sums over micro-batches of any sizes hence equal those of one batch,
to rounding. Only one micro-batch is worked on at a time: memory does not grow with their number.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxsparse.meshes import constrained, placed_by
from jaxsparse.types import Leaves

Batches: TypeAlias = Iterable[Any] | Callable[[], Iterable[Any]]
"""Micro-batches: a list of pytrees, any other iterable, or a function that returns one."""


def read(batches: Batches, num_reads: int = 1) -> Callable[[], Iterator[Any]]:
    """Returns a function that returns an iterator over the micro-batches, for every pass anew.

    Args:
      batches: see `Batches`.
      num_reads: how many passes there will be.

    Raises:
      ValueError: it is a single batch, or can be read only once and has to be read more often.
    """
    if callable(batches):
        return lambda: iter(batches())
    is_array = lambda x: isinstance(x, jax.Array | np.ndarray)
    alone = isinstance(batches, dict) or is_array(batches)
    if alone or (isinstance(batches, tuple) and batches and all(map(is_array, batches))):
        raise ValueError("batches is one batch; it must be a list of them, such as [batch]")
    if num_reads > 1 and iter(batches) is batches:
        raise ValueError(
            f"batches is read {num_reads} times, and a {type(batches).__name__} can be read once; "
            f"pass a list, or a function that returns an iterator"
        )
    return lambda: iter(batches)


def weighted_mean(
    function: Callable[..., Leaves], weights: Leaves
) -> Callable[..., dict[str, jax.Array]]:
    """Returns a function that averages a function of batches over micro-batches, compiled once.

    Args:
      function: (batch, *args) to arrays like `weights`, the mean over the examples of the batch.
      weights: float arrays by path; the means have their shapes, dtypes and places on a mesh.

    Returns:
      (iterator of batches, *args) to the means. Batches of another shape compile anew.
    """
    places = {path: placed_by(w) for path, w in weights.items()}
    at = lambda leaves: {path: constrained(x, places[path]) for path, x in leaves.items()}

    def zeros() -> dict[str, jax.Array]:
        return at({path: jnp.zeros(w.shape, w.dtype) for path, w in weights.items()})

    def add(total: Leaves, num: jax.Array, batch: Any, args: tuple) -> dict[str, jax.Array]:
        part = function(batch, *args)
        return at({path: x + num.astype(x.dtype) * part[path] for path, x in total.items()})

    def over(total: Leaves, num: jax.Array) -> dict[str, jax.Array]:
        return {path: x / num.astype(x.dtype) for path, x in total.items()}

    start, divide = jax.jit(zeros), jax.jit(over, donate_argnums=0)
    add_up = jax.jit(add, donate_argnums=0)

    def mean(batches: Iterator[Any], *args: Any) -> dict[str, jax.Array]:
        total, num_all = start(), 0
        for batch in batches:
            num = num_examples(batch)
            total = add_up(total, np.float32(num), batch, args)
            num_all += num
            if not any(isinstance(x, Tracer) for x in total.values()):
                jax.block_until_ready(total)  # or batches would queue up on the device
        if not num_all:
            raise ValueError("batches hold no example; scores need at least one")
        return divide(total, np.float32(num_all))

    return mean


def num_examples(batch: Any) -> int:
    """Returns the length of the first axis, which all arrays of a batch share.

    Raises:
      ValueError: they differ, or the batch has no array.

    >>> num_examples((np.ones((4, 2)), np.ones(4)))
    4
    """
    shapes = [np.shape(x) for x in jax.tree.leaves(batch) if np.ndim(x)]
    if not shapes:
        raise ValueError("a batch has no array with an axis of examples")
    if len({shape[0] for shape in shapes}) > 1:
        raise ValueError(
            f"the arrays of a batch have shapes {', '.join(map(str, shapes))}; their first axes, "
            f"the examples, must have one length"
        )
    return shapes[0][0]
