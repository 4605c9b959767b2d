r"""Lottery tickets: iterative magnitude pruning with rewinding, and its sanity protocol.

    python experiments/lottery.py --model=lenet_300_100 --rounds=10 --seeds=3
    python experiments/lottery.py --model=lenet5 --rewind_step=100 --arm=learning_rate_rewinding
    python experiments/lottery.py --rounds=8 --seeds=3 --sanity
    python experiments/lottery.py --rounds=20 --plan
    python experiments/lottery.py --experiment=cifar --model=resnet20 --rewind_step=500 \
        --flags epochs=160 --data_dir=data

The dense network is trained for T steps. Each round removes --rate of the surviving weights, those
with the smallest magnitude, goes back to step k and trains the rest again up to step T:

* --arm=rewind takes the weights of step k. --rewind_step=0 is the original paper; k > 0 trains k
  steps once, and every round starts there.
* --arm=learning_rate_rewinding keeps the trained weights, and replays the schedule from step k.
* --arm=fine_tuning keeps them, and trains T - k more steps at the last learning rate.

A round rewinds batch norms' params and statistics with the rest (but for the two arms that keep
trained weights, which keep trained statistics too). The optimizer starts with fresh momentum and a
schedule at step k. The data are read from step k on, in the same order every round, unless --reseed
draws an order of its own for each. The density is that of the trained weights, not of masks.

A folder holds a subfolder for each seed, in it one for each round; `summary.json` and `plot.png`
hold all of them. Killed anywhere, the same command goes on, with the same bits.
"""

import contextlib
import dataclasses
import sys
from pathlib import Path
from typing import Annotated, Any

import tyro

from experiments import loop
from experiments.options import cli, flags
from experiments.options.schedules import pattern_of, said_in_flags
from experiments.records.run_folder import write_json
from experiments.tickets import report, rounds, sanity, scripts, stretch
from experiments.tickets.rounds import Pruning
from jaxsparse.checks import check_in, check_whole
from jaxsparse.survivors import SurvivorOptions


@flags.own_first
@dataclasses.dataclass(frozen=True)
class Config(flags.Running):
    """Finds lottery tickets by iterative magnitude pruning, and writes a folder with all rounds."""

    model: str = "lenet_300_100"
    """A model of the script: lenet_300_100, lenet5, or those of cifar."""
    experiment: str = "fashion_mnist"
    """Script that has the network, data and recipe: fashion_mnist, mnist or cifar."""
    rounds: int = 10
    """Number of rounds; after r of them the density is (1 - rate)^r."""
    rate: float = 0.2
    """Share of the surviving weights that a round removes, above 0 and below 1."""
    scope: str = "global"
    """Compare weights over all layers (global) or remove the rate of each layer (layer)."""
    rates: tuple[str, ...] = ()
    """Other rates, as REGEX=RATE: layers whose path it is found in. 0 excludes a layer, which keeps
    all weights; others need --scope=layer. The original MNIST code is --scope=layer
    --rates Dense_2=0.1 for lenet_300_100."""
    quota: str = "pruned"
    """With excluded layers, take the rate of the weights that may go (pruned), or of all
    survivors from the others (all), as open_lth does."""
    min_keep: int = 0
    """Fewest weights that --scope=global leaves to a layer."""
    pattern: cli.OptionalStr = None
    """Remove whole groups: ROWSxCOLUMNS blocks, channels or channels(-2)."""
    rewind_step: int = 0
    """Step k that rounds go back to, at least 0 and below the steps of training."""
    arm: str = "rewind"
    """rewind, learning_rate_rewinding or fine_tuning."""
    reseed: Annotated[bool, tyro.conf.FlagConversionOff] = False
    """Give every round an order of the data, augmentation and dropout of its own."""
    steps: cli.OptionalInt = None
    """Steps of the dense network's schedule. Default: the script's."""
    learning_rate: cli.OptionalFloat = None
    """At the start. Default: the script's."""
    seed: int = 0
    """First seed, of initial weights and the order of the data."""
    seeds: int = 1
    """Number of seeds."""
    sanity: bool = False
    """Train the arms of the sanity protocol too: the mask re-initialised, shuffled within layers,
    and a small dense network of as many parameters, at every one of --learning_rates."""
    learning_rates: tuple[float, ...] = ()
    """Learning rates of --sanity. Default: a tenth of the tuned one, and the tuned one, which is
    --learning_rate."""
    flags: tuple[str, ...] = ()
    """Other flags of the script, as name=value."""
    data_dir: cli.OptionalPath = None
    """Folder with the data. Default: that of the script."""
    out: cli.OptionalPath = None
    """Folder of the runs. Default: runs/lottery/DATA/MODEL-ARM-stepsN-kK-seedN."""
    plan: bool = False
    """Print the density after each round, and train nothing."""


