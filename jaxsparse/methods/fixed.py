"""Methods whose masks never change: dense, and static sparse training."""

from typing import Unpack

from jaxsparse.checks import check_in
from jaxsparse.masks import check_masks
from jaxsparse.masks import sparsity as masks_sparsity
from jaxsparse.method import Method, compose
from jaxsparse.methods.options import LayerOptions, known
from jaxsparse.timetable import Timetable, check_steps
from jaxsparse.types import PyTree, Rules
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
    **layers: Unpack[LayerOptions],
) -> Method:
    """Static sparse training: masks drawn at random once, or given, and kept.

    To train on from an already sparse model give it `masks=masks_from_params(params)`. It is then
    `starting_from` with those masks, and its sparsity is theirs.

    Args:
      total_steps: length of the run, for the plan and `segments`.
      sparsity: share of prunable weights that are 0, in [0, 1).
      masks: given masks, the structure and shapes of params, instead of `sparsity`; leaves that
        are not prunable are taken as all True.
      **layers: `distribution`, `min_keep`, `prunable`; see `methods.options.LayerOptions`.
        With given masks the first two matter to `with_cycles` alone.

    Raises:
      ValueError: both or neither of `sparsity` and `masks`; a sparsity outside its range; masks
        that are not bool.

    Differs from the official code in: a layer's count is rounded so that all of them add up, where
    the code rounds its zeros down.

    Reference: the paper's "Static" in Evci et al. 2020, which its code calls `scratch` (its option
    `static` re-draws weak weights in place and is something else).
    """
    layers = known("static", layers, LayerOptions)
    if (sparsity is None) == (masks is None):
        raise ValueError("static takes either sparsity= or masks=, exactly one of them")
    (total_steps,) = check_steps(total_steps=total_steps)
    if masks is None:
        density = 1.0 - check_in("sparsity", sparsity, "[0, 1)")
    else:
        density = 1.0 - masks_sparsity(check_masks(masks, masks), layers.get("prunable"))
    method = compose("static", [], Timetable(total_steps, (), density), **layers)
    return method if masks is None else starting_from(method, masks)
