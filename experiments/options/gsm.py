"""--schedule=gsm: dense training with global sparse momentum, and one prune after the last step.

GSM is an optimizer, not a method: the method of such a run only prunes at the end.
"""

import sys
import warnings
from typing import Any, Unpack

import optax

from experiments.training.recipes import Recipe, learning_rate
from jaxsparse import Method, compose, gsm_preflight, make_timetable, prune
from jaxsparse import gsm as transformation
from jaxsparse.checks import check_in
from jaxsparse.methods.options import LayerOptions

NAME = "gsm"


def gsm(*, sparsity: float, total_steps: int, **layers: Unpack[LayerOptions]) -> Method:
    """Trains densely, and prunes once by magnitude after the last step, over all layers.

    Args:
      sparsity: share of the prunable weights that are 0 at the end, in [0, 1).
      total_steps: length of the run.
      **layers: see `LayerOptions`.
    """
    density = 1.0 - check_in("sparsity", sparsity, "[0, 1)")
    timetable = make_timetable(
        total_steps=total_steps, update_interval=total_steps, density=lambda step: density
    )
    stages = [prune()] if timetable.events else []  # sparsity 0 has none
    return compose(NAME, stages, timetable, scope="global", dense_gradient="never", **layers)


def with_gsm(
    tx: optax.GradientTransformation, config: Any, method: Method, recipe: Recipe
) -> optax.GradientTransformation:
    """Returns the optimizer; with --schedule=gsm, the optimizer behind GSM.

    Prints a line on standard error on how far passive weights shrink in this run.

    Args:
      tx: the optimizer of the recipe.
      config: an experiment's flags: schedule and sparsity.
      method: of the run.
      recipe: learning rate, momentum and weight decay.

    Raises:
      ValueError: passive weights would not shrink at all.
    """
    if config.schedule != NAME:
        return tx
    steps = method.timetable.total_steps
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the line says it
        found = gsm_preflight(
            learning_rate(recipe, steps),
            weight_decay=recipe.weight_decay,
            momentum=recipe.momentum,
            total_steps=steps,
        )
    kind = "note" if found.is_long_enough else "warning"
    print(f"{kind}: {found}", file=sys.stderr, flush=True)
    return optax.chain(transformation(1.0 - config.sparsity, prunable=method.prunable), tx)
