"""The dry run of a method: every event with its targets and its cost, as numbers and as a table."""

import itertools
import math
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import NamedTuple

from jaxsparse.axes import AxesByPath, axes_of, fan_in
from jaxsparse.distributions import leaf_counts
from jaxsparse.paths import describe_dense, is_vector, listed
from jaxsparse.timetable import Timetable
from jaxsparse.tracing.flops import sparse_flops
from jaxsparse.tracing.training_flops import training_flops
from jaxsparse.types import DenseGradient, Row, Shapes
from jaxsparse.units import group_size, unit_shapes


class Targets(NamedTuple):
    """What a method asks of one network.

    Attributes:
      shapes: shapes of the prunable leaves, by path.
      initial: active weights at the start, by path; units where `rows.groups` counts in units.
      rows: the targets of all events, from `event_rows`, counted alike.
      grows: whether each event also grows up to its target. One that only prunes leaves a layer as
        it is if the layer has fewer weights than its target, which given masks may have.
    """

    shapes: Shapes
    initial: dict[str, int]
    rows: Row
    grows: tuple[bool, ...]


class PlanRow(NamedTuple):
    """One event, as planned.

    Attributes:
      step: the optimizer step it follows; 0 is the start of training.
      num_active: active prunable weights after it.
      density: num_active / number of prunable weights.
      drop_fraction: share of each layer's active weights that is replaced.
      num_replaced: about how many that is (each layer rounds its own share, a dense one has none).
      layers: active weights after it by path; see `Plan.layers_are_estimates`.
      flops: of a forward pass of one example after it; None where no FLOPs were given.
    """

    step: int
    num_active: int
    density: float
    drop_fraction: float
    num_replaced: int
    layers: dict[str, int]
    flops: float | None = None


class Plan(NamedTuple):
    """All events of a run; `print(plan)` shows the table.

    Attributes:
      method: the method's name.
      total_steps: length of the run.
      sizes: weights of every prunable leaf, by path.
      rows: the start and every event.
      layers_are_estimates: with a global target the scores decide what each layer keeps. The rows'
        layers, and with them all FLOPs, are then estimates: what one threshold on |w| would keep of
        weights as they are initialised, normal with variance 1 / fan-in, see `make_plan`. What
        grows back above the fewest so far, in cycles, counts as spread evenly.
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
        lines = [f"{'step':>10} {'active':>13} {'sparsity':>9} {'drop':>8} {'replaced':>11}"]
        if self.flops is not None:
            lines[0] += f" {'FLOPs' + self._label():>19}"
        shown = _shown([row.num_active for row in self.rows], most)
        for before, i in itertools.pairwise([-1, *shown]):
            if left_out := i - before - 1:
                lines.append(f"{'...':>10} ({left_out} more event{'s' * (left_out > 1)})")
            row = self.rows[i]
            lines.append(
                f"{row.step:>10,} {row.num_active:>13,} {1 - row.density:>9.4f} "
                f"{row.drop_fraction:>8.4f} {row.num_replaced:>11,}"
                + (f" {row.flops:>19,.0f}" if row.flops is not None else "")
            )
        return lines

    def _layers(self) -> list[str]:
        width = max(map(len, self.sizes))
        lines = [f"{'layer':<{width}} {'weights':>13} {'start':>13} {'end' + self._label():>14}"]
        if self.flops is not None:
            lines[0] += f" {'FLOPs' + self._label():>19}"
        for path, size in self.sizes.items():
            start, stop = self.rows[0].layers[path], self.rows[-1].layers[path]
            lines.append(f"{path:<{width}} {size:>13,} {start:>13,} {stop:>14,}")
            if self.flops is not None:
                lines[-1] += f" {self.flops.get(path, 0) * stop / max(size, 1):>19,.0f}"
        return lines

    def _others(self) -> list[str]:
        """Which leaves stay dense, unless they are all biases and norms."""
        return [] if all(map(is_vector, self.dense.values())) else [describe_dense(self.dense)]

    def _label(self) -> str:
        return " (estimate)" if self.layers_are_estimates else ""


def _shown(counts: list[int], most: int) -> list[int]:
    """Which of many events the table has: the first and the last, and where a cycle turns."""
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
    """Where counts that rise come to an end of rising, and those that fall again one of falling."""
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
      targets: what it asks of the network.
      flops: dense forward FLOPs of one example by path; None leaves the costs out. A leaf without
        an entry takes part in no product, or in one with a kernel that the input chooses.
      dense_gradient: steps that are charged for the gradient of inactive weights.
      axes: which of a leaf's axes an output sums over, its fan-in, by path; leaves without an
        entry, and all where it is None, go by the rules of `jaxsparse.axes`. Only estimates ask.

    Raises:
      ValueError: `flops` holds none of the prunable leaves, or nothing but zeros.
    """
    sizes = {path: math.prod(shape) for path, shape in targets.shapes.items()}
    if flops is not None:
        _check_flops(flops, sizes)
    densities, rows = {}, []
    for row in _walk(timetable, targets, sizes, axes or {}):
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


