"""Exact top-k masks without sorting.

Two ways find the same masks, to the bit. If the scores are stored and the program is for one CPU, a
kernel reads them a few times (`compiled`). Otherwise XLA bisects (`bisection`), on any device and
mesh, and can compute the scores as it goes. Neither sorts, stores scores or gathers them.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsparse.counting import count_true
from jaxsparse.integers import to_int32
from jaxsparse.kernels.one_cpu import on_one_cpu
from jaxsparse.selection.bisection import bisect
from jaxsparse.selection.compiled import scores_of, select, stored
from jaxsparse.types import Candidates, Counts, Leaves, Scores, Selected


def top_k_mask(
    scores: jax.Array, k: int | jax.Array, eligible: jax.Array | None = None
) -> jax.Array:
    """Returns True at the k largest scores.

    Args:
      scores: float[shape]; compared in float32 (bfloat16 and float16 are exact in it), -0 equals 0,
        NaN orders last. Numbers below 2^-126 may count as 0, as devices flush them.
      k: one integer, cut to [0, number of eligible entries]; the mask has exactly that many True.
        It must be below 2**31 if it is not traced.
      eligible: bool[shape], an entry that is False never wins, whatever its score. None if all
        entries may win.

    Returns:
      bool[shape]. Ties are cut by a hash of the index, the same on every run and device.

    >>> import jax.numpy as jnp
    >>> top_k_mask(jnp.array([3.0, 1.0, jnp.nan, 2.0]), 2)
    Array([ True, False, False,  True], dtype=bool)
    >>> int(top_k_mask(jnp.zeros(10), 3).sum())
    3
    """
    return top_k({"": scores}, k, None if eligible is None else {"": eligible}).masks[""]


def top_k(
    scores: Leaves | Scores,
    k: int | jax.Array | Counts,
    eligible: Leaves | None = None,
    *,
    given: Leaves | None = None,
    num_eligible: jax.Array | None = None,
) -> Selected:
    """Selects the k largest scores, over all leaves together or in each leaf.

    Args:
      scores: float arrays by path, as in `top_k_mask`, or how to compute them; outside of `jit` the
        computation is compiled at every call.
      k: an integer as in `top_k_mask`, for all leaves together; or one for each path.
      eligible: bool arrays by path, as in `top_k_mask`.
      given: bool arrays by path, entries that are True in the masks beside the k, and hence no
        candidates. None if there are none.
      num_eligible: int32[leaves], the number of candidates of each leaf in the order of the masks.
        None if it is not known yet.

    Returns:
      The masks, and the number of NaN scores among the eligible entries of each leaf; in the order
      of `eligible`, else of `given`, else of `scores` (those of `Scores` are sorted by path).

    Raises:
      ValueError: a score is not floating point, k is no integer, `eligible` or `given` has no mask
        of a score's shape (names the path), or there are more scores to compare than int32 counts.

    >>> import jax.numpy as jnp
    >>> scores, given = {"kernel": jnp.array([3.0, 1.0, 2.0])}, {"kernel": jnp.array([1, 0, 0]) > 0}
    >>> top_k(scores, 1, given=given).masks
    {'kernel': Array([ True, False,  True], dtype=bool)}
    """
    inputs, compute = scores if isinstance(scores, Scores) else Scores(scores, lambda x: x)
    kinds = _kinds(scores)
    _check_scores(kinds, eligible=eligible, given=given)
    _check_sizes(kinds, k)
    order = next((masks for masks in (eligible, given) if masks is not None), None)
    # JAX hands dicts back sorted, 10/kernel before 2/kernel.
    order = order or (kinds if isinstance(scores, Scores) else scores)
    paths = [path for path in order if path in kinds]

    wanted = {p: k[p] for p in paths} if isinstance(k, Mapping) else {"": k}
    wanted = jnp.stack([to_int32(count, f"k{_of(path)}") for path, count in wanted.items()])
    listed = lambda masks: None if masks is None else [jnp.asarray(masks[path]) for path in paths]
    candidates = Candidates(listed(eligible), listed(given), num_eligible)
    together = not isinstance(k, Mapping)
    if isinstance(scores, Scores):
        in_order = lambda inputs: [compute(inputs)[path] for path in paths]
        masks, num_nan = _select(in_order, inputs, wanted, candidates, together=together)
    else:
        arrays = [jnp.asarray(scores[path]) for path in paths]
        masks, num_nan = _select_from(arrays, wanted, candidates, together=together)
    return Selected(dict(zip(paths, masks, strict=True)), num_nan)


def top_k_with_minimum(
    scores: Leaves | Scores, k: int | jax.Array, minimum: int, eligible: Leaves | None = None
) -> Selected:
    """Selects the k largest scores over all leaves together, of each leaf at least `minimum`.

    The best `minimum` of every leaf are chosen first, or all of a leaf that has fewer. The others
    compete for what is left of k. If nothing is left, more than k may be chosen.

    Args:
      scores: as in `top_k`.
      k: int32[].
      minimum: at least 0; 0 is `top_k`.
      eligible: as in `top_k`.

    >>> import jax.numpy as jnp
    >>> scores = {"a": jnp.array([5.0, 4.0, 3.0]), "b": jnp.array([1.0, 2.0])}
    >>> top_k_with_minimum(scores, 3, 1).masks["b"]
    Array([False,  True], dtype=bool)
    """
    if not minimum:
        return top_k(scores, k, eligible)
    paths = eligible if eligible is not None else _kinds(scores)
    first = top_k(scores, dict.fromkeys(paths, minimum), eligible)
    num_first = sum(count_true(mask)[0] for mask in first.masks.values())
    chosen = top_k(scores, k - num_first, eligible, given=first.masks)
    return chosen._replace(num_nan=first.num_nan)  # of all candidates, not only of those left


def _kinds(scores: Leaves | Scores) -> Mapping[str, jax.ShapeDtypeStruct]:
    """Returns shape and dtype of every score."""
    inputs, compute = scores if isinstance(scores, Scores) else Scores(scores, lambda x: x)
    return jax.eval_shape(compute, inputs)


def _select(
    compute: Callable[[Any], list[jax.Array]],
    inputs: Any,
    wanted: jax.Array,
    candidates: Candidates,
    *,
    together: bool,
) -> tuple[list[jax.Array], jax.Array]:
    """Selects by a kernel if the scores are stored and the program is for one CPU, or bisects."""
    arrays = stored(compute, inputs)
    if arrays is None:
        return bisect(compute, inputs, wanted, candidates, together=together)
    # Not a method of `arrays`: lowering keeps this function, which must not hold traced arrays.
    compute_again = functools.partial(scores_of, arrays.absolute)
    return on_one_cpu(
        functools.partial(select, arrays.absolute, together=together),
        functools.partial(bisect, compute_again, together=together),
        arrays.inputs,
        wanted,
        candidates,
    )


@functools.partial(jax.jit, static_argnames="together", inline=True)
def _select_from(
    scores: list[jax.Array], wanted: jax.Array, candidates: Candidates, *, together: bool
) -> tuple[list[jax.Array], jax.Array]:
    """Selects from arrays, compiled: op by op the loop would be compiled anew at every call."""
    return _select(lambda scores: scores, scores, wanted, candidates, together=together)


def _check_scores(scores: Mapping[str, jax.ShapeDtypeStruct], **masks: Leaves | None) -> None:
    if not scores:
        raise ValueError("there are no scores to select from")
    for path, x in scores.items():
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise ValueError(
                f"the scores{_of(path)} have dtype {x.dtype}; they must be floating point"
            )
        for name, leaves in masks.items():
            mask = None if leaves is None else leaves.get(path)
            if leaves is None or _is_mask_of(mask, x):
                continue
            kind = "missing" if mask is None else f"{jnp.result_type(mask)}{np.shape(mask)}"
            raise ValueError(f"{name}{_of(path)} is {kind}; it must be bool{x.shape}")


def _is_mask_of(mask: jax.Array | None, x: jax.ShapeDtypeStruct) -> bool:
    return mask is not None and np.shape(mask) == x.shape and jnp.result_type(mask) == jnp.bool_


def _check_sizes(scores: Mapping[str, jax.ShapeDtypeStruct], k: int | jax.Array | Counts) -> None:
    if isinstance(k, Mapping) and k.keys() != scores.keys():
        raise ValueError(f"k counts {sorted(k)}, the scores are those of {sorted(scores)}")
    sizes = {path: x.size for path, x in scores.items()}
    for path, size in sizes.items() if isinstance(k, Mapping) else [("", sum(sizes.values()))]:
        if size >= 2**31:
            raise ValueError(f"{size} scores{_of(path)} to choose from; at most {2**31 - 1} count")


def _of(path: str) -> str:
    return f" of {path}" if path else ""
