"""One training with checkpoints on the way, each of which can be read later."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jaxsparse
from experiments import loop
from experiments.training.run import Run, RunState
from jaxsparse import Method


def method_of(sparsity: float, steps: int) -> Method:
    """Returns dense training, or static masks of the same sparsity in every layer."""
    if sparsity == 0.0:
        return jaxsparse.dense(total_steps=steps)
    return jaxsparse.static(sparsity=sparsity, total_steps=steps, distribution=jaxsparse.uniform())


def checkpoints(
    run: Run, out: Path, at: Sequence[int], sparsity: float, config: Mapping[str, Any]
) -> Iterator[tuple[int, RunState]]:
    """Trains from one step to the next, and yields the state at each.

    Each stretch has a folder of its own under `out`, which keeps its last state. Cut off and called
    again, it reads the stretches that had ended and comes to the same bits.

    Args:
      run: the whole training; its optimizer knows its length.
      out: the folder of the stretches.
      at: ascending steps of the run, at least 1.
      sparsity: of every layer, in [0, 1); 0 is dense.
      config: written to each folder.
    """
    state = None
    for stop in at:
        stretch = run._replace(method=method_of(sparsity, stop), eval_every=stop)
        if state is not None:
            state = state.replace(method=stretch.method)
        flags = {**config, "to_step": stop}
        with loop.opened(stretch, out / f"to-{stop}", flags, state=state) as (folder, begun):
            state = loop.fit(begun, folder, title=f"training to step {stop}").state
        yield stop, state
