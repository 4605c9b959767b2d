"""Grids by name: a file NAME.py in the folder `grids` is the grid NAME."""

import importlib
import pkgutil

from experiments.sweeping import grids
from experiments.sweeping.grid import Grid, Tickets

NAMES = sorted(module.name for module in pkgutil.iter_modules(grids.__path__))


def grids_of(name: str) -> tuple[Grid | Tickets, ...]:
    """Returns the grids of a name in NAMES; no other file of the folder is imported."""
    return importlib.import_module(f"{grids.__name__}.{name}").GRIDS
