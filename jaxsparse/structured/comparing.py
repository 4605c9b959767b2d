"""Comparison of networks by outputs: a narrow one with the full one, and one before and after."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np

from jaxsparse.structured.narrowing import WidthPlan
from jaxsparse.types import PyTree


def check_narrow(
    plan: WidthPlan,
    apply_fn: Callable[..., Any],
    narrow_fn: Callable[..., Any],
    variables: PyTree,
    *inputs: Any,
    tolerance: float = 1e-4,
) -> float:
    """Compares the narrow network with the full one whose removed units are 0.

    Args:
      plan: from `plan_widths`.
      apply_fn: function of (variables, *inputs) of the full network.
      narrow_fn: that of the narrow one; the same function if it takes widths from its arrays.
      variables: of full width, arrays.
      *inputs: pytrees of arrays.
      tolerance: the largest difference of an output, over the largest output.

    Returns:
      The largest difference, at least 0. It may be large if the plan has notes, such as a norm over
      the channels that became fewer, since the two are then different functions.

    Raises:
      ValueError: the outputs have other shapes, or differ by more and the plan has no note.
    """
    full = jax.jit(apply_fn)(plan.zero(variables), *inputs)
    narrow = jax.jit(narrow_fn)(plan.apply(variables), *inputs)
    found = difference(full, narrow)
    if not found <= tolerance and not plan.notes:
        raise ValueError(
            f"outputs differ by {found:.3g} of the largest, above {tolerance:g}: the narrow "
            "function is another one, such as one that holds a width in a constant"
        )
    return found


def check_unchanged(
    apply_fn: Callable[..., Any],
    before: PyTree,
    after: PyTree,
    settings: Iterable[Sequence[Any]],
    *,
    seemed: str,
) -> None:
    """Refuses variables with which outputs are others, by more than 1e-5 of the largest.

    Args:
      apply_fn: function of (variables, *inputs).
      before: variables.
      after: variables of the same shapes.
      settings: inputs to try, each a sequence.
      seemed: what channels were taken for, such as "constant".

    Raises:
      ValueError: an output moves by more, or is NaN.
    """
    run = jax.jit(apply_fn)
    for inputs in settings:
        found = difference(run(before, *inputs), run(after, *inputs))
        if not found <= 1e-5:
            raise ValueError(
                f"outputs would change by {found:.3g} of the largest: a channel that seemed "
                f"{seemed} is not; give inputs that activate more of the network"
            )


def difference(first: PyTree, second: PyTree) -> float:
    """Returns the largest difference of two trees of outputs, over the first one's largest number.

    Args:
      first: arrays; if all are 0 the difference itself is returned.
      second: arrays of the same shapes.

    Returns:
      At least 0; NaN if a number is.

    Raises:
      ValueError: the shapes differ.

    >>> difference([np.array([4.0, -8.0])], [np.array([4.0, -6.0])])
    0.25
    """
    before, after = jax.tree.leaves(first), jax.tree.leaves(second)
    shapes = [tuple(map(np.shape, leaves)) for leaves in (before, after)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"outputs had shapes {shapes[0]} and have {shapes[1]}")
    largest = lambda leaves: max((float(np.abs(x).max(initial=0.0)) for x in leaves), default=0.0)
    apart = [np.asarray(x) - np.asarray(y) for x, y in zip(before, after, strict=True)]
    return largest(apart) / (largest(before) or 1.0)
