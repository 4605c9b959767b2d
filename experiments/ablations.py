r"""Ablations of the masks of any finished run: what in a mask makes it good?

    python experiments/ablations.py --run=runs/fashion_mnist/lenet5-rigl-0.95-steps2000-seed0 \
        --others runs/fashion_mnist/lenet5-rigl-0.95-steps2000-seed1
    python experiments/ablations.py --run=runs/lottery/.../seed0/round08

It reads the masks from the run's last checkpoint, so any method may have found them, and retrains
the network with masks that never change, the run's own recipe, and one thing changed at a time:

    own        the run's initial weights and its masks
    shuffle    its masks shuffled within their layers: is it only the density of each layer?
    reinit     other initial weights: are mask and weights tied together?
    swap       the masks of another run, such as another seed's, on this run's initial weights

All of them see the data in the order of the run's seed. The table has the run itself too, whose
masks may have moved in training. A second table compares the densities of all runs layer by layer,
and how much of its masks each shares with the first (Jaccard's index, with its value for random
masks of the same densities).
"""

import dataclasses
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

import jaxsparse
from experiments import loop
from experiments.options import cli
from experiments.options.schedules import said_in_flags
from experiments.records.run_folder import write_json
from experiments.tickets import arms, report, scripts, sources, stretch
from experiments.tickets.sources import Source
from jaxsparse.checks import check_whole
from jaxsparse.counting import num_true
from jaxsparse.paths import prunable_leaves
from jaxsparse.text_table import text_table

ARMS = ("own", "shuffle", "reinit", "swap")


@dataclasses.dataclass(frozen=True)
class Config:
    """Retrains the masks of a finished run with one thing changed at a time."""

    run: cli.OptionalPath = None
    """Folder of a finished run of fashion_mnist.py, mnist.py, cifar.py or a round of lottery.py."""
    others: tuple[Path, ...] = ()
    """Folders of other runs of the same network, whose masks the arm swap takes."""
    arms: tuple[str, ...] = ()
    """Which of own, shuffle, reinit and swap. Default: all; swap needs --others."""
    draws: int = 1
    """Number of shuffles, and of re-initialisations."""
    data_dir: cli.OptionalPath = None
    """Folder with the data. Default: that of the run."""
    out: cli.OptionalPath = None
    """Folder of the arms. Default: runs/ablations/NAME OF THE RUN."""
    plan: bool = False
    """Print the densities of the runs' layers, and train nothing."""


def main(config: Config) -> None:
    """Trains the arms, or prints the densities alone."""
    if config.plan:
        print(describe_layers(read(config)))
        return
    summary = train(config)
    print(describe(summary))


def train(config: Config) -> dict[str, Any]:
    """Trains all arms; returns the summary, with the folder as "out" and the table of layers.

    Raises:
      ValueError: a flag is wrong, a folder is no finished run, or `out` holds other runs.
    """
    found = read(config)
    first, chosen = found[0], arms_of(config)
    loop.check(scripts.run_of(first.config))
    out = config.out or Path("runs") / "ablations" / name_of(first.path)
    asked = cli.as_dict(config) | {"schedule": "ablations"}
    with stretch.opened(out, asked):
        rows = {"as trained": [first.summary]}
        for arm in chosen:
            for name, source, draw in _draws(arm, config, found):
                ended = _train_arm(arm, first, source, draw, out / name)
                rows.setdefault(name if arm == "swap" else arm, []).append(ended)
        num_active = {name: row[0]["num_active"] for name, row in rows.items()}
        summary = {
            "method": "ablations",
            "dataset": first.summary["dataset"],
            "model": first.summary["model"],
            "source": str(first.path),
            "arms": {
                name: {"num_params": num_active[name], **report.metrics(row)}
                for name, row in rows.items()
            },
            "layers": layers_of(found),
        }
        write_json(out / "summary.json", summary)
    return summary | {"out": out, "table": describe_layers(found)}


def _draws(arm: str, config: Config, found: list[Source]) -> list[tuple[str, Source, int]]:
    """The trainings of an arm: name, source of the masks, number of the draw."""
    if arm == "swap":
        return [(f"swap{i}", source, 0) for i, source in enumerate(found[1:], start=1)]
    if arm == "own":
        return [(arm, found[0], 0)]
    return [(f"{arm}{draw}", found[0], draw) for draw in range(config.draws)]


