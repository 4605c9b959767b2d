"""The phase in which a run's network turns from DyReLU into ReLU, and what the loop then does."""

import math
from typing import Any

from flax import linen as nn

from experiments.training.run import Phase, Run, RunState
from jaxsparse.nn import phase_out, with_beta


def make_phase(steps: int, *, start: float, stop: float, late: bool = False) -> Phase:
    """Returns the phase of a run of so many steps, from shares of it.

    Args:
      steps: of the run.
      start: share of training after which DyReLU begins to fade, at least 0.
      stop: share after which it is gone, above `start` and at most 1.
      late: as in `jaxsparse.nn.beta_of`.

    Raises:
      ValueError: names the flag.
    """
    if not (math.isfinite(stop) and 0.0 < stop <= 1.0):
        raise ValueError(f"--dyrelu_stop {stop} must be above 0 and at most 1, a share of training")
    if not 0.0 <= start < stop:
        raise ValueError(
            f"--dyrelu_start {start} must be at least 0 and below --dyrelu_stop {stop}"
        )
    last = max(round(steps * stop), 1)
    return Phase(min(round(steps * start), last - 1), last, late)


def with_relu(model: nn.Module) -> nn.Module:
    """Returns the network without DyReLU; any other one as it is."""
    return model if getattr(model, "dyrelu", None) is None else model.clone(dyrelu=None)


def run_after(run: Run, step: int) -> Run:
    """Returns the run as it is after `step` completed steps: with or without DyReLU."""
    if run.phase is None or step < run.phase.stop:
        return run
    return run._replace(model=with_relu(run.model), phase=None)


def state_after(run: Run, state: RunState, step: int) -> RunState:
    """Returns what is left of a state of the run's start, or of the step before, after `step`."""
    if run.phase is None or step < run.phase.stop:
        return state
    if int(state.step) < step:  # it only has to look like one of that step, when beta is 0
        state = state.replace(collections=with_beta(state.collections, 0.0))
    return phase_out(run.model, state)[1]


def ends(run: Run, step: int) -> bool:
    """Whether DyReLU is gone after this step."""
    return run.phase is not None and step == run.phase.stop


def check_phase(run: Run) -> None:
    """Refuses a phase without a network that has one, and the other way round.

    Raises:
      ValueError: says which of them is missing.
    """
    options: Any = getattr(run.model, "dyrelu", None)
    if (options is None) != (run.phase is None):
        given = "no phase" if run.phase is None else f"{run.phase}"
        raise ValueError(f"the network has dyrelu={options}, and the run has {given}")
