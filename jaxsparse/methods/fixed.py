"""Methods whose masks never change: dense, and static sparse training."""

from jaxsparse.masks import check_masks
from jaxsparse.masks import sparsity as masks_sparsity
from jaxsparse.method import Method, compose
from jaxsparse.methods.checks import check_sparsity
from jaxsparse.timetable import Timetable, check_steps
from jaxsparse.types import Distribution, PyTree, Rules
from jaxsparse.variants import starting_from


def dense(*, total_steps: int, prunable: Rules | None = None) -> Method:
    """No sparsity: all masks True, no events. The control of every comparison.

    Args:
      total_steps: length of the run, for the plan and `segments`.
      prunable: which leaves are counted.
    """
    (total_steps,) = check_steps(total_steps=total_steps)
    return compose("dense", [], Timetable(total_steps, ()), prunable=prunable)


def static(
    *,
    total_steps: int,
    sparsity: float | None = None,
    masks: PyTree | None = None,
    distribution: Distribution | None = None,
    min_keep: int | None = None,
    prunable: Rules | None = None,
) -> Method:
    """Static sparse training: masks drawn at random once, or given, and kept.

    To train on from an already sparse model give it `masks=masks_from_params(params)`.

    Args:
      total_steps: length of the run, for the plan and `segments`.
      sparsity: share of prunable weights that are 0, in [0, 1).
      masks: given masks, the structure and shapes of params, instead of `sparsity`; leaves that
        are not prunable are taken as all True.
      distribution: shares the density out among layers; None is `erk()`.
      min_keep: fewest weights of each layer; None is 1, with 0 a layer may have none.
      prunable: which leaves are counted and pruned.

    Raises:
      ValueError: both or neither of `sparsity` and `masks`.

    Differs from the official code in: a layer's count is rounded so that all of them add up, where
    the code rounds its zeros down.

    Reference: the paper's "Static" in Evci et al. 2020, which its code calls `scratch` (its option
    `static` re-draws weak weights in place and is something else).
    """
    if (sparsity is None) == (masks is None):
        raise ValueError("static takes either sparsity= or masks=, exactly one of them")
    (total_steps,) = check_steps(total_steps=total_steps)
    if masks is None:
        density = 1.0 - check_sparsity(sparsity)
    else:
        density = 1.0 - masks_sparsity(check_masks(masks, masks), prunable)
    method = compose(
        "static",
        [],
        Timetable(total_steps, (), density),
        distribution=distribution,
        min_keep=min_keep,
        prunable=prunable,
    )
    return method if masks is None else starting_from(method, masks)
