"""Densities rounded to integer counts, in one place, so that the total is exact."""

import math
from collections.abc import Mapping

from jaxsparse.types import Distribution, Shapes


def total_count(size: int, density: float) -> int:
    """Returns how many of `size` weights are active at `density`: N - floor(s*N + 1e-6), s = 1 - d.

    The 1e-6 absorbs float error: int(10000 * (1 - 0.9)) is 999, this is 1000.

    >>> total_count(10_000, 1 - 0.9), total_count(8, 1 - 0.8), total_count(30, 1 - 0.1)
    (1000, 2, 27)
    """
    return size - math.floor((1.0 - density) * size + 1e-6)


def leaf_counts(
    distribution: Distribution,
    shapes: Shapes,
    density: float,
    *,
    minimum: int = 1,
    at_least: Mapping[str, int] | None = None,
    at_most: Mapping[str, int] | None = None,
) -> dict[str, int]:
    """Returns the number of active weights of every leaf, by largest remainder.

    The total is sum(n_l) - floor(sum((1 - d_l) * n_l) + 1e-6), which for distributions without
    overrides is `total_count(N, density)`; each leaf lies within [min(minimum, size), size]. If a
    leaf gets its minimum though its density gives it less, the others get that much less.

    Args:
      distribution: densities by path.
      shapes: shapes by path.
      density: in (0, 1].
      minimum: fewest active weights of a leaf; a leaf that is overridden to sparsity 1 has none.
        If it is 0, leaves may come out empty, but not all of them.
      at_least: fewest active weights of a leaf, for growth that starts from these counts; None is
        `minimum`. (Rounding alone can ask for one less at a higher density.)
      at_most: most active weights of a leaf, for pruning that starts from these counts; None is the
        leaf's size. (Rounding alone can ask for one more at a lower density.)

    Raises:
      ValueError: a leaf's density is outside [0, 1], or the total is below `minimum` a leaf, or
        below 1; says how high the sparsity can be.

    >>> from jaxsparse.distributions import erk
    >>> leaf_counts(erk(), {"a": (4, 4), "b": (4, 16)}, 0.5)
    {'a': 11, 'b': 29}
    """
    densities = distribution(shapes, density)
    if missing := [path for path in shapes if path not in densities]:
        raise ValueError(f"the distribution gives leaf {missing[0]} no density")
    sizes = {path: math.prod(shape) for path, shape in shapes.items()}
    for path in shapes:
        if not -1e-9 <= densities[path] <= 1.0 + 1e-9:
            raise ValueError(f"leaf {path}: density {densities[path]} must be in [0, 1]")
    ideal = {path: min(max(densities[path], 0.0), 1.0) * sizes[path] for path in shapes}
    total = sum(sizes.values()) - math.floor(sum(sizes[p] - ideal[p] for p in shapes) + 1e-6)
    highest = sizes if at_most is None else at_most
    lowest = {p: min(minimum, highest[p]) if densities[p] > 0 else 0 for p in shapes}
    fewest = sum(lowest.values()) or int(any(ideal.values()))
    total = min(total, sum(highest.values()))
    if total < fewest:
        raise ValueError(
            f"density {density:g} leaves {total} active weights for {len(shapes)} layers, below "
            f"{f'{minimum} a layer' if minimum else '1'}; the sparsity can be at most "
            f"{highest_sparsity(fewest, sum(sizes.values()))}"
        )
    if at_least is not None:
        lowest = {p: max(lowest[p], at_least[p]) for p in shapes}
        total = max(total, sum(lowest.values()))
    return _largest_remainder(ideal, total, lowest, highest)


def count_together(shapes: Shapes, density: float, *, minimum: int = 0, when: str = "") -> int:
    """Returns how many weights of all leaves together are active, `total_count` of their sizes.

    Args:
      shapes: shapes by path, of leaves that compete for one number.
      density: in (0, 1].
      minimum: fewest active weights that each leaf is to have; a smaller leaf has all of its own.
      when: words for the message, such as " at step 10".

    Raises:
      ValueError: fewer than `minimum` a leaf, or than 1; says how high the sparsity can be.

    >>> count_together({"a": (4, 4), "b": (4, 16)}, 0.5)
    40
    """
    sizes = [math.prod(shape) for shape in shapes.values()]
    count = total_count(sum(sizes), density)
    fewest = max(sum(min(minimum, size) for size in sizes), 1)
    if count < fewest:
        raise ValueError(
            f"the target of {count} active weights of {sum(sizes)}{when} is below "
            + (f"{minimum} for each of {len(shapes)} layers" if minimum else "1")
            + f"; the sparsity can be at most {highest_sparsity(fewest, sum(sizes))}"
        )
    return count


def highest_sparsity(fewest: int, size: int) -> str:
    """Writes the sparsity that leaves `fewest` of `size` weights, for messages.

    It is rounded down, so that the sparsity which a message recommends works:

    >>> highest_sparsity(1, 10), highest_sparsity(54, 25_502_912)
    ('0.9', '0.999997882')
    """
    return f"{math.floor((1 - fewest / size) * 1e9 + 1e-3) / 1e9:.9g}"


def _largest_remainder(
    ideal: dict[str, float], total: int, lowest: dict[str, int], highest: Mapping[str, int]
) -> dict[str, int]:
    """Integers nearest to `ideal` that add up to `total`, each within its bounds."""
    counts = {p: min(max(math.floor(x + 1e-9), lowest[p]), highest[p]) for p, x in ideal.items()}
    while (missing := total - sum(counts.values())) != 0:
        step = 1 if missing > 0 else -1
        room = [
            p for p in counts if (counts[p] < highest[p] if step > 0 else counts[p] > lowest[p])
        ]
        # The leaf furthest from its ideal count goes first; the sort is stable, so ties go to the
        # first leaf. A leaf moves by one a round; several rounds are needed only if bounds bind.
        room.sort(key=lambda p: step * (counts[p] - ideal[p]))
        for path in room[: abs(missing)]:
            counts[path] += step
    return counts
