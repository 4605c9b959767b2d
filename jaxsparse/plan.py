"""The dry run of a method: every event with its targets, as numbers and as a table."""

import math
from typing import NamedTuple

from jaxsparse.timetable import Timetable
from jaxsparse.types import Row, Shapes


class PlanRow(NamedTuple):
    """One event, as planned.

    Attributes:
      step: the optimizer step it follows; 0 is the start of training.
      num_active: active prunable weights after it.
      density: num_active / number of prunable weights.
      drop_fraction: share of each layer's active weights that is replaced.
      num_replaced: about how many that is (each layer rounds its own share, a dense one has none).
      layers: active weights after it by path; see `Plan.layers_are_estimates`.
    """

    step: int
    num_active: int
    density: float
    drop_fraction: float
    num_replaced: int
    layers: dict[str, int]


class Plan(NamedTuple):
    """All events of a run; `print(plan)` shows the table.

    Attributes:
      method: the method's name.
      total_steps: length of the run.
      sizes: weights of every prunable leaf, by path.
      rows: the start and every event.
      layers_are_estimates: with a global target the scores decide what each layer keeps, and the
        rows' layers are estimates in proportion to the start.
    """

    method: str
    total_steps: int
    sizes: dict[str, int]
    rows: tuple[PlanRow, ...]
    layers_are_estimates: bool

    @property
    def num_prunable(self) -> int:
        """Number of prunable weights."""
        return sum(self.sizes.values())

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
        width = max(map(len, self.sizes))
        end = "end (estimate)" if self.layers_are_estimates else "end"
        lines = [f"{'layer':<{width}} {'weights':>13} {'start':>13} {end:>14}"]
        for path, size in self.sizes.items():
            start, stop = self.rows[0].layers[path], self.rows[-1].layers[path]
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
    num_initial = sum(initial.values())
    active, estimated = dict(initial), False
    table = [PlanRow(0, num_initial, num_initial / size, 0.0, 0, active)]
    for i, event in enumerate(timetable.events):
        total = table[-1].num_active
        if event.density is not None and isinstance(rows.target, dict):
            active = {p: int(rows.target[p][i]) for p in active}
            total = sum(active.values())
        elif event.density is not None:
            total, estimated = int(rows.target[i]), True
            active = {p: round(count * total / max(num_initial, 1)) for p, count in initial.items()}
        share = float(event.drop_fraction)
        movable = sum(count for p, count in active.items() if count < sizes[p])
        table.append(
            PlanRow(event.step, total, total / size, share, round(share * movable), active)
        )
    return Plan(name, timetable.total_steps, sizes, tuple(table), estimated)
