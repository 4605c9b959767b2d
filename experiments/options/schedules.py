"""The table from `--schedule` names to methods, with intervals that suit a run of any length.

Published intervals belong to runs of published length. Here they are shares of the run: 1000 of
56,320 steps for GraNet, which makes 56 events, and 4000 and 1500 of 88,000 steps for RigL-ITOP and
SET-ITOP. RigL's own 100 steps are kept unless the run would have under 20 events. The 100 steps of
density cycles, which every method but dense takes, are kept unless a cycle would have under 20.

The names of AT_INIT choose masks by scores of the initial weights and keep them: the scores are in
`experiments/training/scoring.py`. The same masks start any other method by --init_masks.
"""

import contextlib
import functools
import itertools
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jaxsparse
from experiments.options.cli import flag_error, nearest
from experiments.options.flags import DEFAULTS
from experiments.options.gsm import gsm
from experiments.options.init_masks import scoring_of, without_scoring
from experiments.training.criteria import CRITERIA, Scoring
from jaxsparse import Method, scores
from jaxsparse.checks import check_in
from jaxsparse.patterns import PatternRules
from jaxsparse.plan import Plan
from jaxsparse.schedules import cycle_ends
from jaxsparse.timetable import Timetable, check_steps
from jaxsparse.types import Distribution, OptionError, Scope


class Entry(NamedTuple):
    """One method.

    Attributes:
      factory: makes it.
      interval: maps the number of steps to the update interval; None for a method without events.
      options: the flags that it takes besides --sparsity.
      num_cycles: number of density cycles without --cycles. If it is not 0, the factory itself
        takes the arguments of cycles.
    """

    factory: Callable[..., Method]
    interval: Callable[[int], int] | None
    options: tuple[str, ...] = ()
    num_cycles: int = 0


def _share(interval: int, published_steps: int) -> Callable[[int], int]:
    return lambda steps: max(round(steps * interval / published_steps), 1)


