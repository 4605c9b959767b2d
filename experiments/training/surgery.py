"""Surgeries of a run: steps after which it goes on with another network.

The end of DyReLU is one. A run that goes on from a checkpoint first performs the surgeries before
that checkpoint on a fresh state, to learn the structure of the saved one.
"""

from experiments.training import phase
from experiments.training.run import Run, RunState, Surgery
from jaxsparse.checks import check_whole


def surgeries(run: Run) -> list[Surgery]:
    """Returns the surgeries that a run has ahead, the end of DyReLU among them, by their steps."""
    ahead = [*run.surgeries, *phase.ends(run.phase)]
    return sorted(ahead, key=lambda surgery: surgery.step)


def is_due(run: Run, step: int) -> bool:
    """Whether the network changes after this step."""
    return any(surgery.step == step for surgery in surgeries(run))


def after(run: Run, state: RunState, step: int) -> tuple[Run, RunState]:
    """Performs the surgeries that are due up to a step.

    A surgery returns a whole state: params, masks, optimizer slots and whatever else is stored by
    leaf, all for the new model. The structure and shapes that it returns must not depend on the
    values of the state, since a fresh one has to come out alike. Where they do (narrowing a network
    to the channels in use), train up to that step with `loop.fit`, change the network, and train on
    with another `loop.fit`.

    Args:
      run: as it is before them.
      state: before them; or a fresh one, to learn the structure of a later one.
      step: completed steps.

    Returns:
      The run with the new model and the surgeries that are still ahead, and the state.
    """
    for surgery in surgeries(run):
        if surgery.step <= step:
            model, state = surgery.operate(run.model, state)
            run, state = run._replace(model=model), state.replace(apply_fn=model.apply)
    left = tuple(surgery for surgery in run.surgeries if surgery.step > step)
    return run._replace(surgeries=left, phase=phase.after(run.phase, step)), state


def check_surgeries(run: Run) -> None:
    """Refuses surgeries that the run would never come to.

    Raises:
      ValueError: a surgery's step is outside the run.
    """
    for surgery in run.surgeries:
        check_whole("surgery step", surgery.step, 1, run.steps)
    phase.check_phase(run)
