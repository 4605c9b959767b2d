"""Reads and checks a configuration of jaxpruner, whose keys have their meaning there."""

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jaxsparse.checks import check_in, check_whole
from jaxsparse.patterns import Pattern, channels, n_of_m
from jaxsparse.types import Groups, OptionError

DYNAMIC = ("set", "rigl")
PRUNING = ("magnitude", "random", "saliency", "global_magnitude", "global_saliency")
_ALGORITHMS = ("no_prune", *PRUNING, "static_sparse", *DYNAMIC)


class Config(NamedTuple):
    """The keys that are served, with jaxpruner's names and defaults.

    Attributes:
      algorithm: one of `all_algorithm_names()`.
      sparsity: in [0, 1), of the prunable leaves; N:M ignores it.
      dist_type: "erk" or "uniform"; "global_..." ignores it.
      update_freq: calls of the optimizer between mask updates.
      update_start_step: the first call that may update masks, counted from 0; if it is None, no
        call does.
      update_end_step: the last one; if it is also the first, there is one update.
      drop_fraction: of "set" and "rigl" at call 0, on a cosine to 0 at `update_end_step`.
      skip_gradients: leave out the optimizer step in a call that changes masks.
      rng_seed: an integer or a key. It has a default, as in jaxpruner: two runs that give no seed
        draw the same masks.
      pattern: the structure that `sparsity_type` names; None is unstructured.
      fixed_density: n/m of N:M, else None.
      filter_fn: (key, leaf) -> whether the leaf is pruned, with the keys on its path as a tuple;
        None takes all leaves of two axes and more.
      custom_sparsity_map: sparsity by path, for single leaves.
      use_normalization: divide the scores of each leaf by their norm before leaves are compared.
      normalization_eps: added to that norm.
    """

    algorithm: str
    sparsity: float = 0.0
    dist_type: str | None = None
    update_freq: int | None = None
    update_start_step: int | None = None
    update_end_step: int | None = None
    drop_fraction: float = 0.1
    skip_gradients: bool = False
    rng_seed: Any = 8
    pattern: Pattern | None = None
    fixed_density: float | None = None
    filter_fn: Callable[[tuple[str, ...], Any], bool] | None = None
    custom_sparsity_map: Mapping[str, float] = {}
    use_normalization: bool = True
    normalization_eps: float = 1e-8

    @property
    def is_global(self) -> bool:
        """Whether all leaves are compared with each other."""
        return self.algorithm.startswith("global_")

    @property
    def update_steps(self) -> list[int]:
        """The calls of the optimizer that update masks, counted from 0."""
        start, end = self.update_start_step, self.update_end_step
        if start is None or end is None:
            return []
        if start == end:
            return [end]
        assert self.update_freq is not None
        return [step for step in range(start, end + 1) if step % self.update_freq == 0]


def all_algorithm_names() -> tuple[str, ...]:
    """Returns the algorithms of jaxpruner's that are served."""
    return _ALGORITHMS


def read_config(config: Any) -> Config:
    """Returns the configuration, checked; keys that are None count as missing.

    Args:
      config: a mapping, or an object with attributes.

    Raises:
      ValueError: an algorithm or key that is not served, or a value out of range.
    """
    given = {key: value for key, value in _items(config).items() if value is not None}
    algorithm = given.get("algorithm")
    if algorithm not in _ALGORITHMS:
        advice = (
            "straight-through estimators keep dense weights and have no method here"
            if str(algorithm).endswith("_ste")
            else ""
        )
        wrong = f"must be one of {', '.join(_ALGORITHMS)}"
        raise OptionError("algorithm", algorithm, wrong, advice)
    if algorithm == "no_prune":
        return Config(algorithm)
    _check_keys(given)
    pattern, fixed_density = _pattern(given.pop("sparsity_type", None))
    by_path = {_path(key): x for key, x in dict(given.pop("custom_sparsity_map", {})).items()}
    options: dict[str, Any] = {"skip_gradients": algorithm in DYNAMIC}
    options |= {key: value for key, value in given.items() if key in Config._fields}
    read = Config(**options)
    read = read._replace(
        pattern=pattern,
        fixed_density=fixed_density,
        custom_sparsity_map={path: float(x) for path, x in by_path.items()},
    )
    _check_values(read)
    _check_steps(read)
    return read


