r"""Pruning plasticity of a LeNet: how well it recovers if it is pruned at some point of training.

    python experiments/plasticity.py --data_dir=DIR --seeds=3
    python experiments/plasticity.py --model=lenet_300_100 --sparsity=0.5 --rates 0.5 0.9

Trains once a seed, with checkpoints. Prunes each of them at each rate, layer by layer and globally,
without and with regrowing as many weights by gradient, and trains on for a while with the learning
rate as it was. The control trains on without pruning. The learning rate is divided by 10 at 1/2 and
3/4 of training. Accuracies are those of the test images.

A study that was stopped goes on with the same command, and comes to the same numbers. See
docs/studies.md for the same with checkpoints and a training loop of your own.

Reference: Liu et al., "Sparse Training via Boosting Pruning Plasticity with Neuroregeneration",
NeurIPS 2021.
"""

import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Annotated

import tyro
from tqdm import tqdm

from experiments import fashion_mnist
from experiments.options import cli
from experiments.records.run_folder import check_folder, locked, naming
from experiments.studying import plasticity_report as report
from experiments.studying.cells import append_cell, read_cells
from experiments.studying.continuing import checkpoint_of, functions_of
from experiments.studying.pretraining import checkpoints
from jaxsparse.checks import check_in, check_whole
from jaxsparse.studies import Plasticity, pruning_plasticity

REGROW = {"both": (False, True), "yes": (True,), "no": (False,)}


@dataclasses.dataclass(frozen=True)
class Config:
    """Measures the pruning plasticity of a LeNet on Fashion-MNIST; writes a table and two plots."""

    model: str = "lenet5"
    """lenet5 or lenet_300_100."""
    sparsity: float = 0.0
    """Sparsity of every layer during training, with masks that do not change; 0 trains densely."""
    steps: int = 8000
    """Optimizer steps of the training."""
    at: tuple[float, ...] = (0.1, 0.25, 0.45, 0.55, 0.7, 0.8, 0.95)
    """Shares of training after which the network is pruned, ascending, in (0, 1]."""
    rates: tuple[float, ...] = (0.2, 0.5, 0.9, 0.98)
    """Shares of the active weights that are pruned, each in [0, 1)."""
    scopes: tuple[str, ...] = ("layer", "global")
    """layer, global or both."""
    regrow: str = "both"
    """no, yes or both: whether each layer grows as many weights by gradient as it lost."""
    learning_rates: tuple[str, ...] = ("frozen",)
    """frozen, schedule or both: the learning rate after the pruning."""
    steps_after: cli.OptionalInt = None
    """Optimizer steps after the pruning. Default: a tenth of --steps."""
    final_gap: Annotated[bool, tyro.conf.FlagConversionOff] = False
    """Also train to the end by the schedule, which takes several times as long."""
    seeds: int = 1
    """Number of seeds, which count from 0."""
    batch_size: int = 128
    """Images a step."""
    learning_rate: float = 0.05
    """At the start."""
    data_dir: cli.OptionalPath = None
    """Folder with the full data set. Default: the sample in the repository."""
    checkpoint_every: int = 500
    """Steps between checkpoints of the training, from which the same command goes on."""
    out: cli.OptionalPath = None
    """Folder of the study. Default: runs/plasticity/MODEL-SPARSITY-stepsN."""