def main(config: Config) -> None:
    """Trains, or prints the plan."""
    if config.plan:
        print(report.describe_plan(check(config)))
        return
    print(describe(train(config)))


def train(config: Config) -> dict[str, Any]:
    """Trains all rounds and arms of all seeds; returns the summary, with the folder as "out".

    Raises:
      ValueError: a flag is wrong, or the folder holds other runs.
    """
    check(config)
    for rate in learning_rates_of(config) if config.sanity else (config.learning_rate,):
        loop.check(scripts.run_of(script_config(config, learning_rate=rate)))
    base, out = script_config(config), config.out or folder_of(config)
    asked = cli.as_dict(config) | {"schedule": "imp"}
    with stretch.opened(out, asked):
        if config.sanity:
            found = _sanity(config, out)
        else:
            seeds = [_rows(config, seed, out / f"seed{seed}") for seed in seeds_of(config)]
            found = {"rounds": report.by_round(seeds)}
            title = f"{config.model}, {scripts.data_of(base)}, rewound to step {config.rewind_step}"
            report.plot_rounds(out / "plot.png", found["rounds"], title=title, arm=config.arm)
        summary = {
            "method": "imp",
            "dataset": scripts.data_of(base),
            "model": config.model,
            "arm": config.arm,
            "seeds": list(seeds_of(config)),
            "steps": scripts.steps_of(base),
            "rewind_step": config.rewind_step,
            **found,
        }
        write_json(out / "summary.json", summary)
    return summary | {"out": out}


def _rows(config: Config, seed: int, out: Path) -> list[rounds.Row]:
    base = script_config(config, seed=seed)
    return rounds.find(scripts.run_of(base), pruning_of(config), out, flags_of(config, base)).rows


def _sanity(config: Config, out: Path) -> dict[str, Any]:
    by_rate = {}
    for rate in learning_rates_of(config):
        arms = []
        for seed in seeds_of(config):
            base = script_config(config, seed=seed, learning_rate=rate)
            folder = out / f"lr{rate:g}" / f"seed{seed}"
            run, asked = scripts.run_of(base), flags_of(config, base)
            arms.append(sanity.train_arms(run, pruning_of(config), folder, asked))
        by_rate[rate] = sanity.over_seeds(arms)
    return {"learning_rates": by_rate}


def check(config: Config) -> list[Any]:
    """Refuses flags that cannot work before anything is written; returns the planned rounds.

    Raises:
      ValueError: names the flag, its value and its range.
    """
    with said_in_flags():
        check_whole("rounds", config.rounds, 1)
        check_whole("seeds", config.seeds, 1)
        check_whole("seed", config.seed, 0, 2**32 - config.seeds)
        check_in("rate", config.rate, "(0, 1)")
        check_whole("min_keep", config.min_keep, 0)
        base = script_config(config)
        steps, params = scripts.steps_of(base), scripts.shapes_of(base)
        planned = rounds.check(pruning_of(config), params, steps)
    if config.learning_rates and not config.sanity:
        raise ValueError(f"--learning_rates={config.learning_rates} needs --sanity")
    if config.sanity:
        _check_sanity(config)
    return planned


