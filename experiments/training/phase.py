"""The phase in which a run's network turns from DyReLU into ReLU."""

import functools
import math
from typing import Any

from flax import linen as nn

from experiments.training.run import Phase, Run, RunState, Surgery
from jaxsparse.nn import phase_out, with_beta


def make_phase(steps: int, *, start: float, stop: float, late: bool = False) -> Phase:
    """Returns the phase of a run of so many steps, from shares of it.

    Args:
      steps: of the run.
      start: share of training after which DyReLU begins to fade, at least 0.
      stop: share after which it is gone, above `start` and at most 1.
      late: as in `jaxsparse.nn.beta_of`.

    Raises:
      ValueError: a share outside its range; names the flag.
    """
    if not (math.isfinite(stop) and 0.0 < stop <= 1.0):
        raise ValueError(f"--dyrelu_stop={stop} must be in (0, 1], a share of training")
    if not 0.0 <= start < stop:
        raise ValueError(f"--dyrelu_start={start} must be in [0, {stop}), below --dyrelu_stop")
    last = max(round(steps * stop), 1)
    return Phase(min(round(steps * start), last - 1), last, late)


def with_relu(model: nn.Module) -> nn.Module:
    """Returns the network without DyReLU; a network that has none is returned as it is."""
    return model if getattr(model, "dyrelu", None) is None else model.clone(dyrelu=None)


def ends(phase: Phase | None) -> list[Surgery]:
    """Returns the surgery that removes DyReLU, in a list; an empty one without a phase."""
    return [] if phase is None else [Surgery(phase.stop, functools.partial(_remove, phase))]


def _remove(phase: Phase, model: nn.Module, state: RunState) -> tuple[nn.Module, RunState]:
    if (
        int(state.step) < phase.stop
    ):  # a fresh state, which only has to take the form of a later one
        state = state.replace(collections=with_beta(state.collections, 0.0))
    return phase_out(model, state)


def after(phase: Phase | None, step: int) -> Phase | None:
    """Returns the phase as it is after `step` completed steps; None if it is over."""
    return None if phase is None or phase.stop <= step else phase


def check_phase(run: Run) -> None:
    """Refuses a phase without DyReLU in the network, and DyReLU without a phase.

    Raises:
      ValueError: says which of them is missing.
    """
    options: Any = getattr(run.model, "dyrelu", None)
    if (options is None) != (run.phase is None):
        given = "no phase" if run.phase is None else f"{run.phase}"
        raise ValueError(f"the network has dyrelu={options}, and the run has {given}")
