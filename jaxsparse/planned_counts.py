"""How many weights each layer has at the start of a run and after every event, as planned."""

import math
from typing import NamedTuple

from jaxsparse.axes import AxesByPath, axes_of, fan_in
from jaxsparse.rounded_counts import leaf_counts
from jaxsparse.timetable import Timetable
from jaxsparse.types import Row, Shapes
from jaxsparse.units import group_size, unit_shapes


class Targets(NamedTuple):
    """The counts that a method asks of one network.

    Attributes:
      shapes: shapes of the prunable leaves, by path.
      initial: active weights at the start, by path; units for leaves that `rows.groups` counts so.
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


def planned_rows(timetable: Timetable, targets: Targets, axes: AxesByPath) -> list[PlanRow]:
    """Walks through the timetable as training would, and returns the start and every event.

    Args:
      timetable: the events.
      targets: what the method asks of the network.
      axes: as in `make_plan`.
    """
    sizes = {path: math.prod(shape) for path, shape in targets.shapes.items()}
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
    """Estimates what each layer keeps of `total` units under one threshold t on their sum of |w|.

    The weights are taken as they are initialised, normal with variance 1 / fan-in. A layer then
    keeps the share erfc(t sqrt(fan_in / 2)) of its start: layers with a small fan-in, such as the
    first convolutions, keep more than their proportion. The sum of |w| over a unit of n weights is
    taken as normal, with mean n sqrt(2 / pi) and variance n (1 - 2 / pi), over sqrt(fan_in).

    For example, fan-ins of 9 and 900 differ by 10 in sqrt(fan_in): the threshold that leaves 0.3 of
    the first layer, t = 0.35, leaves nothing of the second.
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
    """Estimates what each layer has if `total` units are more than the fewest so far.

    The units that grew are the first to go again; they count as spread evenly over the inactive
    positions.
    """
    units = unit_shapes(targets.shapes, targets.rows.groups)
    free = {path: math.prod(shape) - least[path] for path, shape in units.items()}
    more = (total - sum(least.values())) / max(sum(free.values()), 1)
    if more <= 0:
        return least
    sizes = {path: max(math.prod(shape), 1) for path, shape in units.items()}
    share = {path: (least[path] + more * free[path]) / sizes[path] for path in units}
    return leaf_counts(lambda shapes, density: share, units, 1.0, minimum=0, at_least=least)
