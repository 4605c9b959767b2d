"""Dynamic sparse training that explores to the end: the ITOP forms of RigL and SET.

    rigl_itop = [exchange(magnitude, gradient, ceil)]
    set_itop  = [exchange(magnitude, random, ceil)]

The drop fraction goes from 0.5 to 0.005 over all of training, the interval between events is long,
and no optimizer step is left out.
"""

from typing import Unpack

from jaxsparse.method import Method, compose
from jaxsparse.methods.options import LayerOptions, gradient_steps, known
from jaxsparse.methods.timetables import check_grid, exchange_timetable
from jaxsparse.scores import gradient, magnitude, random
from jaxsparse.stages import exchange
from jaxsparse.types import Score


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
    **layers: Unpack[LayerOptions],
) -> Method:
    """RigL-ITOP: RigL with long intervals and exploration to the end of training.

    Weights that start at 0 get time to grow before the next event ranks them, and more positions
    have been tried by the end (`exploration_rate`). No optimizer step is skipped.

    Args:
      sparsity: share of prunable weights that are 0, in [0, 1).
      total_steps: length of the run, over which the drop fraction decays.
      update_interval: steps between events (published: 4000 at batch size 128).
      start_step: first step that may have an event.
      drop_fraction: at step 0, in (0, 1].
      final_drop_fraction: at the end, in [0, 1].
      drop: what active weights are worth.
      grow: what inactive positions are worth.
      **layers: `distribution`, `min_keep`, `prunable`; see `methods.options.LayerOptions`.

    Raises:
      ValueError: a number outside its range.

    Differs from the official code in: every layer keeps its exact count. The code draws each
    initial weight by chance; it keeps what is strictly above a threshold, so that ties go as well;
    and it gives active weights a score of 0 to grow by: if fewer gradients differ from 0 than
    weights are to grow, it chooses active ones again, and the layer loses as many. Besides, the
    code also exchanges at the last step of training, whose new weights never train; with several
    processes each seems to draw masks of its own; and its Erdos-Renyi start on ImageNet does not
    cut densities at 1.

    Reference: Liu et al., "Do We Actually Need Dense Over-Parameterization? In-Time
    Over-Parameterization in Sparse Training", ICML 2021.
    """
    grid = check_grid(total_steps, update_interval, start_step)
    return compose(
        "rigl_itop",
        [exchange(drop, grow, rounding="ceil")],
        exchange_timetable(sparsity, grid, drop_fraction, final_drop_fraction),
        dense_gradient=gradient_steps(grow),
        **known("rigl_itop", layers, LayerOptions),
    )


def set_itop(
    *,
    sparsity: float,
    total_steps: int,
    update_interval: int = 1500,
    start_step: int = 0,
    drop_fraction: float = 0.5,
    final_drop_fraction: float = 0.005,
    drop: Score = magnitude,
    **layers: Unpack[LayerOptions],
) -> Method:
    """SET-ITOP: `rigl_itop` with random growth. `update` needs a key.

    Args:
      sparsity: share of prunable weights that are 0, in [0, 1).
      total_steps: length of the run, over which the drop fraction decays.
      update_interval: steps between events (published: 1500 at batch size 128).
      start_step: first step that may have an event.
      drop_fraction: at step 0, in (0, 1].
      final_drop_fraction: at the end, in [0, 1].
      drop: what active weights are worth.
      **layers: `distribution`, `min_keep`, `prunable`; see `methods.options.LayerOptions`.

    Raises:
      ValueError: a number outside its range.

    Differs from the official code in: as many weights grow as were dropped, where the code draws
    every inactive one with the probability that gives this number on average, so that a layer's
    count walks at random (that of 400 weights by 20 % in the published run); drops by |w|, where
    the code's SET keeps the most negative weights; and as `rigl_itop`.

    Reference: Liu et al. 2021 (ITOP).
    """
    grid = check_grid(total_steps, update_interval, start_step)
    return compose(
        "set_itop",
        [exchange(drop, random, rounding="ceil")],
        exchange_timetable(sparsity, grid, drop_fraction, final_drop_fraction),
        dense_gradient="never",
        **known("set_itop", layers, LayerOptions),
    )
