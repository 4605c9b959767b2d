"""The events of a timetable as integers: how many weights each leaf is to have and to exchange.

The rows are computed on the host. An event takes its own by its step, which may be traced.
"""

import math
from collections.abc import Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from jaxsparse.rounded_counts import count_together, leaf_counts
from jaxsparse.timetable import Timetable
from jaxsparse.types import Distribution, PlannedEvent, Rounding, Row, Scope, Shapes

HOLD = 2**31 - 1
"""Stands in place of a target: the event leaves the number of active weights as it is."""


def event_rows(
    timetable: Timetable,
    shapes: Shapes,
    *,
    scope: Scope,
    distribution: Distribution,
    min_keep: int | None,
) -> Row:
    """Returns the rows of all events stacked: a `Row` whose entries are np.int32[events].

    A target is `HOLD` if the event does not change the number of active weights. Targets per leaf
    go up and down together: none falls when the density rises, and none rises when it falls. When
    the density comes back to the lowest one so far, the targets are those of that time.

    Args:
      timetable: the events.
      shapes: shapes of the prunable leaves, by path.
      scope: "global": one target for all leaves together; "layer": one per leaf.
      distribution: shares out a layer target; not used for "global".
      min_keep: fewest active weights of a leaf; None is 1 with scope "layer", 0 with "global".

    Raises:
      ValueError: a target below `min_keep` a leaf or below 1, or more weights than int32 counts.
    """
    if min_keep is None:
        min_keep = int(scope == "layer")
    if scope == "global":
        check_countable(shapes)
    if scope == "layer":
        targets = list(_layer_targets(timetable, shapes, distribution, min_keep))
    else:
        targets = [_global_target(event, shapes, min_keep) for event in timetable.events]
    stacked = {
        path: np.array([t[path] for t in targets], np.int32)
        for path in (shapes if scope == "layer" else [""])
    }
    ratios = [event.drop_fraction for event in timetable.events]
    drop = (
        np.array([r.numerator for r in ratios], np.int32),
        np.array([r.denominator for r in ratios], np.int32),
    )
    return Row(stacked if scope == "layer" else stacked[""], drop, min_keep)


def _global_target(event: PlannedEvent, shapes: Shapes, min_keep: int) -> dict[str, int]:
    if event.density is None:
        return {"": HOLD}
    when = f" at step {event.step}"
    return {"": count_together(shapes, event.density, minimum=min_keep, when=when)}


def _layer_targets(
    timetable: Timetable, shapes: Shapes, distribution: Distribution, min_keep: int
) -> Iterator[dict[str, int]]:
    if all(event.density is None for event in timetable.events):
        yield from (dict.fromkeys(shapes, HOLD) for _ in timetable.events)
        return
    density = lowest = timetable.initial_density
    counts = fewest = leaf_counts(distribution, shapes, density, minimum=min_keep)
    for event in timetable.events:
        if event.density is None:
            yield dict.fromkeys(shapes, HOLD)
            continue
        # Pruning adds no weight and growth takes none: no leaf may round the wrong way, or the
        # total would be missed.
        rises, density = event.density > density, event.density
        counts = leaf_counts(
            distribution,
            shapes,
            density,
            minimum=min_keep,
            at_least=counts if rises else fewest if density >= lowest else None,
            at_most=None if rises else counts,
        )
        if density < lowest:
            lowest, fewest = density, counts
        yield counts


def row_at(
    timetable: Timetable, rows: Row, step: int | jax.Array, active: Mapping[str, jax.Array]
) -> Row:
    """Returns the row of the last event at or before `step`, or of the first event; traceable.

    Args:
      timetable: the events; at least one.
      rows: what `event_rows` made of them.
      step: int32[], may be traced.
      active: int32[] by path, active weights before the event: the target if that is held.
    """
    steps = jnp.array([event.step for event in timetable.events], jnp.int32)
    index = jnp.maximum(jnp.searchsorted(steps, jnp.asarray(step, jnp.int32), side="right") - 1, 0)
    numerator, denominator = (jnp.asarray(column)[index] for column in rows.drop)
    now = jnp.stack(list(active.values()))
    # One vector holds all leaves, since small operations by leaf take long to compile.
    if isinstance(rows.target, dict):
        planned = jnp.asarray(np.stack([rows.target[path] for path in active], 1))[index]
        target = dict(zip(active, jnp.where(planned == HOLD, now, planned), strict=True))
    else:
        planned = jnp.asarray(rows.target)[index]
        target = jnp.where(planned == HOLD, now.sum(dtype=jnp.int32), planned)
    return rows._replace(target=target, drop=(numerator, denominator))


def take_fraction(
    count: jax.Array, ratio: tuple[jax.Array, jax.Array], rounding: Rounding
) -> jax.Array:
    """Returns floor or ceil of count * numerator / denominator in exact int32 arithmetic.

    Write count as a*q + b with b < q: the product is a*p + b*p/q, and b*p < q*q < 2**31 cannot
    overflow.

    Args:
      count: int32[...], at least 0.
      ratio: (p, q), int32[], 0 <= p <= q <= 46340.
      rounding: "floor" (RigL) or "ceil" (GraNet, ITOP).

    >>> import jax.numpy as jnp
    >>> half = (jnp.int32(1), jnp.int32(2))
    >>> (
    ...     int(take_fraction(jnp.int32(5), half, "floor")),
    ...     int(take_fraction(jnp.int32(5), half, "ceil")),
    ... )
    (2, 3)
    """
    p, q = ratio
    whole, rest = count // q, count % q
    return whole * p + (rest * p + (q - 1 if rounding == "ceil" else 0)) // q


def check_countable(shapes: Shapes) -> None:
    """Raises a ValueError for more weights than one number can count."""
    size = sum(math.prod(shape) for shape in shapes.values())
    if size >= HOLD:
        raise ValueError(f"{size} weights are too many to count together, at most {HOLD - 1}")
