"""Methods whose masks never change: dense, and static sparse training."""

from collections.abc import Callable

import numpy as np

from jaxsparse.comparable import comparable
from jaxsparse.masks import check_masks, pruned_only
from jaxsparse.method import Method, compose
from jaxsparse.methods.checks import check_sparsity
from jaxsparse.paths import prunable_leaves
from jaxsparse.plan import Targets
from jaxsparse.timetable import Timetable, check_steps
from jaxsparse.types import Distribution, PyTree, Row, Rules


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
    density = 1.0 if sparsity is None else 1.0 - check_sparsity(sparsity)
    method = compose(
        "static",
        [],
        Timetable(total_steps, (), density),
        distribution=distribution,
        min_keep=min_keep,
        prunable=prunable,
    )
    if masks is None:
        return method
    init, targets = _init_of(masks, method.prunable), _targets_of(masks, method.prunable)
    return method._replace(init=init, targets=targets, recipe=None)


@comparable
def _init_of(masks: PyTree, prunable: Rules | None) -> Callable[..., PyTree]:
    return lambda key, params: pruned_only(check_masks(masks, params), prunable)


@comparable
def _targets_of(masks: PyTree, prunable: Rules | None) -> Callable[[PyTree], Targets]:
    def targets(params: PyTree) -> Targets:
        check_masks(masks, params)
        leaves = {p: np.asarray(mask) for p, mask in prunable_leaves(masks, prunable).items()}
        shapes = {p: mask.shape for p, mask in leaves.items()}
        active = {p: int(np.count_nonzero(mask)) for p, mask in leaves.items()}
        return Targets(shapes, active, Row({}, ((), ())))

    return targets
