"""The length of a run in optimizer steps, from --steps or --epochs."""

import math

from experiments.options.schedules import said_in_flags
from jaxsparse.checks import check_whole


def num_steps(steps: int | None, epochs: float | None, batch_size: int, num_train: int) -> int:
    """Returns the number of optimizer steps of a run.

    Args:
      steps: of --steps; None goes by epochs.
      epochs: of --epochs, or the recipe's; used without --steps.
      batch_size: images a step. Images at the end of an epoch that fill no batch are left out.
      num_train: images of an epoch.

    Raises:
      ValueError: the run has no step or too many, or an epoch has no step.

    >>> num_steps(None, 0.5, 128, 45_000), num_steps(7, 160, 128, 45_000)
    (176, 7)
    """
    if steps is not None:
        return steps
    with said_in_flags():
        check_whole("batch_size", batch_size, 1, num_train)
    per_epoch = num_train // batch_size
    if epochs is None or not math.isfinite(epochs):
        raise ValueError(f"--epochs={epochs} must be a finite number")
    if not epochs * per_epoch > 0.5:
        raise ValueError(f"--epochs={epochs} must be at least a step, 1 / {per_epoch} of an epoch")
    if epochs * per_epoch >= 2**31 - 1:
        most = (2**31 - 1) // per_epoch
        raise ValueError(
            f"--epochs={epochs:.10g} must be at most {most}: steps are counted in 32 bits"
        )
    return round(epochs * per_epoch)


def check_one(steps: int | None, epochs: float | None) -> None:
    """Refuses --steps and --epochs together; the ValueError names both."""
    if steps is not None and epochs is not None:
        raise ValueError(f"--steps={steps} and --epochs={epochs}: pass one of them")
