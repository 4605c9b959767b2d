"""Gradual pruning, without and with neuroregeneration: GMP, GraNet, GraNet-ST.

    gmp    = [prune]                 granet = [prune, exchange(ceil)]

The sparsity follows Zhu and Gupta's cubic, counted in events; see `schedules.cubic_sparsity`.
"""

from fractions import Fraction
from typing import Unpack

from jaxsparse.checks import check_in
from jaxsparse.method import Method, compose
from jaxsparse.methods.options import GranetOptions, LayerOptions, gradient_steps, known
from jaxsparse.methods.timetables import check_grid, cubic_timetable
from jaxsparse.schedules import cosine
from jaxsparse.scores import gradient, magnitude
from jaxsparse.stages import exchange, prune
from jaxsparse.types import Scope, Score

_STOP = Fraction(1, 2)


def gmp(
    *,
    sparsity: float,
    total_steps: int,
    initial_sparsity: float = 0.0,
    update_interval: int = 1000,
    start_step: int = 0,
    stop_step: int | None = None,
    scope: Scope = "global",
    score: Score = magnitude,
    legacy_end: bool = False,
    **layers: Unpack[LayerOptions],
) -> Method:
    """Gradual magnitude pruning: from dense to `sparsity` along a cubic, smallest |w| first.

    Pruned weights are set to 0 and do not come back, as in GraNet's code (in Zhu and Gupta's own
    they are masked, keep their values and may return).

    Args:
      sparsity: final share of prunable weights that are 0, in [0, 1).
      total_steps: length of the run.
      initial_sparsity: s_i; above 0, training starts from random masks of that sparsity.
      update_interval: steps between events.
      start_step: t0, when the cubic starts.
      stop_step: tf, when it has arrived; None is half of training (GraNet: 80 of 160 epochs).
      scope: "global": one threshold over all layers; "layer": every layer to the density that
        `distribution` gives it.
      score: what is kept first.
      legacy_end: leave out the cubic's last event, as GraNet's code does.
      **layers: `distribution`, of the initial masks and with scope "layer" of every target;
        `min_keep`; `prunable`; see `methods.options.LayerOptions`.

    Raises:
      ValueError: a number outside its range, or a grid of events that never reaches `sparsity`.

    Differs from the official code (GraNet's) in: exact counts (see `stages.prune`); the cubic's
    last event is run; `initial_sparsity` holds, where the code starts dense whatever it is told;
    with scope "layer" the distribution says what each layer keeps, where the code's uniform variant
    holds the classifier at density 0.2 from a sparsity of 0.8 on.

    Reference: Zhu and Gupta, "To prune, or not to prune", 2017; as in GraNet (Liu et al. 2021).
    """
    grid = check_grid(total_steps, update_interval, start_step, stop_step, default_stop=_STOP)
    return compose(
        "gmp",
        [prune(score)],
        cubic_timetable(sparsity, grid, initial_sparsity=initial_sparsity, legacy_end=legacy_end),
        scope=scope,
        dense_gradient="never",
        **known("gmp", layers, LayerOptions),
    )


def granet(
    *,
    sparsity: float,
    total_steps: int,
    initial_sparsity: float = 0.0,
    update_interval: int = 1000,
    start_step: int = 0,
    stop_step: int | None = None,
    drop_fraction: float = 0.5,
    final_drop_fraction: float = 0.005,
    scope: Scope = "global",
    drop: Score = magnitude,
    grow: Score = gradient,
    legacy_end: bool = False,
    **layers: Unpack[LayerOptions],
) -> Method:
    """GraNet: gradual pruning with zero-cost neuroregeneration, dense to sparse.

    Every event first prunes to the cubic's sparsity, over all layers together, then in every layer
    drops ceil(r a) of its a active weights by |w| and grows as many by |g|. After `stop_step` only
    the second part goes on, to the end of training, with r on a cosine from 0.5 to 0.005.

    Value and optimizer slots of a regrown weight: 0, unless the same exchange dropped it, then it
    keeps both. With a dense start 83 % of the first event's regrown positions are such.

    Args:
      sparsity: final share of prunable weights that are 0, in [0, 1).
      total_steps: length of the run, over which the drop fraction decays.
      initial_sparsity: s_i; 0 is GraNet, above 0 is GraNet-ST.
      update_interval: steps between events; magnitude ranks weights that start at 0, so they need
        time to grow (published: 1000 on CIFAR, 4000 on ImageNet).
      start_step: t0, first step that may have an event.
      stop_step: tf, when the cubic has arrived; None is half of training (80 of 160 epochs).
      drop_fraction: r at step 0, in [0, 1].
      final_drop_fraction: r at the end, in [0, 1].
      scope: of the pruning, "global" (published) or "layer"; the exchange is always per layer.
      drop: what active weights are worth, in pruning and exchange.
      grow: what inactive positions are worth.
      legacy_end: leave out the cubic's last event, as the code does since 2022.
      **layers: `distribution`, of the initial masks and with scope "layer" of every target;
        `min_keep`; `prunable`; see `methods.options.LayerOptions`.

    Raises:
      ValueError: a number outside its range, or a grid of events that never reaches `sparsity`.

    Differs from the official code in: exact counts (see `stages.prune`, `one_shot.random_masks`),
    the cubic's last event is run, growth can never choose an active weight (the code's can where
    few gradients differ from 0, and the layer loses as many), a layer has at least `min_keep`
    weights at the start, and at the very last step of training nothing is exchanged. With several
    processes each seems to draw masks of its own in the code.

    Reference: Liu et al., "Sparse Training via Boosting Pruning Plasticity with Neuroregeneration",
    NeurIPS 2021, section 4.
    """
    grid = check_grid(total_steps, update_interval, start_step, stop_step, default_stop=_STOP)
    drop_fraction = check_in("drop_fraction", drop_fraction, "[0, 1]")
    final_drop_fraction = check_in("final_drop_fraction", final_drop_fraction, "[0, 1]")
    timetable = cubic_timetable(
        sparsity,
        grid,
        initial_sparsity=initial_sparsity,
        legacy_end=legacy_end,
        drop_fraction=cosine(drop_fraction, final_drop_fraction, grid.total_steps),
    )
    return compose(
        "granet" if initial_sparsity == 0 else "granet_st",
        [prune(drop), exchange(drop, grow, rounding="ceil")],
        timetable,
        scope=scope,
        dense_gradient=gradient_steps(grow),
        **known("granet", layers, LayerOptions),
    )


def granet_st(
    *,
    sparsity: float,
    total_steps: int,
    initial_sparsity: float = 0.5,
    **options: Unpack[GranetOptions],
) -> Method:
    """GraNet-ST: GraNet from an already sparse start, so that training is sparse throughout.

    Args:
      sparsity: final share of prunable weights that are 0, at least `initial_sparsity`.
      total_steps: length of the run.
      initial_sparsity: of the random ERK masks at the start; published: 0.5.
      **options: every other option of `granet`, with the same defaults.

    Raises:
      ValueError: as `granet`.

    Differs from the official code in: as `granet`.

    Reference: Liu et al. 2021, section 4 (GraNet, sparse-to-sparse).
    """
    return granet(
        sparsity=sparsity,
        total_steps=total_steps,
        initial_sparsity=initial_sparsity,
        **known("granet_st", options, GranetOptions),
    )