def _items(config: Any) -> dict[str, Any]:
    """The keys and values of a ConfigDict, which has `items`, or a namespace, with `__dict__`."""
    if hasattr(config, "items"):
        return dict(config.items())
    if hasattr(config, "__dict__"):
        return dict(vars(config))
    raise ValueError(f"config {config!r} must be a mapping or have attributes")


def _check_keys(given: dict[str, Any]) -> None:
    only = {"is_sparse_gradients": True, "use_packed_masks": False}
    why = {
        "is_sparse_gradients": "the optimizer never sees the gradient of an inactive weight",
        "use_packed_masks": "masks are bool, a byte a weight",
    }
    served = {*Config._fields, "sparsity_type", *only} - {"pattern", "fixed_density"}
    for key, value in given.items():
        if key not in served:
            raise OptionError(key, value, "is not served", f"there are {', '.join(sorted(served))}")
        if key in only and bool(value) != only[key]:
            raise OptionError(key, value, f"is not served: {why[key]}", "leave it out")


def _check_values(config: Config) -> None:
    check_in("sparsity", config.sparsity, "[0, 1)")
    check_in("drop_fraction", config.drop_fraction, "[0, 1]")
    if not config.is_global and config.dist_type not in ("erk", "uniform"):
        raise OptionError("dist_type", config.dist_type, "must be 'erk' or 'uniform'")
    if config.is_global and config.pattern is not None:
        wrong = f"does not go with {config.algorithm}, as in jaxpruner"
        raise OptionError("sparsity_type", config.pattern.name, wrong)
    if config.is_global and any(config.custom_sparsity_map.values()):
        wrong = f"does not go with {config.algorithm}, but for leaves that stay dense, at 0.0"
        raise OptionError("custom_sparsity_map", dict(config.custom_sparsity_map), wrong)


def _check_steps(config: Config) -> None:
    start, end, freq = config.update_start_step, config.update_end_step, config.update_freq
    if start is not None:
        check_whole("update_start_step", start, 0)
        check_whole("update_end_step", end, start)
        if start != end:
            check_whole("update_freq", freq, 1)
        if not config.update_steps:
            wrong = f"has no multiple from update_start_step {start} to update_end_step {end}"
            raise OptionError("update_freq", freq, wrong)
    if config.algorithm in DYNAMIC and (start is None or start == end):
        wrong = "would never change its masks without update_start_step below update_end_step"
        raise OptionError("algorithm", config.algorithm, wrong, "static_sparse keeps them")


def _pattern(sparsity_type: Any) -> tuple[Pattern | None, float | None]:
    """The pattern, and the density that N:M fixes."""
    if sparsity_type is None:
        return None, None
    match = re.fullmatch(r"(nm|block|channel)_\s*(-?\d+)\s*(?:,\s*(\d+))?", str(sparsity_type))
    if match is None or (match[1] == "channel") != (match[3] is None):
        wrong = "must be such as 'nm_2,4', 'block_4,4' or 'channel_-1'"
        raise OptionError("sparsity_type", sparsity_type, wrong)
    if match[1] == "channel":
        return channels(int(match[2])), None
    first, second = int(match[2]), int(match[3])
    if match[1] == "nm":
        return n_of_m(first, second, axis=-1), first / second
    return _block(first, second), None


def _block(rows: int, columns: int) -> Pattern:
    """Blocks along the first two axes and over all others, as jaxpruner cuts them.

    For a matrix this is `jaxsparse.block`, which sees a convolution as its im2col matrix instead.
    """
    if min(rows, columns) < 1:
        raise OptionError(
            "sparsity_type", f"block_{rows},{columns}", "must have sides of 1 or more"
        )

    def cut(shape: tuple[int, ...]) -> Groups:
        if len(shape) < 2:
            raise ValueError("it has fewer than 2 axes")
        height, width, *rest = shape
        if height % rows or width % columns:
            raise ValueError(f"blocks do not divide its first axes {height} x {width}")
        split = (height // rows, rows, width // columns, columns, *rest)
        return Groups(f"{rows}x{columns}", split, (1, 3, *range(4, len(split))))

    return Pattern(f"{rows}x{columns}", cut)


def _path(key: Any) -> str:
    return key if isinstance(key, str) else "/".join(map(str, key))
