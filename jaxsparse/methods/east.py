"""EAST: RigL in its ITOP form after cycles of density, for 99.9 % sparsity and beyond.

east = with_cycles(rigl_itop)

The other two parts of EAST belong to the network: DyReLU, and weights that residual blocks share.
"""

from typing import Unpack

from jaxsparse.cycles import with_cycles
from jaxsparse.method import Method
from jaxsparse.methods.itop import rigl_itop
from jaxsparse.methods.options import ItopOptions, known
from jaxsparse.types import CycleShape


def east(
    *,
    sparsity: float,
    total_steps: int,
    update_interval: int = 4000,
    num_cycles: int = 2,
    cycle_steps: int | None = None,
    growth: float = 1.0,
    multiplier: float = 3.0,
    shape: CycleShape = "cosine",
    cycle_interval: int = 100,
    **options: Unpack[ItopOptions],
) -> Method:
    """EAST's masks: two cycles that grow up to three times the weights, then RigL-ITOP.

    The numbers are those of the official code, whose runs have 250 epochs, 88,000 steps of 128
    images: two cycles of 50 epochs, a fifth of training each, then an update every 4000 steps.

    Args:
      sparsity: share of prunable weights that are 0 at both ends of every cycle and after the last,
        in [0, 1).
      total_steps: length of the run.
      update_interval: steps between events after the cycles.
      num_cycles: as in `with_cycles`; 0 is `rigl_itop`.
      cycle_steps: as in `with_cycles`; None is a fifth of training.
      growth: as in `with_cycles`; a middle version of the code had 2.
      multiplier: as in `with_cycles`.
      shape: as in `with_cycles`.
      cycle_interval: steps between events in the cycles. What the paper's runs had is not known;
        100 is the default of the code's command line. (4000 would be four events a cycle, of which
        the first two nearly triple the weights.)
      **options: every other option of `rigl_itop`, with the same defaults.

    Raises:
      ValueError: as `rigl_itop` and `with_cycles`.

    Differs from the official code in: the first exchange after the cycles is at the next multiple
    of `update_interval`, where the code goes on at the cycles' interval for one more (with the
    published numbers at steps 36,000 and 35,300: the code has one exchange more). Every layer keeps
    a weight within the exact budget (`min_keep`), where the code adds floors on top of it, which
    differ from version to version; layers that ERK makes dense pass on what they cannot hold, where
    the code cuts it off. And as `with_cycles` and `rigl_itop`.

    Reference: Li et al., "Pushing the Limits of Sparsity: A Bag of Tricks for Extreme Pruning",
    TMLR 2025.
    """
    method = with_cycles(
        rigl_itop(
            sparsity=sparsity,
            total_steps=total_steps,
            update_interval=update_interval,
            **known("east", options, ItopOptions),
        ),
        num_cycles=num_cycles,
        cycle_steps=cycle_steps,
        growth=growth,
        multiplier=multiplier,
        shape=shape,
        cycle_interval=cycle_interval,
    )
    return method._replace(name="east")
