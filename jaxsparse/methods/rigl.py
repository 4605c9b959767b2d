"""Dynamic sparse training at a fixed number of weights: RigL, SET and SNFS.

    rigl = [exchange(magnitude, gradient, floor)]
    set_ = [exchange(magnitude, random, floor)]
    snfs = rigl on an averaged gradient; [redistribute(magnitude, gradient, floor)] as an option

All three leave out the optimizer step at events. Their ITOP forms are in `jaxsparse.methods.itop`.
"""

import functools
from fractions import Fraction
from typing import Unpack

import optax

from jaxsparse.checks import check_in
from jaxsparse.method import Method, compose
from jaxsparse.methods.options import LayerOptions, gradient_steps, known
from jaxsparse.methods.timetables import check_grid, exchange_timetable
from jaxsparse.redistribution import redistribute as move
from jaxsparse.scores import gradient, magnitude, random
from jaxsparse.stages import exchange
from jaxsparse.types import Score

_STOP = Fraction(3, 4)


def rigl(
    *,
    sparsity: float,
    total_steps: int,
    update_interval: int = 100,
    start_step: int = 0,
    stop_step: int | None = None,
    drop_fraction: float = 0.3,
    drop: Score = magnitude,
    grow: Score = gradient,
    skip_step: bool = True,
    **layers: Unpack[LayerOptions],
) -> Method:
    """RigL: drops the smallest weights, grows where the dense gradient is largest.

    Args:
      sparsity: share of prunable weights that are 0, in [0, 1).
      total_steps: length of the run.
      update_interval: steps between events (Delta T).
      start_step: first step that may have an event.
      stop_step: T_end, from which on masks stay as they are; None is 3/4 of training.
      drop_fraction: alpha, which a cosine takes to 0 at `stop_step`, in (0, 1].
      drop: what active weights are worth.
      grow: what inactive positions are worth.
      skip_step: leave out the optimizer step if there is an event, as published. The step count
        advances and the optimizer's own does not: a learning-rate schedule inside the optimizer
        falls behind by one step an event.
      **layers: `distribution`, `min_keep`, `prunable`; see `methods.options.LayerOptions`.

    Raises:
      ValueError: a number outside its range.

    Differs from the official code in: ties are cut by a hash of the index, where the code adds
    noise of 1e-5 to the scores; a skipped step advances the step count; with a `start_step` above 0
    the drop fraction still falls over steps 0 to `stop_step`, where the code divides the step by
    `stop_step - start_step`; a layer's count is rounded so that all of them add up, where the code
    rounds its zeros down, and is at least `min_keep`; a weight that grows starts at 0, where the
    code has a share of the gradient as an option; `stop_step` is 3/4 of training, where the
    published runs of 32,000 steps have 25,000.

    Reference: Evci et al., "Rigging the Lottery: Making All Tickets Winners", ICML 2020.
    """
    grid = check_grid(total_steps, update_interval, start_step, stop_step, default_stop=_STOP)
    return compose(
        "rigl",
        [exchange(drop, grow, rounding="floor")],
        exchange_timetable(sparsity, grid, drop_fraction),
        skip_step=skip_step,
        dense_gradient=gradient_steps(grow),
        **known("rigl", layers, LayerOptions),
    )


