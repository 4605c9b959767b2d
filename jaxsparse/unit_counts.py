"""How many weights a method asks of each leaf if patterns count in groups or fix densities."""

import contextlib
import inspect
import math
from collections.abc import Iterator, Mapping
from typing import Any

from jaxsparse.checks import check_whole
from jaxsparse.distributions import erk
from jaxsparse.event_rows import check_countable, event_rows
from jaxsparse.paths import listed
from jaxsparse.rounded_counts import count_together, leaf_counts
from jaxsparse.timetable import Timetable
from jaxsparse.types import Distribution, Groups, OptionError, Row, Scope, Shapes
from jaxsparse.units import GroupsByPath, fixed, group_size, n_and_m, unit_shapes, whole

SLACK = 0.01
"""How far a density may be from the n/m of N:M, as a share of it: 0.333 passes for 1:3."""


def initial_counts(
    distribution: Distribution,
    shapes: Shapes,
    groups: GroupsByPath,
    density: float | None,
    min_keep: int | None = None,
) -> dict[str, int]:
    """Returns the active units of every leaf at the start; without groups it is `leaf_counts`.

    Leaves of N:M have n/m of their entries and are set aside, see `in_units`. The others share the
    density among themselves, at least `min_keep` weights each; None is one unit each. The density
    may be None if there are no others.

    Raises:
      ValueError: as `leaf_counts`; or every leaf is of N:M and the density is not theirs.
    """
    rest = {path: shape for path, shape in shapes.items() if path not in fixed(groups)}
    counts = {path: _fixed_count(shapes[path], g) for path, g in fixed(groups).items()}
    if rest and density is not None:
        units, note = _units_of(min_keep, shapes, groups)
        with _units_said(groups, note):
            of_units = in_units(distribution, shapes, groups)
            least = 1 if units is None else units
            counts |= leaf_counts(of_units, unit_shapes(rest, groups), density, minimum=least)
    elif density is not None:
        _check_density(density, counts, shapes, groups)
    return {path: counts[path] for path in shapes}


def in_units(distribution: Distribution, shapes: Shapes, groups: GroupsByPath) -> Distribution:
    """Returns the distribution for leaves counted in units, which sees the leaves' own shapes.

    Leaves of N:M are passed on as empty, with size 0 along the last axis: they take no share, but
    the regexes of `with_overrides` and `stacked` still find them.
    """
    own = {p: (*s[:-1], 0) if p in fixed(groups) else s for p, s in shapes.items()}
    return lambda shapes, density: distribution(own, density)


def check_sizes(
    timetable: Timetable,
    shapes: Shapes,
    groups: GroupsByPath,
    *,
    scope: Scope,
    min_keep: int | None,
) -> None:
    """Refuses leaves that compete, or have to keep a minimum, and whose units differ in size.

    Raises:
      ValueError: names two such leaves.
    """
    changes = any(event.density is not None for event in timetable.events)
    _check_unit_sizes(shapes, groups, scope=scope if changes else "layer", min_keep=min_keep)


def one_shot_row(
    shapes: Shapes,
    groups: GroupsByPath,
    density: float | None,
    *,
    scope: Scope,
    distribution: Distribution | None,
    min_keep: int | None,
) -> Row:
    """Returns the row of one selection from all weights, in Python integers.

    Leaves of N:M are set aside, as in `initial_counts`. A target over all leaves together counts
    the others, whose units must have one size; a target by leaf counts the units of every leaf.

    Args:
      shapes: shapes of the prunable leaves, by path.
      groups: by path, of the leaves that have a pattern.
      density: in (0, 1], of the leaves without N:M; None if there are none.
      scope: "global" or "layer".
      distribution: of scope "layer"; None is `erk()`.
      min_keep: fewest active weights of a leaf; None is one unit with scope "layer", 0 with
        "global".

    Raises:
      ValueError: an option outside its range, a distribution with scope "global", which has no use
        for it, or a density that leaves too few weights.
    """
    check_options(scope, distribution, min_keep)
    if scope == "global" and distribution is not None:
        wrong = "ranks all leaves together and has no use for distribution="
        raise OptionError("scope", scope, wrong, "take scope='layer'")
    rest = {path: shape for path, shape in shapes.items() if path not in fixed(groups)}
    _check_unit_sizes(rest, groups, scope=scope, min_keep=min_keep)
    if density is None and rest:
        raise ValueError(
            f"leaf {next(iter(rest))} has no N:M pattern, so its sparsity= must be given"
        )
    if scope == "layer" or not rest:
        counts = initial_counts(distribution or erk(), shapes, groups, density, min_keep)
        return Row(counts, (0, 1), groups=groups)
    assert density is not None
    check_countable(rest)
    units, note = _units_of(min_keep, rest, groups)
    with _units_said(groups, note):
        count = count_together(unit_shapes(rest, groups), density, minimum=units or 0)
    return Row(count, (0, 1), units or 0, groups)