def _check_sanity(config: Config) -> None:
    if config.arm != "rewind":
        raise ValueError(
            f"--arm={config.arm}: --sanity asks about the initial weights; take rewind"
        )
    rates = learning_rates_of(config)
    if len(set(rates)) < len(rates):
        raise ValueError(f"--learning_rates={rates} holds one twice")
    model = scripts.script_of(base := script_config(config)).model_of(base)
    if not (hasattr(model, "width") or hasattr(model, "widths")):
        raise ValueError(
            f"--model={config.model} has no widths, and --sanity compares with a narrow one; take "
            f"a LeNet or a ResNet"
        )


def script_config(config: Config, **changes: Any) -> Any:
    """Returns the script's flags for the dense network.

    Args:
      config: the flags.
      **changes: of the script's flags: the seed, the learning rate.
    """
    shared = {
        field.name: getattr(config, field.name) for field in dataclasses.fields(flags.Running)
    }
    own = {
        "seed": config.seed,
        "steps": config.steps,
        "learning_rate": config.learning_rate,
        "data_dir": config.data_dir,
        **shared,
        **changes,
    }
    return scripts.parsed(config.experiment, config.model, config.flags, own)


def pruning_of(config: Config) -> Pruning:
    """Returns how tickets are found, as the flags say."""
    options: dict[str, Any] = {
        "scope": config.scope,
        "rates": [_rate(pair) for pair in config.rates],
    }
    if config.quota != "pruned":
        options["quota"] = config.quota
    if config.min_keep:
        options["min_keep"] = config.min_keep
    return Pruning(
        config.rate,
        config.rounds,
        config.rewind_step,
        config.arm,
        config.reseed,
        SurvivorOptions(**options),
        pattern_of(config.pattern, None),
    )


def _rate(pair: str) -> tuple[str, float]:
    regex, equals, rate = pair.rpartition("=")
    with contextlib.suppress(ValueError):
        if equals:
            return regex, float(rate)
    raise ValueError(f"--rates takes REGEX=RATE, not {pair!r}")


def flags_of(config: Config, base: Any) -> dict[str, Any]:
    """Returns the flags of a round, for its `config.json`; those at their defaults are None."""
    defaults = Config()
    names = ("rate", "scope", "rates", "quota", "min_keep", "pattern", "rewind_step", "reseed")
    given = {name: getattr(config, name) for name in names}
    own = {name: x if x != getattr(defaults, name) else None for name, x in given.items()}
    return cli.as_dict(base) | own | {"rates": list(config.rates) or None}


def seeds_of(config: Config) -> range:
    """Returns the seeds."""
    return range(config.seed, config.seed + config.seeds)


def learning_rates_of(config: Config) -> tuple[float, ...]:
    """Returns the learning rates of --sanity."""
    tuned = scripts.learning_rate_of(script_config(config))
    return config.learning_rates or (tuned / 10, tuned)


def folder_of(config: Config) -> Path:
    """Returns the folder of the runs without --out."""
    base = script_config(config)
    kind = "sanity" if config.sanity else config.arm
    name = f"{config.model}-{kind}-steps{scripts.steps_of(base)}-k{config.rewind_step}"
    return Path("runs") / "lottery" / scripts.data_of(base) / f"{name}-seed{config.seed}"


def describe(summary: dict[str, Any]) -> str:
    """Returns the tables of a summary."""
    if "rounds" in summary:
        table = report.describe_rounds(summary["rounds"])
    else:
        table = sanity.describe(summary["learning_rates"])
    return f"{table}\nfolder  {summary['out']}"


if __name__ == "__main__":
    sys.exit(cli.run(main, Config, sys.argv[1:], going_on=flags.going_on))