def main(config: Config) -> None:
    """Runs what is not finished yet, and prints the table."""
    check(config)
    name = f"{config.model}-{config.sparsity:g}-steps{config.steps}"
    out = config.out or Path("runs/plasticity") / name
    flags = cli.as_dict(config) | {"schedule": "dense" if config.sparsity == 0 else "static"}
    told = {n: x for n, x in flags.items() if n not in ("out", "seeds", "checkpoint_every")}
    check_folder(out, told)
    with naming(out):
        out.mkdir(parents=True, exist_ok=True)
        with os.fdopen(locked(out, "running a study")):
            plain = lambda x: str(x) if isinstance(x, Path) else list(x)
            (out / "config.json").write_text(json.dumps(told, indent=2, default=plain) + "\n")
            found = report.by_cell([of_seed(config, out, seed) for seed in range(config.seeds)])
            print(f"means in percent\n{report.table(found)}")
            title = f"{config.model} at sparsity {config.sparsity:g}"
            report.draw_over_training(out / "over_training.png", found, title)
            report.draw_over_rates(out / "over_rates.png", found, title)
    print(f"plots: {out / 'over_training.png'}, {out / 'over_rates.png'}", file=sys.stderr)


def check(config: Config) -> None:
    """Raises a ValueError that names the first flag whose value is wrong."""
    check_in("sparsity", config.sparsity, "[0, 1)")
    for flag in ("steps", "seeds", "batch_size"):
        check_whole(flag, getattr(config, flag), 1)
    for flag in ("at", "rates", "scopes", "learning_rates"):
        given = getattr(config, flag)
        if not given or len(set(given)) < len(given):
            raise ValueError(f"--{flag} takes at least one value, and each once")
    for share in config.at:
        check_in("at", share, "(0, 1]")
    steps = steps_at(config)
    if steps != sorted(set(steps)) or steps[0] < 1:
        raise ValueError(f"--at gives the steps {steps} of {config.steps}; they must ascend from 1")
    for rate in config.rates:
        check_in("rates", rate, "[0, 1)")
    for scope in config.scopes:
        cli.nearest(scope, ("layer", "global"), kind="scope")
    for how in config.learning_rates:
        cli.nearest(how, ("frozen", "schedule"), kind="learning rate")
    cli.nearest(config.regrow, REGROW, kind="regrow")
    check_whole("steps_after", num_after(config), 1)


def steps_at(config: Config) -> list[int]:
    """Returns the steps after which the network is pruned."""
    return [round(share * config.steps) for share in config.at]


def num_after(config: Config) -> int:
    """Returns the number of steps after a pruning."""
    return max(config.steps // 10, 1) if config.steps_after is None else config.steps_after


def of_seed(config: Config, out: Path, seed: int) -> tuple[Plasticity, ...]:
    """Returns all results of one seed, those that are in its file and those that are measured."""
    single = fashion_mnist.Config(
        model=config.model,
        schedule="dense",
        steps=config.steps,
        seed=seed,
        batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        data_dir=config.data_dir,
        checkpoint_every=config.checkpoint_every,
    )
    run, folder = fashion_mnist.run_of(single), out / f"seed{seed}"
    told = {**cli.as_dict(single), "sparsity": config.sparsity}
    states = checkpoints(run, folder, steps_at(config), config.sparsity, told)
    points = {step: checkpoint_of(state) for step, state in states}
    functions = functions_of(run, fashion_mnist.recipe_of(single), config.steps, num_after(config))
    known, file = read_cells(folder / "cells.jsonl"), folder / "cells.jsonl"
    arms = len(config.scopes) * len(REGROW[config.regrow]) * len(config.learning_rates)
    total = len(points) * len(config.rates) * arms
    with tqdm(total=total, initial=len(known), unit="cell", desc=f"seed {seed}") as bar:

        def save(cell: Plasticity) -> None:
            append_cell(file, cell)
            bar.update()

        study = pruning_plasticity(
            points,
            config.rates,
            **functions._asdict(),
            scopes=config.scopes,  # pyright: ignore[reportArgumentType] - checked above
            regenerate=REGROW[config.regrow],
            learning_rates=config.learning_rates,  # pyright: ignore[reportArgumentType]
            final_gap=config.final_gap,
            known=known,
            save=save,
        )
    return study.results


if __name__ == "__main__":
    sys.exit(cli.run(main, Config, sys.argv[1:], going_on=lambda _: "the same command goes on"))