def check_options(scope: str, distribution: Distribution | None, min_keep: int | None) -> None:
    """Raises a ValueError for an invalid scope, distribution or minimum."""
    if scope not in ("global", "layer"):
        raise OptionError("scope", scope, "must be 'global' or 'layer'")
    if distribution is not None and not _is_distribution(distribution):
        said = getattr(distribution, "__name__", repr(distribution))
        raise ValueError(
            f"distribution {said} must be a function such as erk(), of (shapes, density)"
        )
    if min_keep is not None:
        check_whole("min_keep", min_keep, 0)


def _is_distribution(distribution: Any) -> bool:
    """Whether it can be called with shapes and a density: `erk()` can, `erk` itself cannot."""
    try:
        inspect.signature(distribution).bind({}, 1.0)
    except TypeError:
        return False
    except ValueError:  # a callable without a signature
        return True
    return True


def _check_unit_sizes(
    shapes: Shapes, groups: GroupsByPath, *, scope: Scope, min_keep: int | None
) -> None:
    sizes = {path: group_size(groups.get(path)) for path in shapes}
    together, at_least = scope == "global", (min_keep or 0) > 1
    if len(set(sizes.values())) > 1 and (together or at_least):
        a = next(iter(sizes))
        b = next(path for path in sizes if sizes[path] != sizes[a])
        wrong = (
            f"needs groups of one size, but those of {a} have {sizes[a]} entries and those of {b} "
            f"{sizes[b]}"
        )
        if together:
            raise OptionError("scope", scope, wrong, "take scope='layer'")
        raise OptionError("min_keep", min_keep, wrong, "leave min_keep out")


def rows_in_units(
    timetable: Timetable,
    shapes: Shapes,
    groups: GroupsByPath,
    *,
    scope: Scope,
    distribution: Distribution,
    min_keep: int | None,
) -> Row:
    """Returns `event_rows` whose targets and `min_keep` count units. `check_sizes` comes first.

    Raises:
      ValueError: as `event_rows`.
    """
    units, note = _units_of(min_keep, shapes, groups)
    with _units_said(groups, note):
        return event_rows(
            timetable,
            unit_shapes(shapes, groups),
            scope=scope,
            distribution=in_units(distribution, shapes, groups),
            min_keep=units,
        )._replace(groups=groups)


def _units_of(min_keep: int | None, shapes: Shapes, groups: GroupsByPath) -> tuple[int | None, str]:
    """`min_keep` in units, and the words of a message about it."""
    if not min_keep:
        return min_keep, ""
    size = max([1, *(group_size(groups.get(path)) for path in shapes)])
    units = -(-min_keep // size)
    return units, f"; a minimum of {min_keep} weights is {units} of them"


@contextlib.contextmanager
def _units_said(groups: GroupsByPath, more: str = "") -> Iterator[None]:
    """Says in a message about "weights" that each of them is a whole group."""
    try:
        yield
    except ValueError as error:
        if not whole(groups):
            raise
        sizes = [f"{g.pattern} of {group_size(g)} entries" for g in whole(groups).values()]
        one = listed(dict.fromkeys(sizes), most=3)
        raise ValueError(f"{error} (a weight is here one group: {one}{more})") from None


def _fixed_count(shape: tuple[int, ...], groups: Groups) -> int:
    n, m = n_and_m(groups)
    return math.prod(shape) * n // m


def _check_density(
    density: float, counts: Mapping[str, int], shapes: Shapes, groups: GroupsByPath
) -> None:
    share = sum(counts.values()) / max(sum(math.prod(shape) for shape in shapes.values()), 1)
    if abs(density - share) > SLACK * share and sum(counts.values()):
        names = ", ".join(dict.fromkeys(g.pattern for g in groups.values()))
        raise ValueError(
            f"sparsity {1 - density:.6g} is not possible: every prunable leaf is {names}, which is "
            f"sparsity {1 - share:.6g}"
        )
