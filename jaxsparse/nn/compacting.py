"""A trained sparse network without its dead channels, in one call."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from flax import linen as nn

from jaxsparse.masks import apply_masks
from jaxsparse.nn.narrow import Narrowed, narrow_module
from jaxsparse.nn.sharing import without_sharing
from jaxsparse.structured import WidthPlan, channel_groups, compact, fold_constants
from jaxsparse.types import PyTree


class Compacted(NamedTuple):
    """A network that lost its dead channels.

    Attributes:
      model: narrower; called as before.
      variables: of the narrow model. Inactive weights are 0.
      masks: of its params.
      plan: the widths before and after, printable; of the network without sharing.
    """

    model: nn.Module | Narrowed
    variables: dict[str, Any]
    masks: PyTree
    plan: WidthPlan


def compact_module(
    model: nn.Module, variables: Mapping[str, Any], masks: PyTree, *inputs: Any
) -> Compacted:
    """Removes the channels that masks have made dead; outputs stay as they are, up to rounding.

    Shared kernels are written out (`without_sharing`), constant channels move into the biases
    behind them (`fold_constants`), and dead ones go (`compact`). The result is for inference: the
    statistics of norms that constants moved into fit these variables, and not what further
    training would make of them.

    Args:
      model: linen, called as `model.apply(variables, *inputs)` at inference.
      variables: {"params": ..., ...}, without DyReLU's, which `phase_out` ends.
      masks: bool, like the params.
      *inputs: a batch as the model takes it; see `compact`.

    Raises:
      ValueError: as `channel_groups`, `fold_constants`, `compact` and `narrow_module`.
    """
    variables = {**variables, "params": apply_masks(variables["params"], masks)}
    model, variables, masks = without_sharing(model, variables, masks)
    groups = channel_groups(model.apply, variables, *inputs)
    variables = fold_constants(groups, model.apply, variables, *inputs)
    plan = compact(groups, model.apply, variables, *inputs)
    return Compacted(narrow_module(model, plan), plan.apply(variables), plan.apply(masks), plan)