_granet_interval = _share(1000, 56_320)
_rigl_interval = lambda steps: max(min(100, steps // 20), 1)

# Flags that need --cycles, and the argument of `with_cycles` that each gives.
_CYCLES = {
    "cycle_multiplier": "multiplier",
    "cycle_share": "cycle_steps",  # as a share of training
    "cycle_growth": "growth",
    "cycle_shape": "shape",
    "cycle_interval": "cycle_interval",
}
_LAYERS = ("distribution", "dense_layers", "min_keep", "pattern", "pattern_layers")
_SHARES = (*_LAYERS, "cycles", *_CYCLES)
_GRADUAL = ("update_interval", "start_step", "stop_step", "scope", *_SHARES)
_DROPS = ("drop_fraction",)
_RIGL = ("update_interval", "start_step", "stop_step", *_SHARES, *_DROPS)
_ITOP = ("update_interval", "start_step", *_SHARES, *_DROPS)

METHODS: dict[str, Entry] = {
    "dense": Entry(jaxsparse.dense, None),
    "static": Entry(jaxsparse.static, None, _SHARES),
    "gmp": Entry(jaxsparse.gmp, _granet_interval, (*_GRADUAL, "initial_sparsity")),
    "set": Entry(jaxsparse.set_, _rigl_interval, _RIGL),
    "rigl": Entry(jaxsparse.rigl, _rigl_interval, _RIGL),
    "set_itop": Entry(jaxsparse.set_itop, _share(1500, 88_000), _ITOP),
    "rigl_itop": Entry(jaxsparse.rigl_itop, _share(4000, 88_000), _ITOP),
    "snfs": Entry(jaxsparse.snfs, _rigl_interval, (*_RIGL, "redistribute", "grow")),
    "granet": Entry(jaxsparse.granet, _granet_interval, (*_GRADUAL, *_DROPS)),
    "granet_st": Entry(
        jaxsparse.granet_st, _granet_interval, (*_GRADUAL, *_DROPS, "initial_sparsity")
    ),
    "east": Entry(jaxsparse.east, _share(4000, 88_000), _ITOP, num_cycles=2),
    "gsm": Entry(gsm, None, ("min_keep",)),
}


def _kept(
    name: str, *, total_steps: int, sparsity: float, scope: Scope = "global", **layers: Any
) -> Method:
    """Masks that are kept; with cycles, weights compete as they did for the masks."""
    density = 1.0 - check_in("sparsity", sparsity, "[0, 1)")
    (total_steps,) = check_steps(total_steps=total_steps)
    return jaxsparse.compose(name, [], Timetable(total_steps, (), density), scope=scope, **layers)


AT_INIT: dict[str, Entry] = {
    name: Entry(functools.partial(_kept, name), None, (*_SHARES, "scope")) for name in CRITERIA
}

SCHEDULES: dict[str, Entry] = METHODS | AT_INIT
"""All names of `--schedule`."""

GROW = {"gradient": scores.gradient, "random": scores.random}

DISTRIBUTIONS = {
    "erk": jaxsparse.erk,
    "erdos_renyi": jaxsparse.erdos_renyi,
    "uniform": jaxsparse.uniform,
}


def make_method(schedule: str, *, sparsity: float, steps: int, **options: Any) -> Method:
    """Makes the method that `--schedule` names.

    Args:
      schedule: a name in SCHEDULES.
      sparsity: final sparsity in [0, 1); "dense" has none and ignores it.
      steps: length of the run, at least 1.
      **options: values of flags; None means the method's own default.

    Raises:
      ValueError: the name is unknown (the nearest one is named), the method does not take an
        option, or a value is out of its range.
    """
    with said_in_flags():
        method = _make_method(schedule, sparsity, steps, options)
        scoring_of(schedule, method, options)
        return method


def make_scoring(schedule: str, method: Method, **options: Any) -> Scoring | None:
    """Returns how scores choose the masks that a method starts with; None if they do not.

    Args:
      schedule: a name in SCHEDULES.
      method: what `make_method` returned for it.
      **options: as `make_method` had them.

    Raises:
      ValueError: a flag of scores without scores, or one that they do not take.
    """
    with said_in_flags():
        return scoring_of(schedule, method, options)


def _make_method(schedule: str, sparsity: float, steps: int, options: dict[str, Any]) -> Method:
    entry = SCHEDULES[nearest(schedule, SCHEDULES, kind="schedule")]
    given = without_scoring(schedule, entry.options, options)
    for name in given:
        if name not in entry.options:
            takes = ", ".join(f"--{option}" for option in entry.options) or "no options"
            raise ValueError(f"--{name} is no option of {schedule}, which takes {takes}")
    given |= _functions(schedule, given)
    if entry.interval is not None:
        given.setdefault("update_interval", entry.interval(steps))
    if schedule != "dense":
        given["sparsity"] = sparsity
    pattern = pattern_of(given.pop("pattern", None), given.pop("pattern_layers", None))
    cycles = _cycles(schedule, steps, given)
    if entry.num_cycles:
        method = entry.factory(total_steps=steps, **given, **cycles)
    else:
        method = entry.factory(total_steps=steps, **given)
        if cycles["num_cycles"]:
            method = jaxsparse.with_cycles(method, **cycles)
    if pattern is not None:
        method = jaxsparse.with_pattern(method, pattern)
    if entry.interval is not None and not method.timetable.events:
        raise ValueError(
            f"{schedule} has no mask update within {steps} steps; lower --update_interval="
            f"{given['update_interval']}"
        )
    return method


# Names of the library that differ from those of the flags.
_FLAGS = {
    "total_steps": "steps",
    "num_cycles": "cycles",
    **{argument: flag for flag, argument in _CYCLES.items()},
    "num_per_class": "score_per_class",
    "num_rounds": "score_rounds",
    "override": "dense_layers",
    "pattern rule": "pattern_layers",
}
# Option of the library to advice in terms of flags.
_ADVICE = {
    "pattern": "--pattern_layers=REGEX says which layers shall have it, such as "
    "--pattern_layers='^stage' in a ResNet",
    "scope": "take --scope=layer",
    "min_keep": "leave --min_keep out",
}


@contextlib.contextmanager
def said_in_flags() -> Iterator[None]:
    """Turns the library's OptionError into a ValueError about the flag, with advice for flags."""
    try:
        yield
    except OptionError as error:
        advice = error.advice and _ADVICE.get(error.option, error.advice)
        flag = _FLAGS.get(error.option, error.option)
        raise ValueError(flag_error(flag, error.value, error.wrong, advice)) from None


def plan_of(method: Method, *args: Any, **options: Any) -> Plan:
    """Returns `method.plan(*args, **options)`, with errors about flags.

    Raises:
      ValueError: the method cannot have these options with this network.
    """
    with said_in_flags():
        return method.plan(*args, **options)


def pattern_of(pattern: str | None, layers: str | None) -> PatternRules | None:
    """Returns the rules that --pattern and --pattern_layers ask for.

    Args:
      pattern: n:m, ROWSxCOLUMNS, channels or channels(AXIS); None for no pattern.
      layers: regular expression for the paths of the layers; None for all layers.

    Returns:
      The rules; None without a pattern.

    Raises:
      ValueError: the pattern is something else, or layers are named without a pattern.

    >>> [(regex, chosen.name) for regex, chosen in pattern_of("2:4", "block1")]
    [('block1', '2:4')]
    """
    if pattern is None:
        if layers is not None:
            raise ValueError(f"--pattern_layers={layers} needs --pattern")
        return None
    if numbers := re.fullmatch(r"(\d+):(\d+)", pattern):
        chosen = jaxsparse.n_of_m(*map(int, numbers.groups()))
    elif numbers := re.fullmatch(r"(\d+)x(\d+)", pattern):
        rows, columns = map(int, numbers.groups())
        chosen = jaxsparse.block((rows, columns))
    elif numbers := re.fullmatch(r"channels(?:\((-?\d+)\))?", pattern):
        chosen = jaxsparse.channels(int(numbers[1] or -1))
    else:
        raise ValueError(f"--pattern={pattern} must be n:m, ROWSxCOLUMNS, channels or channels(-2)")
    return [(".*" if layers is None else layers, chosen)]


def _cycles(schedule: str, steps: int, given: dict[str, Any]) -> dict[str, Any]:
    """Takes --cycles and its like out of `given`, and returns the arguments of `with_cycles`.

    Raises:
      ValueError: one of them is given without --cycles, or the cycles do not fit into training.
    """
    num_cycles = given.pop("cycles", SCHEDULES[schedule].num_cycles)
    asked = {name: given.pop(name) for name in _CYCLES if name in given}
    if num_cycles == 0:
        for name, value in asked.items():
            raise ValueError(f"--{name}={value} needs --cycles of at least 1")
        return {"num_cycles": 0}
    share = asked.pop("cycle_share", DEFAULTS["cycle_share"])
    growth = asked.get("cycle_growth", DEFAULTS["cycle_growth"])
    check_in("cycle_share", share, "(0, 1]")
    cycle_steps = max(round(share * steps), 1)
    ends = cycle_ends(num_cycles=num_cycles, cycle_steps=cycle_steps, growth=growth)
    if ends[-1] > steps:
        raise ValueError(
            f"--cycles={num_cycles} end at step {ends[-1]} of {steps}; lower --cycle_share={share}"
        )
    shortest = min(stop - start for start, stop in itertools.pairwise((0, *ends)))
    interval = {"cycle_interval": max(min(100, shortest // 20), 1)}
    arguments = {_CYCLES[name]: value for name, value in asked.items()}
    return {"num_cycles": num_cycles, "cycle_steps": cycle_steps} | interval | arguments


def _functions(schedule: str, given: dict[str, Any]) -> dict[str, Any]:
    """Returns the functions that some flags name; takes --dense_layers out."""
    found: dict[str, Any] = {}
    if "distribution" in given or "dense_layers" in given:
        found["distribution"] = _distribution(schedule, given)
    if "grow" in given:
        found["grow"] = GROW[nearest(given["grow"], GROW, kind="grow")]
    return found


def _distribution(schedule: str, given: dict[str, Any]) -> Distribution:
    """Takes --dense_layers out of `given`, and returns what it and --distribution ask for."""
    name = nearest(
        given.get("distribution", DEFAULTS["distribution"]), DISTRIBUTIONS, kind="distribution"
    )
    dense = given.pop("dense_layers", None)
    if dense is None:
        return DISTRIBUTIONS[name]()
    if "scope" in SCHEDULES[schedule].options and given.get("scope") != "layer":
        raise ValueError(f"--dense_layers needs --scope=layer: {schedule} prunes over all layers")
    return jaxsparse.with_overrides(DISTRIBUTIONS[name](), {dense: 0.0})
