"""The scores that choose initial masks: their names and options. `scoring.py` computes them."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple


class Criterion(NamedTuple):
    """The needs of a score.

    Attributes:
      reads_images: whether it looks at labelled images.
      num_rounds: rounds without --score_rounds; None if it has no rounds.
    """

    reads_images: bool = False
    num_rounds: int | None = None


CRITERIA: Mapping[str, Criterion] = {
    "snip": Criterion(reads_images=True, num_rounds=1),
    "grasp": Criterion(reads_images=True, num_rounds=1),
    "synflow": Criterion(num_rounds=100),
    "magnitude": Criterion(),
    "random": Criterion(),
}


class Scoring(NamedTuple):
    """Initial masks from scores of the initial weights, see `scoring.py`.

    Attributes:
      criterion: a name in CRITERIA.
      sparsity: of the masks, in [0, 1).
      options: "scope", "distribution", "min_keep" and "pattern" of `masks_from_scores`.
      num_per_class: images of each class that SNIP and GraSP look at.
      batch_size: images of a micro-batch of these; None takes all of them at once.
      num_rounds: rounds of scoring and pruning; None takes those of the criterion.
    """

    criterion: str
    sparsity: float
    options: Mapping[str, Any] = MappingProxyType({})
    num_per_class: int = 10
    batch_size: int | None = None
    num_rounds: int | None = None
