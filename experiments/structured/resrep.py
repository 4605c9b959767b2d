"""The arm of ResRep: compactors in the trained network, trained to a budget, merged at the end.

The published times belong to runs of published length: no masks in the first 5 epochs, then 4 rows
more every 200 steps. A short run would be over before it met its budget, or before the last rows
came to 0. So times that are not given are shares of the run, see `times_of`, and the penalty is the
smallest one that suffices.
"""

import functools
import warnings
from typing import Any, NamedTuple

import optax

from experiments.options.cli import flag_error
from experiments.structured.setting import (
    Begun,
    Narrow,
    Reached,
    Setting,
    Stretch,
    multiply_adds,
)
from experiments.training.run import Between, RunState
from jaxsparse.checks import check_whole
from jaxsparse.nn import compactor_costs, insert_compactors, merge_compactors
from jaxsparse.structured import (
    CostTable,
    LassoPreflight,
    check_target,
    choose_row_masks,
    is_mask_step,
    lasso_preflight,
    resrep_optimizer,
    row_masks,
    row_norms,
    unsettled_rows,
    with_row_masks,
)

LASSO, INTERVAL, QUOTA, WARM_UP = 1e-4, 200, 4, 5
"""The published penalty, steps between choices, rows of a choice, and epochs before the first."""
COMPACTOR_MOMENTUM = 0.99


class Times(NamedTuple):
    """When masks are chosen, in an arm's own steps.

    Attributes:
      start: the first choice comes an interval after it.
      interval: steps between choices.
      last: of the last choice.
      quota: rows that a choice masks in addition.
    """

    start: int
    interval: int
    last: int
    quota: int

    def is_due(self, step: int) -> bool:
        """Whether masks are chosen after so many of the arm's own steps."""
        times = {"start_step": self.start, "update_interval": self.interval}
        return step <= self.last and is_mask_step(step, **times)


def times_of(setting: Setting) -> Times:
    """Returns when masks are chosen: as the flags say, or by the published times and these shares.

    Without flags, the first 5 epochs are without masks, at most a 20th of the run. A choice follows
    every 200 steps, at least 100 in the run, up to 2/5 of it: masked rows need time to come to 0. A
    choice masks 4 rows more, or as many as it takes to mask all rows by then.

    Raises:
      ValueError: a flag out of its range, or no choice before the last step.
    """
    asked, steps = setting.resrep, setting.steps
    given = lambda value, default: default if value is None else value
    per_epoch = len(setting.base.dataset.train.labels) // setting.base.batch_size
    start = given(asked.mask_start, min(WARM_UP * per_epoch, steps // 20))
    interval = given(asked.mask_interval, min(INTERVAL, max(steps // 100, 1)))
    stop = given(asked.mask_stop, max(2 * steps // 5, 1))
    check_whole("mask_start", start, 0)
    check_whole("mask_interval", interval, 1)
    check_whole("mask_stop", stop, 1, max(steps - 1, 1))
    num_choices = (stop - start) // interval
    if num_choices < 1:
        raise ValueError(
            f"--mask_stop={stop} comes before the first choice of masks, an interval of {interval} "
            f"steps after --mask_start={start}"
        )
    num_rows = sum(width - 1 for width in costs_of(setting).widths.values())
    quota = given(asked.mask_quota, max(QUOTA, -(-num_rows // num_choices)))
    check_whole("mask_quota", quota, 1)
    return Times(start, interval, start + num_choices * interval, quota)


def costs_of(setting: Setting) -> CostTable:
    """Returns the multiply-adds of an image by the widths behind compactors."""
    model: Any = setting.model  # a module has a hash, and its type says that it has none
    return _costs(model, setting.image)


@functools.cache
def _costs(model: Any, image: Any) -> CostTable:
    return compactor_costs(model, image)


def preflight_of(setting: Setting) -> LassoPreflight:
    """Returns what becomes of the row that is masked last, with the penalty of the run.

    The penalty is the one asked for; or the published one; or, if that is too small for the run,
    the smallest one that is not.

    Raises:
      ValueError: the row does not come to 0 in time; says what would do.
    """
    asked = setting.resrep.lasso
    options = {
        "momentum": COMPACTOR_MOMENTUM,
        "total_steps": setting.steps,
        "mask_step": times_of(setting).last,
        "snap": setting.resrep.snap,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # an error follows in its place
        found = lasso_preflight(setting.rate, lasso=LASSO if asked is None else asked, **options)
        if found.settles_at is None and asked is None and found.enough is not None:
            found = lasso_preflight(setting.rate, lasso=found.enough, **options)
    if found.settles_at is not None:
        return found
    if asked is None:
        raise ValueError(
            f"--steps={setting.steps} are too few: {found}, or take a higher --arm_rate"
        )
    raise ValueError(flag_error("lasso", f"{asked:g}", f"is too small: {found}"))


def check(setting: Setting) -> list[str]:
    """Refuses what cannot work before anything is trained; returns lines on what will happen.

    Raises:
      ValueError: names the flag.
    """
    costs = costs_of(setting)
    check_target(costs, costs.widths, target=setting.target)
    times, found = times_of(setting), preflight_of(setting)
    choices = (
        f"resrep: masks are chosen every {times.interval} steps after {times.start}, up to "
        f"{times.last}, {times.quota} rows more each time"
    )
    return [choices, str(found)]


def begin(setting: Setting, reached: Reached, stretch: Stretch) -> Begun:
    """Returns the training of the network with compactors."""
    model, variables = insert_compactors(reached.model, reached.state.variables)
    lasso = preflight_of(setting).lasso
    tx = optimizer(setting, lasso)
    between = choosing(setting, start=reached.step)
    run, state = setting.going_on(reached.step, stretch.last, model, variables, tx, (between,))
    return Begun(run, state, functools.partial(merged, setting))


def optimizer(setting: Setting, lasso: float) -> optax.GradientTransformation:
    """Returns the published optimizer, at the rate and weight decay of all arms."""
    return resrep_optimizer(
        setting.rate,
        lasso=lasso,
        momentum=setting.recipe.momentum,
        compactor_momentum=COMPACTOR_MOMENTUM,
        weight_decay=setting.recipe.weight_decay,
        snap=setting.resrep.snap,
    )


def choosing(setting: Setting, *, start: int) -> Between:
    """Returns the choice of masks on the host, for a run whose arm starts after `start` steps."""
    times, costs = times_of(setting), costs_of(setting)

    def choose(state: RunState) -> RunState:
        norms, masks = row_norms(state.params), row_masks(state.opt_state)
        masks = choose_row_masks(norms, masks, costs, target=setting.target, quota=times.quota)
        return state.replace(opt_state=with_row_masks(state.opt_state, masks))

    return Between(lambda step: times.is_due(step - start), choose)


def merged(setting: Setting, reached: Reached) -> Narrow:
    """Returns the network without compactors, and how many masked rows have not come to 0."""
    norms, masks = row_norms(reached.state.params), row_masks(reached.state.opt_state)
    model, variables = merge_compactors(reached.model, reached.state.variables)
    notes = {
        "lasso": preflight_of(setting).lasso,
        **{f"mask_{name}": x for name, x in times_of(setting)._asdict().items()},
        "unsettled_rows": sum(unsettled_rows(norms, masks).values()),
        "masked_ratio": costs_of(setting)({path: int(mask.sum()) for path, mask in masks.items()})
        / multiply_adds(setting.model, setting.image),
    }
    return Narrow(model, variables, is_merged=True, notes=notes)
