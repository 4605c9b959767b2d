r"""Networks that really become narrower: ResRep, C-SGD and one-shot pruning side by side.

    python experiments/resrep.py
    python experiments/resrep.py --arms=dense,resrep,csgd,l1,isomorphic --target=0.5 --seeds=3
    python experiments/resrep.py --dataset=fashion_mnist --model=resnet8 --base_steps=400
    python experiments/resrep.py --arms=resrep --plan
    python experiments/resrep.py --table

A ResNet is trained densely: the base. All arms go on from there for the same number of steps, with
one batch size, momentum and weight decay, and a learning rate that falls from --arm_rate to 0 as a
cosine. They end with a network that has --target of the multiply-adds:

    dense       the control: trained on at full width
    resrep      compactors that are trained to the target and merged; inner channels of blocks only
    csgd        filters in clusters that become equal; every group of channels loses the same share
    l1          channels removed at once, by the L1 norm of their kernels, then trained
    norm_scale  likewise by the scales of their batch norms
    taylor      likewise by the derivative of the loss by a gate behind their batch norms
    activation  likewise by the mean activation that the next layers read
    random      likewise at random: the control of the criteria
    isomorphic  as l1, but groups of channels compete with groups of the same structure alone
    gradual     as l1, in --narrowings steps in the first half of its training

A folder holds a subfolder for each seed, in it one for the base and one for each arm, with the
narrow network: widths in `narrow.json`, arrays in `narrow.safetensors`. Killed anywhere, the
same command goes on, with the same bits. Called again with other arms, other targets or more
seeds, it trains what is missing from the same bases, and prints the table of all that is there.

Whatever cannot work is refused before anything is trained: a target that no widths reach, a penalty
of ResRep that has no time to bring rows to 0, an epsilon of C-SGD that leaves filters unequal.
"""

import sys
from pathlib import Path
from typing import Any

from experiments import loop
from experiments.data.dataset import Dataset
from experiments.options import cli, flags
from experiments.options.schedules import said_in_flags
from experiments.records.run_folder import check_flags
from experiments.structured import arms, networks, report, stages
from experiments.structured.asked import (
    Config,
    arm_flags,
    flags_of,
    folder_name,
    setting_of,
    steps_of,
)
from experiments.structured.setting import multiply_adds
from experiments.sweeping.result_file import result_of, write_result
from experiments.sweeping.workers import own_cores
from jaxsparse.checks import check_in, check_whole


def main(config: Config) -> None:
    """Trains, or prints the plan or the table."""
    if config.table:
        out = config.out or folder_of(config, data_of(config))
        print(report.describe(out, markdown=config.markdown))
        return
    if config.plan:
        print("\n".join(check(config, data_of(config))))
        return
    out = train(config)
    print(f"{report.describe(out, markdown=config.markdown)}\nfolder  {out}")


def train(config: Config) -> Path:
    """Trains the bases and arms of all seeds that have not ended; returns the study's folder.

    Raises:
      ValueError: a flag is wrong, or a stage of the folder has other flags.
    """
    data = data_of(config)
    for line in check(config, data):
        print(line, file=sys.stderr, flush=True)
    out = config.out or folder_of(config, data)
    seeds = range(config.seed, config.seed + config.seeds)
    for seed in seeds:
        for folder, asked in places_of(config, data, out, seed).values():
            if (folder / "config.json").exists():
                check_flags(folder, asked)
    for seed in seeds:
        setting, places = setting_of(config, data, seed), places_of(config, data, out, seed)
        base = stages.train_base(setting, *places[BASE])
        for name, arm in arms.named(config.arms).items():
            folder, asked = places[name]
            stages.train_arm(setting, arm, base, folder, asked)
            if config.results is not None:
                keep(folder, config.results / f"{out.name}-{folder.name}-seed{seed}.json")
    return out


BASE = "base"
"""The stage that all arms go on from."""


def places_of(
    config: Config, data: Dataset, out: Path, seed: int
) -> dict[str, tuple[Path, dict[str, Any]]]:
    """Returns the folder and the flags of the base and of every arm of a seed, by name."""
    parent, of_base = out / f"seed{seed}", flags_of(config, data, seed)
    found = {BASE: (parent / BASE, of_base)}
    for name, arm in arms.named(config.arms).items():
        asked = of_base | arm_flags(config, data, name, arm)
        found[name] = (parent / folder_name(name, asked), asked)
    return found


def keep(folder: Path, path: Path) -> None:
    """Writes the result file of a finished arm, unless it is there."""
    if not path.exists():
        write_result(path, result_of(folder, own_cores()))


def check(config: Config, data: Dataset) -> list[str]:
    """Refuses flags that cannot work before anything is written; says what the arms will do.

    Raises:
      ValueError: names the flag, its value and its range.
    """
    with said_in_flags():
        check_whole("seeds", config.seeds, 1)
        check_whole("seed", config.seed, 0, 2**32 - config.seeds)
        check_whole("round_to", config.round_to, 1)
        check_whole("score_batches", config.score_batches, 1)
        check_whole("timed_steps", config.timed_steps, 0)
        check_in("target", config.target, "(0, 1]")
        check_in("arm_rate", config.arm_rate, "(0, inf)")
        chosen = arms.named(config.arms)
        setting = setting_of(config, data, config.seed)
        loop.check(setting.base)
        macs = multiply_adds(setting.model, setting.image)
        head = (
            f"{config.model} on {data.name}: {macs:,} multiply-adds an image; a base of "
            f"{setting.base.steps:,} steps, {len(chosen)} arms of {setting.steps:,}"
        )
        return [head, *(line for arm in chosen.values() for line in arm.check(setting))]


def data_of(config: Config) -> Dataset:
    """Returns the data set that the flags ask for."""
    with said_in_flags():
        return networks.data_of(config.dataset).load(config.data_dir, config.val_fraction)


def folder_of(config: Config, data: Dataset) -> Path:
    """Returns the folder of the study without --out."""
    base, arm = steps_of(config, data)
    width = networks.width_of(config.model, config.width)
    return Path("runs") / "structured" / data.name / f"{config.model}-w{width}-steps{base}+{arm}"


if __name__ == "__main__":
    sys.exit(cli.run(main, Config, sys.argv[1:], going_on=flags.going_on))
