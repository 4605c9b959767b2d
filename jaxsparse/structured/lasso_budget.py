"""Whether ResRep's penalty has time to bring a masked row to 0, said before training.

A masked row is moved by the penalty alone, which has a constant length whatever the row's norm. So
one number describes it: its norm with a sign, from 1 towards 0. The published constants need about
10,000 steps at a learning rate of 0.01. A shorter run silently prunes nothing.
"""

import math
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import optax

from jaxsparse.checks import check_in, check_whole
from jaxsparse.rates import rates_of

_SETTLED = 1e-5
_TRIED = tuple(float(f"{digit}e{power}") for power in range(-6, -2) for digit in (1, 2, 5)) + (
    0.01,
)


class LassoPreflight(NamedTuple):
    """The fate of a row that is masked at one step of a run.

    Attributes:
      lasso: lambda.
      mask_step: step from which the row is masked.
      total_steps: of the run.
      settles_at: completed steps after which its norm stays below 1e-5; None if it never does.
      final_norm: at the end of the run.
      reach: lambda * sum of the learning rates after the mask / (1 - mu), the way that the penalty
        can push the row. About 1.5 times its norm is needed.
      enough: the smallest lambda of 1, 2, 5 times a power of ten, up to 0.01, with which it
        settles; None if there is none.
    """

    lasso: float
    mask_step: int
    total_steps: int
    settles_at: int | None
    final_norm: float
    reach: float
    enough: float | None

    def __str__(self) -> str:
        """A line on the row, and on what to change if it does not settle."""
        line = f"resrep: with lasso={self.lasso:g}, a row that is masked at step {self.mask_step:,}"
        if self.settles_at is not None:
            return f"{line} of {self.total_steps:,} is below 1e-05 from step {self.settles_at:,} on"
        advice = (
            f"take lasso={self.enough:g}"
            if self.enough is not None
            else "no lasso up to 0.01 does; take more steps or mask earlier"
        )
        return (
            f"{line} ends with a norm of {self.final_norm:.2g} after {self.total_steps:,} steps, "
            f"not below 1e-05, and nothing is pruned; {advice}"
        )


def lasso_preflight(
    learning_rate: float | optax.Schedule,
    *,
    lasso: float = 1e-4,
    momentum: float = 0.99,
    total_steps: int,
    mask_step: int,
    row_norm: float = 1.0,
    snap: bool = False,
) -> LassoPreflight:
    """Says before a run when a row that is masked at a step has come to 0, and warns if never.

    The row is simulated exactly, in float64:

        z <- mu z + lambda sign(q);      q <- q - lr_t z,

    from q = `row_norm` and z = 0 at `mask_step`. As long as the row is not masked, the loss holds
    it against the penalty.

    A row may have momentum across its direction, which one number does not show. It then orbits 0
    for some 1,700 steps at mu = 0.99, see `compactor_sgd`. With `snap` it does not.

    Args:
      learning_rate: of the compactors, number or schedule over steps.
      lasso: lambda, in (0, inf).
      momentum: mu of the compactors, in [0, 1).
      total_steps: length of the run, at least 1.
      mask_step: completed steps when the row is masked. The last rows are masked when the budget is
        met: after 5 epochs, plus 200 steps for every 4 rows to remove.
      row_norm: norm at that step, in (0, inf); 1 is that of the start.
      snap: as in `compactor_sgd`.

    Returns:
      The fate of the row; print it.

    Warns:
      UserWarning: the row does not settle below 1e-5, so that its channel would not be removed.

    Raises:
      ValueError: a number out of its range.

    The published constants need far more than ten epochs of CIFAR-10:

    >>> schedule = optax.cosine_decay_schedule(0.01, 31_200)
    >>> print(lasso_preflight(schedule, total_steps=31_200, mask_step=3_120))
    resrep: with lasso=0.0001, a row that is masked at step 3,120 of 31,200 is below 1e-05 from step
    17,366 on
    """
    total_steps = check_whole("total_steps", total_steps, 1, of="steps")
    mask_step = check_whole("mask_step", mask_step, 0, total_steps - 1, of="steps")
    lasso, row_norm = (
        check_in("lasso", lasso, "(0, inf)"),
        check_in("row_norm", row_norm, "(0, inf)"),
    )
    momentum = check_in("momentum", momentum, "[0, 1)")
    rates = rates_of(learning_rate, mask_step, total_steps).tolist()
    run = lambda strength: _simulated(rates, strength, momentum, row_norm, snap)
    settled, final = run(lasso)
    # A row that settles with the given lambda may be too slow with a smaller one: both are tried.
    enough = next((strength for strength in _TRIED if run(strength)[0] is not None), None)
    found = LassoPreflight(
        lasso=lasso,
        mask_step=mask_step,
        total_steps=total_steps,
        settles_at=None if settled is None else mask_step + settled,
        final_norm=final,
        reach=lasso * math.fsum(rates) / (1 - momentum),
        enough=enough,
    )
    if settled is None:
        warnings.warn(str(found), stacklevel=2)
    return found


def _simulated(
    rates: Sequence[float], lasso: float, momentum: float, norm: float, snap: bool
) -> tuple[int | None, float]:
    """Returns after how many steps a masked row stays settled, and its norm at the end."""
    row, slot, settled = norm, 0.0, 0
    cycle = lasso / (4 * (1 - momentum)) if snap else -1.0
    for step, rate in enumerate(rates, start=1):
        if abs(row) <= cycle * rate:
            row = slot = 0.0
        else:
            slot = momentum * slot + math.copysign(lasso, row) * (row != 0.0)
            row -= rate * slot
        if not abs(row) < _SETTLED:
            settled = step
    return (None if settled == len(rates) else settled), abs(row)