def _train_arm(arm: str, first: Source, source: Source, draw: int, out: Path) -> dict[str, Any]:
    run = scripts.run_of(first.config)
    masks = source.masks
    if arm == "shuffle":
        masks = arms.shuffled(run, masks, source.pattern, draw)
    begun = arms.static_run(run, masks, run.steps, source.pattern)
    dense = arms.reinitialised(run, draw) if arm == "reinit" else loop.create_state(run)
    flags = cli.as_dict(first.config) | {
        "schedule": "static",
        "sparsity": round(jaxsparse.sparsity(masks, run.method.prunable), 6),
        "masks_of": str(source.path),
        "arm": arm,
        "draw": draw,
    }
    state = arms.ticket(begun, dense, masks)
    return stretch.train(begun, out, flags, state, title=out.name).summary


def read(config: Config) -> list[Source]:
    """Reads the runs, the first one first.

    Raises:
      ValueError: a flag is wrong, a folder is no finished run, or the runs differ in network or
        data.
    """
    with said_in_flags():
        check_whole("draws", config.draws, 1)
    if config.run is None:
        raise ValueError("--run is missing: the folder of a finished run")
    arms_of(config)
    first = sources.read(config.run, config.data_dir)
    others = [sources.read(path, config.data_dir) for path in config.others]
    for other in others:
        for name in ("model", "dataset"):
            if other.summary[name] != first.summary[name]:
                raise ValueError(
                    f"{other.path} is of {name} {other.summary[name]}, --run of "
                    f"{first.summary[name]}"
                )
    return [first, *others]


def arms_of(config: Config) -> list[str]:
    """Returns the arms to train, in the order of ARMS."""
    for arm in config.arms:
        cli.nearest(arm, ARMS, kind="arm")
    if "swap" in config.arms and not config.others:
        raise ValueError("--arms swap needs --others")
    chosen = config.arms or ARMS
    return [arm for arm in ARMS if arm in chosen and (arm != "swap" or config.others)]


def layers_of(found: list[Source]) -> dict[str, list[float]]:
    """Returns the density of every layer, and of all, in each run."""
    rows: dict[str, list[float]] = {}
    for source in found:
        leaves = prunable_leaves(source.masks)
        counts = dict(zip(leaves, num_true(leaves.values()), strict=True))
        for path, count in counts.items():
            rows.setdefault(path, []).append(count / leaves[path].size)
        total = sum(counts.values()) / sum(leaf.size for leaf in leaves.values())
        rows.setdefault("total", []).append(total)
    return rows


def describe_layers(found: list[Source]) -> str:
    """Returns the table of densities, and the overlap of each run's masks with the first."""
    head = ["density", *(name_of(source.path) for source in found)]
    lines = [head, *([path, *map(_share, row)] for path, row in layers_of(found).items())]
    shared = ["overlap with the first"]
    chance = ["of random masks"]
    for source in found:
        shared.append(_share(float(jaxsparse.overlap(found[0].masks, source.masks).total)))
        chance.append(_share(random_overlap(found[0].masks, source.masks)))
    return "\n".join(text_table([*lines, shared, chance]))


def random_overlap(a: Any, b: Any) -> float:
    """Returns the overlap of random masks with the densities of a and b, in expectation.

    >>> half = {"kernel": np.arange(16).reshape(4, 4) < 8}
    >>> round(random_overlap(half, half), 4)
    0.3333
    """
    both = either = 0.0
    ours, theirs = prunable_leaves(a), prunable_leaves(b)
    for path, mask in ours.items():
        p, q = (float(np.mean(jax.device_get(m))) for m in (mask, theirs[path]))
        both += p * q * mask.size
        either += (p + q - p * q) * mask.size
    return both / either if either else 1.0


def name_of(path: Path) -> str:
    """Returns a short name of a run's folder; those of rounds have the seed's folder before it."""
    parts = path.absolute().parts
    return "-".join(parts[-3:]) if parts[-1].startswith("round") else parts[-1]


def _share(value: float) -> str:
    return f"{value:.4f}"


def describe(summary: dict[str, Any]) -> str:
    """Returns both tables of a summary."""
    said = "accuracy in %: mean ± sd (draws)"
    table = report.describe_arms(summary["arms"], heading="active")
    return "\n".join([table, said, "", summary["table"], f"folder  {summary['out']}"])


if __name__ == "__main__":
    sys.exit(cli.run(main, Config, sys.argv[1:]))
