"""How many weights the rounds of iterative pruning leave: rates, exclusions, exact counts."""

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Literal, NamedTuple, TypeAlias, TypedDict, Unpack

from jaxsparse.checks import check_in, check_whole
from jaxsparse.paths import first_matches, leaf_shapes, prunable_leaves
from jaxsparse.pattern_rules import check_pattern_rules, groups_of
from jaxsparse.patterns import Pattern, PatternRules
from jaxsparse.rounded_counts import total_count
from jaxsparse.types import Groups, OptionError, PyTree, Rules, Scope, Shapes
from jaxsparse.unit_counts import check_options
from jaxsparse.units import fixed, group_size, unit_shapes

Rates: TypeAlias = Sequence[tuple[str, float]]
Quota: TypeAlias = Literal["pruned", "all"]


class SurvivorOptions(TypedDict, total=False):
    """The options of `prune_survivors` and `survivor_counts`.

    Attributes:
      scope: "global", the default, compares weights over all layers; a layer may lose its last one,
        see `min_keep`. "layer" prunes the rate of every layer.
      rates: ordered (path regex, rate) pairs, the rate in [0, 1): for each leaf the first regex
        found in its path (`re.search`) decides, and others have the rate of all. 0 excludes a leaf:
        it keeps its masks, and still counts in the density. Other rates need scope "layer". The
        original MNIST code halves the rate of the output layer: `rates=[("output", 0.1)]`.
      quota: how excluded leaves count with scope "global". "pruned", the default, takes the rate of
        the weights that may go. "all" takes the rate of all survivors, excluded ones too, from the
        others, as open_lth does.
      min_keep: fewest weights that scope "global" leaves to each leaf; the others make up for it.
        0, the default, sets no limit.
      pattern: a structure of whole groups such as `block((4, 4))` or `channels()`, or rules as in
        `with_pattern`: its groups are scored by their sums, counted, and removed as a whole. N:M
        fixes the density, and is refused.
      prunable: as in `prunable_paths`; other leaves are all True and not counted.
    """

    scope: Scope
    rates: Rates
    quota: Quota
    min_keep: int
    pattern: Pattern | PatternRules | None
    prunable: Rules | None


class Survivors(NamedTuple):
    """The weights that a round leaves, of `size` prunable ones; with a pattern, its groups.

    Attributes:
      round: 0 is the dense network.
      num_active: number of active weights of all prunable leaves.
      size: number of prunable weights.
      layers: active weights by path with scope "layer"; None with "global", where the trained
        weights decide.
    """

    round: int
    num_active: int
    size: int
    layers: dict[str, int] | None

    @property
    def density(self) -> float:
        """Active / prunable, in (0, 1]."""
        return self.num_active / self.size


def survivor_counts(
    params: PyTree, rate: float, rounds: int, **options: Unpack[SurvivorOptions]
) -> list[Survivors]:
    """Returns what each of the rounds leaves, before anything is trained.

    After r rounds n - floor((1 - (1 - rate)^r) n + 1e-6) of n weights are active: over all layers
    that are pruned together, or in each layer.

    Args:
      params: as in `prune_survivors`; shapes are enough.
      rate: as there.
      rounds: number of rounds, at least 0.
      **options: as in `SurvivorOptions`.

    Returns:
      `rounds + 1` rows, the dense network first.

    Raises:
      ValueError: as `prune_survivors`; or a round that would remove nothing, or leave fewer than
        one weight (or `min_keep`) a leaf. It says how many rounds there can be.

    >>> import jax.numpy as jnp
    >>> [row.num_active for row in survivor_counts({"kernel": jnp.zeros((100, 100))}, 0.2, 4)]
    [10000, 8000, 6400, 5120, 4096]
    """
    shapes = leaf_shapes(prunable_leaves(params, options.get("prunable")))
    rule = rule_of(rate, shapes, options)
    check_whole("rounds", rounds, 0)
    rows = [_row(rule, 0, None)]
    for r in range(1, rounds + 1):
        target = target_of(rule, r)
        row = _row(rule, r, target)
        total = row.num_active
        fewest = max(rule.min_keep, 1) * len(rule.free)
        left = total if isinstance(target, dict) else target
        if left < fewest or total == rows[-1].num_active:
            wrong = (
                f"is more than rate {rate:g} allows: round {r} would leave {total:,} of "
                f"{row.size:,} weights for {len(rule.sizes)} layers, after {rows[-1].num_active:,}"
            )
            raise OptionError("rounds", rounds, wrong, f"take at most {r - 1}")
        rows.append(row)
    return rows


class Rule(NamedTuple):
    """The checked options of a round, hashable.

    Attributes:
      sizes: (path, number of units) of every prunable leaf, in the tree's order.
      rates: of each leaf, in the same order; 0 excludes it.
      groups: (path, groups) of the leaves that have a pattern.
      scope: "global" or "layer".
      rate: of all leaves together.
      of_all: whether scope "global" takes the rate of excluded leaves too.
      min_keep: fewest units that scope "global" leaves to each leaf.
    """

    sizes: tuple[tuple[str, int], ...]
    rates: tuple[Fraction, ...]
    groups: tuple[tuple[str, Groups], ...]
    scope: str
    rate: Fraction
    of_all: bool
    min_keep: int

    @property
    def free(self) -> list[str]:
        """The leaves that are pruned."""
        return [path for (path, _), rate in zip(self.sizes, self.rates, strict=True) if rate]


