"""What flags come to that are left out: one that is given its default makes no other run."""

from collections.abc import Mapping
from typing import Any

from experiments.options.flags import DEFAULTS
from experiments.options.schedules import METHODS


def default_of(flag: str, schedule: str | None) -> Any:
    """Returns what a flag comes to that is left out; None where that depends on more.

    >>> [default_of("dyrelu", name) for name in ("rigl", "east")]
    [False, True]
    >>> default_of("cycles", "east"), default_of("update_interval", "east")
    (2, None)
    """
    if flag in ("dyrelu", "weight_sharing"):
        return schedule == "east"
    if flag == "cycles":
        return METHODS[schedule].num_cycles if schedule in METHODS else 0
    return DEFAULTS.get(flag)


def without_defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the flags of a run that were given, and not at their defaults: what tells it apart.

    >>> without_defaults({"schedule": "rigl", "dyrelu": False, "cycles": None, "seed": 0})
    {'schedule': 'rigl', 'seed': 0}
    """
    schedule = config.get("schedule")
    return {
        flag: value
        for flag, value in config.items()
        if value is not None and value != default_of(flag, schedule)
    }
