"""The dry run of a method: every event with its targets and its cost, as numbers and as a table."""

import itertools
import math
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import NamedTuple

from jaxsparse.axes import AxesByPath
from jaxsparse.paths import describe_dense, is_vector, listed
from jaxsparse.planned_counts import PlanRow, Targets, planned_rows
from jaxsparse.text_table import text_table
from jaxsparse.timetable import Timetable
from jaxsparse.tracing.flops import sparse_flops
from jaxsparse.tracing.training_flops import training_flops
from jaxsparse.types import DenseGradient, Shapes


class Plan(NamedTuple):
    """All events of a run; `print(plan)` shows the table.

    Attributes:
      method: the method's name.
      total_steps: length of the run.
      sizes: weights of every prunable leaf, by path.
      rows: the start and every event.
      layers_are_estimates: whether the layers of the rows, and with them all FLOPs, are estimates.
        They are with a global target, since the scores decide what each layer keeps. The estimate
        is what one threshold on |w| would keep of weights as they are initialised, normal with
        variance 1 / fan-in, see `make_plan`. Weights that grow back in cycles, above the fewest so
        far, count as spread evenly.
      flops: dense forward FLOPs of one example by path, as they were given.
      train_flops: of all steps with one example each, see `training_flops`; None without `flops`.
      dense_gradient: the steps whose dense gradient `train_flops` holds.
      dense: shapes of the leaves that stay dense, by path, as `Method.plan` knows them.
    """

    method: str
    total_steps: int
    sizes: dict[str, int]
    rows: tuple[PlanRow, ...]
    layers_are_estimates: bool
    flops: Mapping[str, int] | None = None
    train_flops: float | None = None
    dense_gradient: DenseGradient = "never"
    dense: Shapes = MappingProxyType({})

    @property
    def num_prunable(self) -> int:
        """Number of prunable weights."""
        return sum(self.sizes.values())

    @property
    def train_flops_ratio(self) -> float | None:
        """`train_flops` over those of a dense run as long; None without `flops`."""
        if self.flops is None or self.train_flops is None:
            return None
        return self.train_flops / training_flops(self.flops, {0: {}}, self.total_steps)

    @property
    def test_flops_ratio(self) -> float | None:
        """Forward FLOPs of the final network over those of the dense one; None without `flops`."""
        if self.flops is None or self.rows[-1].flops is None:
            return None
        return self.rows[-1].flops / sum(self.flops.values())

    def __str__(self) -> str:
        """The events (the middle of a long table left out), the layers, what stays dense."""
        return "\n".join([*self._heading(), *self._events(), "", *self._layers(), *self._others()])

    def _heading(self) -> list[str]:
        end = self.rows[-1]
        lines = [
            f"{self.method}: {len(self.rows) - 1} events in {self.total_steps:,} steps, "
            f"{end.num_active:,} of {self.num_prunable:,} weights active at the end "
            f"(sparsity {1 - end.density:.6g})"
        ]
        if self.flops is not None:
            about = "about " if self.layers_are_estimates else ""
            charged = {"never": "", "events": " (dense gradient at events)"}
            lines.append(
                f"FLOPs: training {about}{self.train_flops_ratio:.4f} of dense"
                f"{charged.get(self.dense_gradient, ' (dense gradient at every step)')}, "
                f"inference {about}{self.test_flops_ratio:.4f} of {sum(self.flops.values()):,}"
            )
        return [*lines, ""]

    def _events(self, most: int = 24) -> list[str]:
        table = [["step", "active", "sparsity", "drop", "replaced", *self._flops_heading()]]
        shown = _shown([row.num_active for row in self.rows], most)
        for before, i in itertools.pairwise([-1, *shown]):
            if left_out := i - before - 1:
                table.append(["...", f"{left_out} event{'s' * (left_out > 1)}"])
            row = self.rows[i]
            numbers = f"{row.step:,} {row.num_active:,} {1 - row.density:.4f}".split()
            table.append([*numbers, f"{row.drop_fraction:.4f}", f"{row.num_replaced:,}"])
            table[-1] += [] if row.flops is None else [f"{row.flops:,.0f}"]
        return text_table(table, ">")

    def _layers(self) -> list[str]:
        table = [["layer", "weights", "start", f"end{self._label()}", *self._flops_heading()]]
        for path, size in self.sizes.items():
            start, stop = self.rows[0].layers[path], self.rows[-1].layers[path]
            table.append([path, f"{size:,}", f"{start:,}", f"{stop:,}"])
            if self.flops is not None:
                table[-1].append(f"{self.flops.get(path, 0) * stop / max(size, 1):,.0f}")
        return text_table(table)

    def _flops_heading(self) -> list[str]:
        return [] if self.flops is None else [f"FLOPs{self._label()}"]

    def _others(self) -> list[str]:
        """Which leaves stay dense, unless they are all biases and norms."""
        return [] if all(map(is_vector, self.dense.values())) else [describe_dense(self.dense)]

    def _label(self) -> str:
        return " (estimate)" if self.layers_are_estimates else ""


