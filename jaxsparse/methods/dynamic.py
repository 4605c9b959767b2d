"""Dynamic sparse training at a fixed number of weights: RigL, SET, SNFS, and their ITOP forms.

rigl = [exchange(magnitude, gradient, floor)], optimizer step skipped at events
set_ = [exchange(magnitude, random, floor)]         snfs = rigl on an averaged gradient
*_itop = the same with ceil, r from 0.5 to 0.005 over all of training, and a long interval
"""

import functools

import optax

from jaxsparse.method import Method, compose, observing, remade
from jaxsparse.methods.checks import check_fraction, check_sparsity, check_window
from jaxsparse.schedules import cosine, until
from jaxsparse.scores import gradient, magnitude, random
from jaxsparse.stages import exchange
from jaxsparse.timetable import check_steps, make_timetable
from jaxsparse.types import Distribution, OptionError, Rounding, Rules, Score


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
    distribution: Distribution | None = None,
    min_keep: int | None = None,
    skip_step: bool = True,
    prunable: Rules | None = None,
) -> Method:
    """RigL: drops the smallest weights, grows where the dense gradient is largest.

    Args:
      sparsity: share of prunable weights that are 0, in [0, 1).
      total_steps: length of the run.
      update_interval: steps between events (Delta T).
      start_step: first step that may have an event.
      stop_step: T_end, from which on masks stay as they are; None is 3/4 of training.
      drop_fraction: alpha, which a cosine takes to 0 at `stop_step`, in [0, 1].
      drop: what active weights are worth.
      grow: what inactive positions are worth.
      distribution: shares the density out among layers; None is `erk()`.
      min_keep: fewest weights of each layer; None is 1, with 0 a layer may have none.
      skip_step: leave out the optimizer step where there is an event, as published. The step count
        advances; the optimizer's own does not, so that a learning-rate schedule inside it falls
        behind by one step an event.
      prunable: which leaves; as in `prunable_paths`.

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
    stop_step = _stop_step(stop_step, total_steps)
    return _dynamic(
        "rigl",
        drop,
        grow,
        "floor",
        sparsity=sparsity,
        total_steps=total_steps,
        update_interval=update_interval,
        start_step=start_step,
        stop_step=stop_step,
        drop_fraction=(drop_fraction, 0.0, stop_step),
        distribution=distribution,
        min_keep=min_keep,
        skip_step=skip_step,
        prunable=prunable,
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
    distribution: Distribution | None = None,
    min_keep: int | None = None,
    skip_step: bool = True,
    prunable: Rules | None = None,
) -> Method:
    """SET: drops the smallest weights, grows at random. `update` needs a key.

    In the form of RigL's comparison: RigL's schedule, |w| for both signs together. (The SET paper
    removes the smallest positive and least negative 30 % after every epoch.)

    Args:
      sparsity: share of prunable weights that are 0, in [0, 1).
      total_steps: length of the run.
      update_interval: steps between events.
      start_step: first step that may have an event.
      stop_step: from which on masks stay as they are; None is 3/4 of training.
      drop_fraction: at step 0, which a cosine takes to 0 at `stop_step`, in [0, 1].
      drop: what active weights are worth.
      distribution: shares the density out among layers; None is `erk()`.
      min_keep: fewest weights of each layer; None is 1, with 0 a layer may have none.
      skip_step: leave out the optimizer step where there is an event, as RigL's code does.
      prunable: which leaves; as in `prunable_paths`.

    Differs from the official code (RigL's) in: as `rigl`.

    Reference: Mocanu et al., Nature Communications 2018; Evci et al. 2020, section 4.
    """
    method = rigl(
        sparsity=sparsity,
        total_steps=total_steps,
        update_interval=update_interval,
        start_step=start_step,
        stop_step=stop_step,
        drop_fraction=drop_fraction,
        drop=drop,
        grow=random,
        distribution=distribution,
        min_keep=min_keep,
        skip_step=skip_step,
        prunable=prunable,
    )
    return method._replace(name="set")


def snfs(
    *,
    sparsity: float,
    total_steps: int,
    momentum: float = 0.9,
    **options,
) -> Method:
    """SNFS: RigL that grows by an average of the dense gradient over steps.

        m <- momentum * m + (1 - momentum) * g,   every step

    In the form of RigL's comparison: weights do not move between layers. (The original also shares
    the budget out among layers by their mean |m|.)

    Args:
      sparsity: share of prunable weights that are 0, in [0, 1).
      total_steps: length of the run.
      momentum: decay of the average, in [0, 1).
      **options: every other option of `rigl`.

    Differs from the official code (RigL's) in: as `rigl`.

    Reference: Dettmers and Zettlemoyer, "Sparse Networks from Scratch", 2019; Evci et al. 2020.
    """
    if not 0.0 <= momentum < 1.0:
        raise ValueError(f"momentum {momentum} must be at least 0 and below 1")
    method = rigl(sparsity=sparsity, total_steps=total_steps, **options)
    assert method.recipe is not None  # rigl has one
    return remade(
        method,
        method.recipe._replace(observes=True),
        name="snfs",
        observe=observing(_average(momentum)),
        dense_gradient="always",
    )


@functools.cache
def _average(momentum: float) -> optax.GradientTransformation:
    return optax.ema(momentum, debias=False)


def rigl_itop(
    *,
    sparsity: float,
    total_steps: int,
    update_interval: int = 4000,
    start_step: int = 0,
    drop_fraction: float = 0.5,
    final_drop_fraction: float = 0.005,
    drop: Score = magnitude,
    grow: Score = gradient,
    distribution: Distribution | None = None,
    min_keep: int | None = None,
    prunable: Rules | None = None,
) -> Method:
    """RigL-ITOP: RigL with long intervals and exploration to the end of training.

    Weights that start at 0 get time to grow before the next event ranks them, and more positions
    have been tried by the end (`exploration_rate`). No optimizer step is skipped.

    Args:
      sparsity: share of prunable weights that are 0, in [0, 1).
      total_steps: length of the run, over which the drop fraction decays.
      update_interval: steps between events (published: 4000 at batch size 128).
      start_step: first step that may have an event.
      drop_fraction: at step 0, in [0, 1].
      final_drop_fraction: at the end, in [0, 1].
      drop: what active weights are worth.
      grow: what inactive positions are worth.
      distribution: shares the density out among layers; None is `erk()`.
      min_keep: fewest weights of each layer; None is 1, with 0 a layer may have none.
      prunable: which leaves; as in `prunable_paths`.

    Differs from the official code in: every layer keeps its exact count. The code draws each
    initial weight by chance; it keeps what is strictly above a threshold, so that ties go as well;
    and it gives active weights a score of 0 to grow by, so that where fewer gradients differ from 0
    than weights are to grow, active ones are chosen again and the layer loses as many. Besides, the
    code exchanges at the last step of training, too, whose new weights never train; with several
    processes each seems to draw masks of its own; and its Erdos-Renyi start on ImageNet does not
    cut densities at 1.

    Reference: Liu et al., "Do We Actually Need Dense Over-Parameterization? In-Time
    Over-Parameterization in Sparse Training", ICML 2021.
    """
    final_drop_fraction = check_fraction(final_drop_fraction, "final_drop_fraction")
    return _dynamic(
        "rigl_itop",
        drop,
        grow,
        "ceil",
        sparsity=sparsity,
        total_steps=total_steps,
        update_interval=update_interval,
        start_step=start_step,
        stop_step=None,
        drop_fraction=(drop_fraction, final_drop_fraction, total_steps),
        distribution=distribution,
        min_keep=min_keep,
        skip_step=False,
        prunable=prunable,
    )


def set_itop(
    *, sparsity: float, total_steps: int, update_interval: int = 1500, **options
) -> Method:
    """SET-ITOP: `rigl_itop` with random growth. `update` needs a key.

    Args:
      sparsity: share of prunable weights that are 0, in [0, 1).
      total_steps: length of the run.
      update_interval: steps between events (published: 1500 at batch size 128).
      **options: every other option of `rigl_itop` but `grow`.

    Differs from the official code in: as many weights grow as were dropped, where the code draws
    every inactive one with the probability that gives this number on average, so that a layer's
    count walks at random (that of 400 weights by 20 % in the published run); drops by |w|, where
    the code's SET keeps the most negative weights; and as `rigl_itop`.

    Reference: Liu et al. 2021 (ITOP).
    """
    method = rigl_itop(
        sparsity=sparsity,
        total_steps=total_steps,
        update_interval=update_interval,
        grow=random,
        **options,
    )
    return method._replace(name="set_itop")


def _stop_step(stop_step: int | None, total_steps: int) -> int:
    (total_steps,) = check_steps(total_steps=total_steps)
    return max(total_steps * 3 // 4, 1) if stop_step is None else stop_step


def _check_exchanges(drop_fraction: float, interval: int, start_step: int, stop_step: int) -> None:
    """Refuses a method whose masks would never change: that is `static`, which is to be said."""
    if drop_fraction == 0:
        wrong = "replaces nothing, so the masks would never change"
        raise OptionError("drop_fraction", drop_fraction, wrong, "take static for that")
    first = -(-max(start_step, 1) // interval) * interval
    if first >= stop_step:
        wrong = (
            f"has no multiple from start_step {start_step} on and before step {stop_step}, so the "
            "masks would never change"
        )
        last = stop_step - 1
        advice = f"take {last}, say, or static" if last >= max(start_step, 1) else "train longer"
        raise OptionError("update_interval", interval, wrong, advice)


def _dynamic(
    name: str,
    drop: Score,
    grow: Score,
    rounding: Rounding,
    *,
    sparsity: float,
    total_steps: int,
    update_interval: int,
    start_step: int,
    stop_step: int | None,
    drop_fraction: tuple[float, float, int],
    distribution: Distribution | None,
    min_keep: int | None,
    skip_step: bool,
    prunable: Rules | None,
) -> Method:
    sparsity = check_sparsity(sparsity)
    first, last, end = drop_fraction
    first = check_fraction(first, "drop_fraction")
    check_window(start_step, total_steps if stop_step is None else stop_step, total_steps)
    (update_interval,) = check_steps(update_interval=update_interval)
    share = cosine(first, last, end)
    if stop_step is not None:
        share = until(share, stop_step)
    _check_exchanges(first, update_interval, int(start_step), int(stop_step or total_steps))
    timetable = make_timetable(
        total_steps=total_steps,
        update_interval=update_interval,
        start_step=start_step,
        initial_density=1.0 - sparsity,
        drop_fraction=share,
    )
    return compose(
        name,
        [exchange(drop, grow, rounding=rounding)],
        timetable,
        distribution=distribution,
        min_keep=min_keep,
        skip_step=skip_step,
        prunable=prunable,
        dense_gradient="never" if grow is random else "events",
    )