def _walk(
    timetable: Timetable, targets: Targets, sizes: dict[str, int], axes: AxesByPath
) -> list[PlanRow]:
    size = max(sum(sizes.values()), 1)
    units = {p: group_size(targets.rows.groups.get(p)) for p in sizes}
    active = least = dict(targets.initial)

    def planned(step: int, share: float) -> PlanRow:
        layers = {p: count * units[p] for p, count in active.items()}
        total = sum(layers.values())
        movable = sum(count for p, count in layers.items() if count < sizes[p])
        return PlanRow(step, total, total / size, share, round(share * movable), layers)

    table = [planned(0, 0.0)]
    for i, event in enumerate(timetable.events):
        if event.density is not None and isinstance(targets.rows.target, dict):
            wanted = {p: int(targets.rows.target[p][i]) for p in active}
            grows = targets.grows[i]
            active = {p: n if grows else min(n, active[p]) for p, n in wanted.items()}
        elif event.density is not None:
            total = int(targets.rows.target[i])
            if not targets.grows[i]:
                total = min(total, sum(active.values()))
            if total < sum(least.values()):
                least = _estimate(targets, least, total, axes)
            active = _grown(targets, least, total)
        table.append(planned(event.step, float(event.drop_fraction)))
    return table


def _estimate(
    targets: Targets, active: dict[str, int], total: int, axes: AxesByPath
) -> dict[str, int]:
    """What each layer keeps of `total` units under one threshold t on their score, by |w|.

    For weights as they are initialised, normal with variance 1 / fan-in, a layer keeps the share
    erfc(t sqrt(fan_in / 2)) of what it starts with. Layers of little fan-in, such as the first
    convolutions, keep more; counts in proportion to the start would miss that. A sum of n of these
    |w| is taken as normal, of mean n sqrt(2 / pi) and variance n (1 - 2 / pi), over sqrt(fan_in).
    """
    shapes, initial = targets.shapes, targets.initial
    units = unit_shapes(shapes, targets.rows.groups)
    n = max(group_size(targets.rows.groups.get(p)) for p in shapes)  # all have one size
    summed = {path: fan_in(shape, axes_of(path, shape, axes)) for path, shape in shapes.items()}
    scale = {path: math.sqrt(max(n, 1) / 2) for path, n in summed.items()}

    def kept(threshold: float) -> dict[str, float]:
        score = {p: threshold * scale[p] for p in initial}
        if n == 1:
            return {p: initial[p] * math.erfc(x) for p, x in score.items()}
        mean, deviation = n / math.sqrt(math.pi), math.sqrt(n * (1 - 2 / math.pi))
        return {p: initial[p] * math.erfc((x - mean) / deviation) / 2 for p, x in score.items()}

    low, high = 0.0, 30.0 * n / min(scale.values())  # erfc(30) is 0
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(kept(middle).values()) > total else (low, middle)
    share = {p: count / max(math.prod(units[p]), 1) for p, count in kept(low).items()}
    density = total / max(sum(math.prod(shape) for shape in units.values()), 1)
    keep = targets.rows.min_keep
    return leaf_counts(lambda shapes, density: share, units, density, minimum=keep, at_most=active)


def _grown(targets: Targets, least: dict[str, int], total: int) -> dict[str, int]:
    """What each layer has where `total` units are more than the fewest so far.

    Those that grew, and are the first to go again, are spread over the inactive positions evenly.
    """
    units = unit_shapes(targets.shapes, targets.rows.groups)
    free = {path: math.prod(shape) - least[path] for path, shape in units.items()}
    more = (total - sum(least.values())) / max(sum(free.values()), 1)
    if more <= 0:
        return least
    sizes = {path: max(math.prod(shape), 1) for path, shape in units.items()}
    share = {path: (least[path] + more * free[path]) / sizes[path] for path in units}
    return leaf_counts(lambda shapes, density: share, units, 1.0, minimum=0, at_least=least)
