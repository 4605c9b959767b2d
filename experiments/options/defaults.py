"""The flags that tell a run from others: which change no result, and which are at their defaults.

A flag given at its default names the same run as a flag left out.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from experiments.options.flags import DEFAULTS, Meeting
from experiments.options.schedules import SCHEDULES

# Flags that say which machines train, and how they meet.
_MACHINE = ("workers", *(field.name for field in dataclasses.fields(Meeting)))
# Flags that change no result: a run may go on with other values.
FREE_FLAGS = ("out", "checkpoint_every", "gradient_flow", "allow_cut", *_MACHINE)
# Flags that no checkpoint depends on: a run may go on with other values, and its results are the
# same up to rounding.
LOOSE_FLAGS = ("execution", "exchange", "fsdp")
# Flags that tell no two finished runs apart. The summary names the data set.
IDLE_FLAGS = (*FREE_FLAGS, "data_dir", "plan")


def default_of(flag: str, schedule: str | None) -> Any:
    """Returns the default of a flag; None if it depends on more than the schedule.

    Args:
      flag: its name, without dashes.
      schedule: the value of --schedule; None if the run has none.

    >>> [default_of("dyrelu", name) for name in ("rigl", "east")]
    [False, True]
    >>> default_of("cycles", "east"), default_of("update_interval", "east")
    (2, None)
    """
    if flag in ("dyrelu", "weight_sharing"):
        return schedule == "east"
    if flag == "recipe":
        return "east" if schedule == "east" else "granet"
    if flag == "cycles":
        return SCHEDULES[schedule].num_cycles if schedule in SCHEDULES else 0
    return DEFAULTS.get(flag)


def without_defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the flags that tell a run from others: those given, and not at their defaults.

    >>> without_defaults({"schedule": "rigl", "dyrelu": False, "cycles": None, "seed": 0})
    {'schedule': 'rigl', 'seed': 0}
    """
    schedule = config.get("schedule")
    return {
        flag: value
        for flag, value in config.items()
        if value is not None and value != default_of(flag, schedule)
    }
