"""What a study of pruning plasticity found: numbers of each pruning, and their table."""

import math
from collections.abc import Hashable, Mapping
from typing import Any, Literal, NamedTuple, TypeAlias

from jaxsparse.text_table import text_table
from jaxsparse.types import Scope

How: TypeAlias = Literal["frozen", "schedule", "end"]
"""How `train_fn` trains on: so many steps of its choice with the learning rate as it is at the
checkpoint ("frozen"), as many with the schedule going on ("schedule"), or with the schedule to the
end of training ("end")."""


class Cell(NamedTuple):
    """One pruning of the study.

    Attributes:
      checkpoint: the name of the checkpoint.
      rate: share of the active weights that are removed.
      scope: see `prune_once`.
      regenerate: whether each layer grows as many weights as it lost.
      learning_rate: "frozen" or "schedule".
    """

    checkpoint: Hashable
    rate: float
    scope: Scope
    regenerate: bool
    learning_rate: How


class Plasticity(NamedTuple):
    """What one pruning did. Accuracies are those of `eval_fn`; NaN is what was not measured.

    Attributes:
      cell: what was done.
      acc_pre: before the pruning.
      acc_pruned: right after it. Weights that were regrown are 0 then.
      acc_after: after training on.
      control_after: after training on in the same way without the pruning.
      sparsity_pre: share of the prunable weights that were inactive before.
      sparsity: the same after pruning and regrowth.
      num_pruned: weights that were removed.
      acc_end: after pruning, and training with the schedule to its end.
      control_end: after training to the end without the pruning.
    """

    cell: Cell
    acc_pre: float
    acc_pruned: float
    acc_after: float
    control_after: float
    sparsity_pre: float = math.nan
    sparsity: float = math.nan
    num_pruned: int = 0
    acc_end: float = math.nan
    control_end: float = math.nan

    @property
    def plasticity(self) -> float:
        """acc_after - acc_pre; above 0 at a large learning rate even without any recovery."""
        return self.acc_after - self.acc_pre

    @property
    def plasticity_vs_control(self) -> float:
        """acc_after - control_after: the plasticity without ordinary progress in training."""
        return self.acc_after - self.control_after

    @property
    def recovery(self) -> float:
        """(after - pruned) / (pre - pruned), the share of the loss that came back.

        NaN if the pruning changed nothing.
        """
        lost = self.acc_pre - self.acc_pruned
        return (self.acc_after - self.acc_pruned) / lost if lost else math.nan

    @property
    def final_gap(self) -> float:
        """acc_end - control_end."""
        return self.acc_end - self.control_end

    def as_dict(self) -> dict[str, Any]:
        """All numbers by name, those that follow from others too; flat, for a file of lines."""
        derived = ("plasticity", "plasticity_vs_control", "recovery", "final_gap")
        own = {name: value for name, value in self._asdict().items() if name != "cell"}
        return self.cell._asdict() | own | {name: getattr(self, name) for name in derived}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Plasticity":
        """The inverse of `as_dict`; None is NaN."""
        known: Any = lambda value: math.nan if value is None else value
        own = {name: known(values[name]) for name in cls._fields if name != "cell"}
        return cls(Cell(*(values[name] for name in Cell._fields)), **own)


class PlasticityStudy(NamedTuple):
    """All prunings of a study; print it for a table.

    Attributes:
      results: in the order of checkpoints, learning rates, scopes, regeneration and rates.
    """

    results: tuple[Plasticity, ...]

    def as_dicts(self) -> list[dict[str, Any]]:
        """`Plasticity.as_dict` of each."""
        return [result.as_dict() for result in self.results]

    def __str__(self) -> str:
        """A table, a line for each pruning. Accuracies are as `eval_fn` gives them."""
        heading = ("checkpoint", "lr", "scope", "regrown", "rate", "sparsity")
        numbers = ("acc_pre", "acc_pruned", "acc_after", "control_after")
        numbers += ("plasticity", "plasticity_vs_control", "recovery", "final_gap")
        rows = [[*heading, *(_TITLES.get(name, name.removeprefix("acc_")) for name in numbers)]]
        for result in self.results:
            cell = result.cell
            said = (str(cell.checkpoint), cell.learning_rate, cell.scope)
            grown = "yes" if cell.regenerate else "no"
            rows.append([*said, grown, f"{cell.rate:g}", f"{result.sparsity:.4f}"])
            rows[-1] += [_text(getattr(result, name)) for name in numbers]
        keep = [i for i in range(len(rows[0])) if any(row[i] for row in rows[1:])]
        return "\n".join(text_table([[row[i] for i in keep] for row in rows], "<<<<"))


_TITLES = {"control_after": "control", "plasticity_vs_control": "vs control", "final_gap": "gap"}


def _text(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.4f}"
