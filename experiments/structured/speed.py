"""The time of a training step, of the network at full width and of the narrower one in turn."""

import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from experiments.structured.setting import Narrow, Setting
from experiments.training.batches import Batch
from experiments.training.steps import compile_steps
from jaxsparse.types import PyTree


def step_seconds(setting: Setting, variables: PyTree, narrow: Narrow) -> dict[str, float]:
    """Returns the median seconds of a step before and after, by name; empty for no timed steps.

    Both networks take a step in turn, so that other work of the machine slows both alike. Steps are
    those of plain SGD, whatever the arm trained with. `benchmarks/narrow.py` gives quartiles and a
    control.

    Args:
      setting: has the network at full width and the number of steps.
      variables: of the network at full width.
      narrow: the narrower one.
    """
    if not setting.timed_steps:
        return {}
    batch = next(setting.base.batches(0))
    networks = [(setting.model, variables), (narrow.model, narrow.variables)]
    takes = [_stepper(setting, model, found, batch) for model, found in networks]
    for take in takes:  # the first step is slower
        take()
    times = [[take() for take in takes] for _ in range(setting.timed_steps)]
    before, after = np.median(times, axis=0).tolist()
    return {"step_seconds_before": before, "step_seconds": after, "speedup": before / after}


def _stepper(setting: Setting, model: Any, variables: PyTree, batch: Batch) -> Callable[[], float]:
    """Returns a function that takes the next step and returns its seconds."""
    variables = jax.tree.map(jax.numpy.copy, variables)  # steps donate what they are given
    run, state = setting.going_on(0, setting.steps, model, variables, setting.tx)
    (step,) = compile_steps(run, state, batch, (False,)).values()

    def take() -> float:
        nonlocal state
        start = time.perf_counter()
        state, loss = step(state, batch)
        jax.block_until_ready((state, loss))
        return time.perf_counter() - start

    return take
