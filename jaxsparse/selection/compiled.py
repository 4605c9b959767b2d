"""The k largest scores by a compiled kernel: one call for all leaves, in programs for one CPU.

It finds the masks that `bisection` finds, to the bit; `kernels/csrc/select.h` says how. The call is
one operation to XLA. A bisection is a few loops for every shape of a leaf, each of which takes 10
ms and more to compile. A kernel reads its scores from memory. It therefore takes scores that are
there already, arrays or their absolute values, and leaves the others to the bisection.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxsparse.tracing.jaxprs import CallAnalysis, walk
from jaxsparse.types import Candidates

_DTYPES = (np.dtype(jnp.float32), np.dtype(jnp.bfloat16))


class Stored(NamedTuple):
    """Scores that are in memory.

    Attributes:
      inputs: float32 or bfloat16 arrays, one for each leaf.
      absolute: for each leaf, whether its scores are the absolute values of the array.
    """

    inputs: list[jax.Array]
    absolute: tuple[bool, ...]


def stored(compute: Callable[[Any], list[jax.Array]], inputs: Any) -> Stored | None:
    """Returns the arrays that hold the scores, or None if one takes more than |x| to compute.

    Args:
      compute: inputs -> scores, float arrays.
      inputs: a pytree of arrays.

    >>> import jax.numpy as jnp
    >>> stored(lambda w: [jnp.abs(w)], jnp.array([1.0, -2.0]))
    Stored(inputs=[Array([ 1., -2.], dtype=float32)], absolute=(True,))
    >>> stored(lambda w: [w * w], jnp.array([1.0, -2.0])) is None
    True
    """
    arrays = jax.tree.leaves(inputs)
    as_they_are = [(i, False) for i in range(len(arrays))]
    scores = walk(jax.make_jaxpr(compute)(inputs), as_they_are, _AsStored())
    found, absolute = [], []
    for score in scores:
        if score is None or jnp.result_type(arrays[score[0]]) not in _DTYPES:
            return None
        found.append(jnp.asarray(arrays[score[0]]))
        absolute.append(score[1])
    return Stored(found, tuple(absolute))


class _AsStored(CallAnalysis[tuple[int, bool] | None]):
    """The input that a value is, and whether its absolute value; None if it is something else."""

    def constant(self, atom: Any, value: Any) -> None:
        del atom, value

    def operation(self, eqn: Any, operands: list) -> Sequence[tuple[int, bool] | None]:
        first = operands[0] if operands else None
        if eqn.primitive.name == "abs" and first is not None and not first[1]:
            return [(first[0], True)]
        return [None] * len(eqn.outvars)


def scores_of(absolute: tuple[bool, ...], inputs: list[jax.Array]) -> list[jax.Array]:
    """Returns the scores, from the fields of `Stored`."""
    return [jnp.abs(x) if taken else x for x, taken in zip(inputs, absolute, strict=True)]


def select(
    absolute: tuple[bool, ...],
    scores: list[jax.Array],
    wanted: jax.Array,
    candidates: Candidates,
    *,
    together: bool,
) -> tuple[list[jax.Array], jax.Array]:
    """Returns masks of the largest scores, as `bisection.bisect` does.

    Args:
      absolute: see `Stored`.
      scores: see `Stored`.
      wanted: int32[leaves], or int32[1] if leaves compete.
      candidates: the entries to choose from; the kernel counts them again.
      together: whether the leaves compete.
    """
    eligible, given, _ = candidates
    masks = [jax.ShapeDtypeStruct(x.shape, jnp.bool_) for x in scores]
    num_nan = jax.ShapeDtypeStruct((len(scores),), jnp.int32)
    call = jax.ffi.ffi_call("jaxsparse_select", [num_nan, *masks])
    by_leaf = zip(scores, *(flags for flags in (eligible, given) if flags is not None), strict=True)
    num_nan, *masks = call(
        wanted,
        *(array for leaf in by_leaf for array in leaf),
        absolute=np.array(absolute, np.int64),
        eligible=eligible is not None,
        given=given is not None,
        together=together,
    )
    return masks, num_nan