def rule_of(rate: float, shapes: Shapes, options: SurvivorOptions) -> Rule:
    """Returns the options, checked, for leaves of these shapes; raises as `prune_survivors`."""
    for name in options:
        if name not in SurvivorOptions.__annotations__:
            raise TypeError(f"prune_survivors() got an unexpected keyword argument {name!r}")
    rate = check_in("rate", rate, "(0, 1)")
    scope, min_keep = options.get("scope", "global"), options.get("min_keep", 0)
    check_options(scope, None, min_keep)
    quota = options.get("quota", "pruned")
    if quota not in ("pruned", "all"):
        raise OptionError("quota", quota, "must be 'pruned' or 'all'")
    if scope == "layer" and (min_keep or quota == "all"):
        name = "min_keep" if min_keep else "quota"
        raise OptionError(name, options.get(name), "needs scope 'global'")
    rates = _rates(rate, shapes, options.get("rates", ()), scope)
    pattern = options.get("pattern")
    groups = groups_of(() if pattern is None else check_pattern_rules(pattern), shapes)
    for path, g in fixed(groups).items():
        raise OptionError("pattern", g.pattern, f"fixes the density of {path}, nothing can go")
    among = [path for path in shapes if rates[path] or quota == "all"]
    apart = {group_size(groups.get(path)): path for path in reversed(among)}
    if scope == "global" and len(apart) > 1:
        said = " and ".join(f"those of {path} {size}" for size, path in apart.items())
        wrong = f"needs groups of one size, but they have entries: {said}"
        raise OptionError("scope", scope, wrong, "take scope='layer'")
    sizes = {path: math.prod(shape) for path, shape in unit_shapes(shapes, groups).items()}
    return Rule(
        tuple(sizes.items()),
        tuple(_exact(rates[path]) for path in shapes),
        tuple(groups.items()),
        scope,
        _exact(rate),
        quota == "all",
        min_keep,
    )


def _exact(rate: float) -> Fraction:
    """The rate as a fraction that `take_fraction` can multiply by in int32."""
    return Fraction(rate).limit_denominator(46_340)


def _rates(rate: float, shapes: Shapes, rules: Rates, scope: str) -> dict[str, float]:
    """The rate of every leaf."""
    try:
        pairs = [(str(regex), float(own)) for regex, own in rules]
    except (TypeError, ValueError):
        raise ValueError(f"rates {rules!r} must be (path regex, rate) pairs") from None
    for regex, own in pairs:
        if not 0 <= own < 1:
            raise OptionError("rates", f"{regex}={own}", "must have a rate in [0, 1)")
        if own and scope == "global":
            wrong = f"ranks all leaves together, and {regex!r} has a rate of {own:g}"
            raise OptionError("scope", scope, wrong, "take scope='layer', or 0 to exclude a leaf")
    first = first_matches([regex for regex, _ in pairs], shapes, name="rates")
    rates = {path: rate if i is None else pairs[i][1] for path, i in first.items()}
    if not any(rates.values()):
        raise ValueError(f"rates {rules!r} exclude every prunable leaf")
    return rates


def target_of(rule: Rule, rounds: int) -> int | dict[str, int]:
    """Returns the units that rounds leave: of every leaf, or of all that are pruned together."""
    if rule.scope == "layer":
        rates = zip(rule.sizes, rule.rates, strict=True)
        return {path: _left(size, rate, rounds) for (path, size), rate in rates}
    free, sizes = set(rule.free), dict(rule.sizes)
    excluded = sum(size for path, size in sizes.items() if path not in free)
    total = sum(sizes.values())
    if not rule.of_all:
        return _left(total - excluded, rule.rate, rounds)
    return _not_below_0(_left(total, rule.rate, rounds) - excluded, excluded)


def _left(size: int, rate: Fraction, rounds: int) -> int:
    return total_count(size, float((1 - rate) ** rounds))


def _not_below_0(target: int, excluded: int) -> int:
    if target < 0:
        wrong = f"takes the rate of {excluded:,} excluded weights from the others, which are fewer"
        raise OptionError("quota", "all", wrong, "take quota='pruned'")
    return target


def _row(rule: Rule, rounds: int, target: int | dict[str, int] | None) -> Survivors:
    """What a round leaves, in weights; without a target, the dense network."""
    entries, free = {path: group_size(g) for path, g in rule.groups}, set(rule.free)
    full = {path: size * entries.get(path, 1) for path, size in rule.sizes}
    total = sum(full.values())
    if rule.scope == "layer":
        layers = full
        if isinstance(target, dict):
            layers = {path: count * entries.get(path, 1) for path, count in target.items()}
        return Survivors(rounds, sum(layers.values()), total, layers)
    if target is None:
        return Survivors(rounds, total, total, None)
    assert isinstance(target, int)
    excluded = sum(size for path, size in full.items() if path not in free)
    return Survivors(rounds, excluded + target * entries.get(rule.free[0], 1), total, None)
