"""Changes of a network besides pruning: DyReLU that fades out, and weight sharing.

Each works with every method. `--schedule=east` has both unless a flag says otherwise. If the
network has no stage with blocks to share, `east` does without sharing and prints a note.
"""

import sys
from typing import Any, TypeAlias

import optax
from flax import linen as nn

from experiments.options.flags import DEFAULTS
from experiments.training.phase import make_phase
from experiments.training.run import Phase
from jaxsparse import Method
from jaxsparse.nn import DyReLUOptions, freeze_dyrelu, sharing_of, stored_sparsity
from jaxsparse.types import OptionError

NUM_OWNERS = 2
"""Number of blocks of a stage that have kernels of their own, as published."""

_NOTHING = "is no ResNet with a stage of more than 2 blocks"
_OF_DYRELU = ("dyrelu_start", "dyrelu_stop", "dyrelu_blend", "dyrelu_freeze", "dyrelu_late")


Config: TypeAlias = Any
"""An experiment's flags: those of `flags.Tricks`, `schedule` and `model`."""


def has_dyrelu(config: Config) -> bool:
    """Whether training begins with DyReLU."""
    return config.schedule == "east" if config.dyrelu is None else config.dyrelu


def with_tricks(model: nn.Module, config: Config) -> nn.Module:
    """Returns the network with which training begins.

    Raises:
      ValueError: sharing is asked for and the network has nothing to share, the blend does not
        exist, or an option of DyReLU is given without it.
    """
    if has_dyrelu(config):
        model = model.clone(dyrelu=DyReLUOptions(blend=_blend(config.dyrelu_blend)))
    elif given := [name for name in _OF_DYRELU if getattr(config, name) is not None]:
        raise ValueError(f"--{given[0]} needs --dyrelu")
    if config.weight_sharing and not can_share(model):
        raise ValueError(f"--weight_sharing: {config.model} {_NOTHING}")
    shares = config.schedule == "east" if config.weight_sharing is None else config.weight_sharing
    return model.clone(num_owners=NUM_OWNERS) if shares and can_share(model) else model


def with_freezing(
    tx: optax.GradientTransformation, config: Config, method: Method
) -> optax.GradientTransformation:
    """Returns the optimizer; with --dyrelu_freeze, one that freezes DyReLU while it fades."""
    phase = phase_of(config, method.timetable.total_steps)
    if phase is None or not config.dyrelu_freeze:
        return tx
    # The optimizer counts its updates, and methods such as RigL skip one at each mask update.
    skipped = method.timetable.events if method.skip_step else ()
    return optax.chain(
        tx, freeze_dyrelu(phase.start - sum(event.step <= phase.start for event in skipped))
    )


def can_share(model: nn.Module) -> bool:
    """Whether the network has blocks that can take the kernels of others."""
    return hasattr(model, "num_owners") and max(getattr(model, "stage_sizes", [0])) > NUM_OWNERS


def say_if_it_shares_nothing(config: Config, model: nn.Module) -> None:
    """Prints a line on standard error if `east` has to do without sharing."""
    if config.schedule == "east" and config.weight_sharing is None and not can_share(model):
        note = f"note: {config.model} {_NOTHING}, so it shares no weights"
        print(note, file=sys.stderr, flush=True)


def sparsity_of(model: nn.Module, images: Any, sparsity: float) -> float:
    """Returns the sparsity of the stored kernels for a sparsity of the network without sharing.

    Args:
      model: the network, with sharing or without; without, the sparsity is returned as it is.
      images: shape of its input.
      sparsity: of the network without sharing. If it is not in [0, 1), it is returned as it is, as
        the method refuses it.

    Raises:
      ValueError: the sparsity needs more weights than are stored.
    """
    if getattr(model, "num_owners", None) is None or not 0.0 <= sparsity < 1.0:
        return sparsity
    try:
        return stored_sparsity(sparsity, sharing_of(model, images))
    except OptionError as error:
        said = f"--sparsity={error.value} {error.wrong}"
        raise ValueError(f"{said}, or take --weight_sharing=False") from None


def phase_of(config: Config, steps: int) -> Phase | None:
    """Returns when DyReLU fades; None without DyReLU.

    Args:
      config: the flags.
      steps: length of the run.

    Raises:
      ValueError: a share of training is out of its range.
    """
    if not has_dyrelu(config):
        return None
    of = lambda name: DEFAULTS[name] if getattr(config, name) is None else getattr(config, name)
    start, stop = of("dyrelu_start"), of("dyrelu_stop")
    return make_phase(steps, start=start, stop=stop, late=bool(config.dyrelu_late))


def _blend(asked: str | None) -> Any:
    if asked not in (None, "coefficient", "output"):
        raise ValueError(f"--dyrelu_blend={asked} must be coefficient or output")
    return asked or DEFAULTS["dyrelu_blend"]
