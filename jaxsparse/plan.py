"""The dry run of a method: every event with its targets, as numbers and as a table."""

import math
from typing import NamedTuple

import numpy as np

from jaxsparse.timetable import Timetable
from jaxsparse.types import HOLD, Row, Shapes


class PlanRow(NamedTuple):
    """One event, as planned.

    Attributes:
      step: the optimizer step it follows; 0 is the start of training.
      num_active: active prunable weights after it.
      density: num_active / number of prunable weights.
      drop_fraction: share of each layer's active weights that is replaced.
      num_replaced: about how many that is (each layer rounds its own share).
    """

    step: int
    num_active: int
    density: float
    drop_fraction: float
    num_replaced: int


class Plan(NamedTuple):
    """All events of a run; `print(plan)` shows the table.

    Attributes:
      method: the method's name.
      total_steps: length of the run.
      num_prunable: number of prunable weights.
      rows: the start and every event.
      layers: active weights at the start and at the end, by path. With a global target the end is
        decided by the scores, and the second number is an estimate in proportion to the first.
      layers_are_estimates: whether that is so.
    """

    method: str
    total_steps: int
    num_prunable: int
    rows: tuple[PlanRow, ...]
    layers: dict[str, tuple[int, int, int]]
    layers_are_estimates: bool

    def __str__(self) -> str:
        """The table of events (the middle of a long one left out) and of layers."""
        return "\n".join([*self._heading(), *self._events(), "", *self._layers()])

    def _heading(self) -> list[str]:
        end = self.rows[-1]
        return [
            f"{self.method}: {len(self.rows) - 1} events in {self.total_steps:,} steps, "
            f"{end.num_active:,} of {self.num_prunable:,} weights active at the end "
            f"(sparsity {1 - end.density:.6g})",
            "",
        ]

    def _events(self, most: int = 24) -> list[str]:
        lines = [f"{'step':>10} {'active':>13} {'sparsity':>9} {'drop':>8} {'replaced':>11}"]
        for i, row in enumerate(self.rows):
            if len(self.rows) > most and i == most - 4:
                lines.append(f"{'...':>10} ({len(self.rows) - most} more events)")
            if len(self.rows) <= most or i < most - 4 or i >= len(self.rows) - 4:
                lines.append(
                    f"{row.step:>10,} {row.num_active:>13,} {1 - row.density:>9.4f} "
                    f"{row.drop_fraction:>8.4f} {row.num_replaced:>11,}"
                )
        return lines

    def _layers(self) -> list[str]:
        width = max(len(path) for path in self.layers)
        end = "end (estimate)" if self.layers_are_estimates else "end"
        lines = [f"{'layer':<{width}} {'weights':>13} {'start':>13} {end:>14}"]
        for path, (size, start, stop) in self.layers.items():
            lines.append(f"{path:<{width}} {size:>13,} {start:>13,} {stop:>14,}")
        return lines


def make_plan(
    name: str, timetable: Timetable, rows: Row, shapes: Shapes, initial: dict[str, int]
) -> Plan:
    """Walks through the timetable as training would.

    Args:
      name: the method's name.
      timetable: its events.
      rows: the targets of all events, from `event_rows`.
      shapes: shapes of the prunable leaves by path.
      initial: active weights at the start, by path.
    """
    sizes = {path: math.prod(shape) for path, shape in shapes.items()}
    size = max(sum(sizes.values()), 1)
    active = dict(initial)
    total = sum(active.values())
    table = [PlanRow(0, total, total / size, 0.0, 0)]
    for i, event in enumerate(timetable.events):
        if isinstance(rows.target, dict):
            active = {p: min(int(rows.target[p][i]), active[p]) for p in active}
            total = sum(active.values())
        elif int(np.asarray(rows.target)[i]) != HOLD:
            total = min(int(np.asarray(rows.target)[i]), total)
        share = float(event.drop_fraction)
        table.append(PlanRow(event.step, total, total / size, share, round(share * total)))
    estimated = total != sum(active.values())
    before = max(sum(initial.values()), 1)
    layers = {
        p: (sizes[p], initial[p], round(initial[p] * total / before) if estimated else active[p])
        for p in initial
    }
    return Plan(name, timetable.total_steps, sum(sizes.values()), tuple(table), layers, estimated)
