"""Options that several published methods share: typed and described once."""

from collections.abc import Mapping
from typing import Any, TypedDict, TypeVar

from jaxsparse.scores import random
from jaxsparse.types import DenseGradient, Distribution, Rules, Scope, Score

Options = TypeVar("Options", bound=Mapping[str, Any])


class LayerOptions(TypedDict, total=False):
    """Which leaves a method prunes, and what each of them keeps.

    Attributes:
      distribution: shares the density out among layers; None, the default, is `erk()`.
      min_keep: fewest weights of each layer, at the start and after pruning. None, the default, is
        1, but 0 for what a threshold over all layers leaves. With 0 a layer may lose its last one.
      prunable: which leaves the method may prune, as in `prunable_paths`, whose default None is.
    """

    distribution: Distribution | None
    min_keep: int | None
    prunable: Rules | None


class ItopOptions(LayerOptions, total=False):
    """The options of `rigl_itop` but for those that `east` has a default of its own for."""

    start_step: int
    drop_fraction: float
    final_drop_fraction: float
    drop: Score
    grow: Score


class GranetOptions(LayerOptions, total=False):
    """The options of `granet` but for the sparsities."""

    update_interval: int
    start_step: int
    stop_step: int | None
    drop_fraction: float
    final_drop_fraction: float
    scope: Scope
    drop: Score
    grow: Score
    legacy_end: bool


def known(method: str, options: Options, kind: type) -> Options:
    """Returns the options if the method has all of them.

    Args:
      method: the factory's name.
      options: what it took as `**options`.
      kind: the TypedDict that lists them.

    Raises:
      TypeError: an option that is not in the list, as Python raises for a mistyped argument.

    >>> known("rigl", {"min_keeep": 3}, LayerOptions)
    Traceback (most recent call last):
    TypeError: rigl() got an unexpected keyword argument 'min_keeep'
    """
    for name in options:
        if name not in kind.__annotations__:
            raise TypeError(f"{method}() got an unexpected keyword argument {name!r}")
    return options


def gradient_steps(grow: Score) -> DenseGradient:
    """Returns when a method that grows by this score reads the gradient of inactive weights."""
    return "never" if grow is random else "events"
