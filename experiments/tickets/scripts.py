"""The scripts whose networks, data and recipes tickets are drawn from, and their runs."""

import dataclasses
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import jax

from experiments import cifar, fashion_mnist, mnist
from experiments.options import cli, flags
from experiments.training.run import Run

SCRIPTS: Mapping[str, ModuleType] = {
    "fashion_mnist": fashion_mnist,
    "cifar": cifar,
    "mnist": mnist,
}
"""By the beginning of their data sets' names."""
TAKEN = ("experiment", "model", "schedule", "seed", "data_dir", "out", "plan", "sparsity")
"""Flags of a script that the driver sets itself."""


def parsed(experiment: str, model: str, given: Sequence[str], own: Mapping[str, Any]) -> Any:
    """Returns the flags of a script for dense training.

    Args:
      experiment: a name in SCRIPTS.
      model: value of --model.
      given: other flags of the script, as name=value.
      own: flags that the driver has too, by name; None leaves one out.

    Raises:
      ValueError: an unknown script, model or flag, or one that the driver sets itself.
    """
    script = SCRIPTS[cli.nearest(experiment, SCRIPTS, kind="experiment")]
    cli.nearest(model, script.MODELS, kind="model")
    for flag in given:
        name, equals, _ = flag.removeprefix("--").replace("-", "_").partition("=")
        if not equals:
            raise ValueError(f"--flags takes name=value, not {flag!r}")
        if name in TAKEN or name in own:
            raise ValueError(f"--flags takes no {name}, which is a flag of its own, or set for you")
        if name in _names(flags.Pruning) | _names(flags.Tricks):
            raise ValueError(f"--flags takes no {name}: rounds prune a plain network by magnitude")
    words = [f"--{flag.removeprefix('--')}" for flag in given]
    words += [f"--{name}={value}" for name, value in own.items() if value is not None]
    return cli.parse(script.Config, ["--schedule=dense", f"--model={model}", *words])


def script_of(config: Any) -> ModuleType:
    """Returns the script whose flags these are."""
    return next(script for script in SCRIPTS.values() if type(config) is script.Config)


def run_of(config: Any) -> Run:
    """Returns the run that a script's flags ask for, with its data."""
    return script_of(config).run_of(config)


def shapes_of(config: Any) -> Any:
    """Returns the shapes of the network's params, without data."""
    script = script_of(config)
    image, key = script.IMAGE, jax.random.key(0)
    return jax.eval_shape(script.model_of(config).init, key, image)["params"]


def steps_of(config: Any) -> int:
    """Returns the number of steps of the run that a script's flags ask for."""
    return script_of(config).method_of(config).timetable.total_steps


def learning_rate_of(config: Any) -> float:
    """Returns the learning rate at the start."""
    return script_of(config).recipe_of(config).learning_rate


def data_of(config: Any) -> str:
    """Returns the name of the data set."""
    return script_of(config).data_of(config)


def _names(cls: type) -> set[str]:
    return {field.name for field in dataclasses.fields(cls)}