def _shown(counts: list[int], most: int) -> list[int]:
    """Indices of the events that a long table shows: the first, the last, the turns of cycles."""
    last = len(counts) - 1
    if last < most:
        return [*range(last + 1)]
    turns = _turns(counts)
    if not turns:
        return [*range(most - 4), *range(last - 3, last + 1)]
    around = {i for turn in turns for i in (turn - 1, turn, turn + 1)}
    ends = {0, 1, *range(last - 3, last + 1)}
    if len(around | ends) > most:
        around = {turns[i * len(turns) // (most - 6)] for i in range(most - 6)}
    return sorted(i for i in around | ends if i <= last)


def _turns(counts: list[int]) -> list[int]:
    """Indices at which the counts stop rising or stop falling; empty if they never rise."""
    moves = [i for i in range(1, len(counts)) if counts[i] != counts[i - 1]]
    rises = [counts[i] > counts[i - 1] for i in moves]
    if not any(rises):
        return []
    after = [*rises[1:], None]
    return [i for i, this, then in zip(moves, rises, after, strict=True) if this != then]


def make_plan(
    name: str,
    timetable: Timetable,
    targets: Targets,
    flops: Mapping[str, int] | None = None,
    dense_gradient: DenseGradient = "never",
    axes: AxesByPath | None = None,
) -> Plan:
    """Walks through the timetable as training would.

    Args:
      name: the method's name.
      timetable: its events.
      targets: the counts that it asks of the network.
      flops: dense forward FLOPs of one example by path; None leaves the costs out. A leaf without
        an entry takes part in no product, or in one with a kernel that the input chooses.
      dense_gradient: steps that are charged for the gradient of inactive weights.
      axes: the axes of leaves by path, whose inputs and taps are the fan-in. Leaves without an
        entry go by the rules of `jaxsparse.axes`; None is no entry. Only estimates use it.

    Raises:
      ValueError: `flops` holds none of the prunable leaves, or nothing but zeros.
    """
    sizes = {path: math.prod(shape) for path, shape in targets.shapes.items()}
    if flops is not None:
        _check_flops(flops, sizes)
    densities, rows = {}, []
    for row in planned_rows(timetable, targets, axes or {}):
        densities[row.step] = {p: n / max(sizes[p], 1) for p, n in row.layers.items()}
        if flops is not None:
            row = row._replace(flops=sparse_flops(flops, densities[row.step]))
        rows.append(row)
    estimated = not isinstance(targets.rows.target, dict) and any(
        event.density is not None for event in timetable.events
    )
    plan = Plan(name, timetable.total_steps, sizes, tuple(rows), estimated)
    if flops is None:
        return plan
    cost = training_flops(flops, densities, plan.total_steps, dense_gradient=dense_gradient)
    return plan._replace(flops=flops, train_flops=cost, dense_gradient=dense_gradient)


def _check_flops(flops: Mapping[str, int], prunable: Iterable[str]) -> None:
    if not any(path in flops for path in prunable):
        raise ValueError(f"flops has no prunable leaf; it has {listed(flops) or 'nothing'}")
    for path, count in flops.items():
        if count < 0:
            raise ValueError(f"flops at {path} is {count}; it must be at least 0")
    if not sum(flops.values()):
        raise ValueError(f"flops of {listed(flops)} add up to 0; they must be above 0")