def set_(
    *,
    sparsity: float,
    total_steps: int,
    update_interval: int = 100,
    start_step: int = 0,
    stop_step: int | None = None,
    drop_fraction: float = 0.3,
    drop: Score = magnitude,
    skip_step: bool = True,
    **layers: Unpack[LayerOptions],
) -> Method:
    """SET: drops the smallest weights, grows at random. `update` needs a key.

    This is the form of RigL's comparison: RigL's schedule, |w| for both signs together. (The SET
    paper removes the smallest positive and least negative 30 % after every epoch.)

    Args:
      sparsity: share of prunable weights that are 0, in [0, 1).
      total_steps: length of the run.
      update_interval: steps between events.
      start_step: first step that may have an event.
      stop_step: from which on masks stay as they are; None is 3/4 of training.
      drop_fraction: at step 0, which a cosine takes to 0 at `stop_step`, in (0, 1].
      drop: what active weights are worth.
      skip_step: leave out the optimizer step if there is an event, as RigL's code does.
      **layers: `distribution`, `min_keep`, `prunable`; see `methods.options.LayerOptions`.

    Raises:
      ValueError: a number outside its range.

    Differs from the official code (RigL's) in: as `rigl`.

    Reference: Mocanu et al., Nature Communications 2018; Evci et al. 2020, section 4.
    """
    grid = check_grid(total_steps, update_interval, start_step, stop_step, default_stop=_STOP)
    return compose(
        "set",
        [exchange(drop, random, rounding="floor")],
        exchange_timetable(sparsity, grid, drop_fraction),
        skip_step=skip_step,
        dense_gradient="never",
        **known("set_", layers, LayerOptions),
    )


def snfs(
    *,
    sparsity: float,
    total_steps: int,
    momentum: float = 0.9,
    update_interval: int = 100,
    start_step: int = 0,
    stop_step: int | None = None,
    drop_fraction: float = 0.3,
    drop: Score = magnitude,
    grow: Score = gradient,
    redistribute: bool = False,
    skip_step: bool = True,
    **layers: Unpack[LayerOptions],
) -> Method:
    """SNFS: RigL that grows by an average of the dense gradient over steps.

        m <- momentum * m + (1 - momentum) * g,   every step

    This is the form of RigL's comparison, in which weights do not move between layers. With
    `redistribute=True` they do, as in the original: all layers together grow what all of them
    dropped, in proportion to the mean |m| of their active weights. The sparsity stays exact, and
    the counts of layers are then not known beforehand.

    Args:
      sparsity: share of prunable weights that are 0, in [0, 1).
      total_steps: length of the run.
      momentum: decay of the average, in [0, 1).
      update_interval: steps between events.
      start_step: first step that may have an event.
      stop_step: from which on masks stay as they are; None is 3/4 of training.
      drop_fraction: at step 0, which a cosine takes to 0 at `stop_step`, in (0, 1].
      drop: what active weights are worth.
      grow: what inactive positions are worth, of w and m. `scores.random` with `redistribute` is
        SET in Dettmers and Zettlemoyer's code.
      redistribute: move weights between layers; not with a pattern.
      skip_step: leave out the optimizer step if there is an event, as RigL's code does.
      **layers: `distribution`, `min_keep`, `prunable`; see `methods.options.LayerOptions`.

    Raises:
      ValueError: a number outside its range.

    Differs from the official code in: as `rigl`. Differs from the original's code with
    `redistribute` in: a layer that would have no room grows all but one of its inactive weights
    (99 % there), and the others share the rest by their mean |m| (equally there); a layer below
    20 % sparsity drops its share as the others do.

    Reference: Dettmers and Zettlemoyer, "Sparse Networks from Scratch", 2019; Evci et al. 2020.
    """
    grid = check_grid(total_steps, update_interval, start_step, stop_step, default_stop=_STOP)
    options = known("snfs", layers, LayerOptions)
    stage = exchange(drop, grow, rounding="floor")
    if redistribute:
        keep = options.get("min_keep")
        stage = move(drop, grow, gradient, rounding="floor", min_keep=1 if keep is None else keep)
    return compose(
        "snfs",
        [stage],
        exchange_timetable(sparsity, grid, drop_fraction),
        observe=_average(check_in("momentum", momentum, "[0, 1)")),
        skip_step=skip_step,
        dense_gradient="always",
        **options,
    )


@functools.cache  # optax's functions compare by identity; methods of equal arguments are equal
def _average(momentum: float) -> optax.GradientTransformation:
    return optax.ema(momentum, debias=False)
