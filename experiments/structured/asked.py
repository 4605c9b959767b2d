"""The flags of `experiments/resrep.py`, and the runs that they ask for."""

import dataclasses
from typing import Annotated, Any

import optax
import tyro

import jaxsparse
from experiments.data.dataset import Dataset
from experiments.options import cli, flags
from experiments.options.length import check_one, num_steps
from experiments.options.schedules import said_in_flags
from experiments.structured import arms, networks
from experiments.structured.setting import ResRep, Setting
from experiments.training.recipes import RECIPES, Recipe, make_optimizer
from experiments.training.run import Run
from jaxsparse.checks import check_whole


@flags.own_first
@dataclasses.dataclass(frozen=True)
class Config:
    """Trains a ResNet, makes it narrower in several ways, and prints the table of all of them."""

    arms: str = "dense,resrep,csgd,l1"
    """Ways to a narrower network, with commas. Trained: resrep, csgd. Removed at once and trained
    on: l1, norm_scale, taylor, activation, random, isomorphic (l1, ranked so). In steps: gradual
    (l1). Control: dense."""
    target: float = 0.5
    """Share of the multiply-adds that is left, above 0 and at most 1."""
    model: str = "resnet20"
    """resnet8, resnet20, resnet32, resnet56, resnet110 (of CIFAR), resnet18, resnet34, resnet50 (of
    ImageNet, with CIFAR's stem)."""
    width: cli.OptionalInt = None
    """Channels of the first stage. Default: 16, and 64 for those of ImageNet."""
    dataset: str = "cifar10"
    """cifar10, cifar100 or fashion_mnist."""
    data_dir: cli.OptionalPath = None
    """Folder that prepare.py or TFDS has put the data set in. Default: data; with fashion_mnist the
    sample in the repository."""
    seed: int = 0
    """First seed, of initial weights and the order of the data."""
    seeds: int = 1
    """Number of seeds."""
    out: cli.OptionalPath = None
    """Folder of the study. Default: runs/structured/DATA/MODEL-wWIDTH-stepsB+A."""
    results: cli.OptionalPath = None
    """Folder to keep a result file of every finished arm in, of which --table --out=FOLDER and
    compare.py make tables too. Default: none are written."""
    plan: bool = False
    """Say what the arms will do, and train nothing."""
    table: bool = False
    """Print the table of the arms that have ended, and train nothing."""
    markdown: bool = False
    """Print the table in Markdown."""

    base_epochs: float = 160
    """Epochs of the base, in which the learning rate falls to a tenth at 1/2 and 3/4."""
    base_steps: cli.OptionalInt = None
    """Length of the base in optimizer steps, in place of --base_epochs."""
    epochs: cli.OptionalFloat = None
    """Epochs of every arm. Default: as the base."""
    steps: cli.OptionalInt = None
    """Length of every arm in optimizer steps, in place of --epochs."""
    learning_rate: float = 0.1
    """Learning rate of the base at its start."""
    arm_rate: float = 0.01
    """Learning rate of every arm at its start; it falls to 0 as a cosine."""
    weight_decay: float = 5e-4
    """L2, added to the gradient of every parameter; resrep and csgd decay kernels alone."""
    batch_size: int = 128
    """Images a step."""
    val_fraction: float = 0.1
    """Share of the training set that is held out."""
    augment: Annotated[bool, tyro.conf.FlagConversionOff] = True
    """Crop and mirror the training images at random."""
    eval_every: int = 500
    """Steps between validations."""
    checkpoint_every: int = 500
    """Steps between checkpoints, from which the same command goes on after a crash. 0 saves only
    one, at the end of each stage."""

    ranking: str = "global"
    """Which channels compete in one-shot arms: all (global), those of a group (layer, so that all
    groups lose the same share), or those of groups with the same structure (isomorphic)."""
    round_to: int = 1
    """Numbers of channels are multiples of it, or full; not of resrep."""
    narrowings: int = 4
    """Number of steps in which gradual removes channels."""
    score_batches: int = 10
    """Training batches that taylor and activation read."""
    lasso: cli.OptionalFloat = None
    """Penalty of resrep. Default: the published 1e-4, or the smallest that suffices for the run."""
    mask_start: cli.OptionalInt = None
    """resrep chooses no masks in so many steps of the arm. Default: 5 epochs, at most 1/20."""
    mask_interval: cli.OptionalInt = None
    """Steps between choices of masks. Default: 200, at most 1/100 of the arm."""
    mask_stop: cli.OptionalInt = None
    """No choice after this step of the arm. Default: 2/5 of it."""
    mask_quota: cli.OptionalInt = None
    """Rows that a choice masks in addition. Default: 4, or what meets any target in time."""
    snap: Annotated[bool, tyro.conf.FlagConversionOff] = True
    """Rest masked rows at 0 that would orbit it; not in the paper."""
    centripetal: cli.OptionalFloat = None
    """Epsilon of csgd. Default: the published 0.003, or the smallest that suffices for the run."""
    timed_steps: int = 10
    """Training steps that are timed at full width and narrow, at the end of an arm; 0 for none."""


def setting_of(config: Config, data: Dataset, seed: int) -> Setting:
    """Returns the study of a seed."""
    recipe, (base_steps, steps) = recipe_of(config), steps_of(config, data)
    return Setting(
        name=config.model,
        base=base_run(config, data, seed, recipe, base_steps),
        steps=steps,
        recipe=recipe,
        rate=optax.cosine_decay_schedule(config.arm_rate, steps),
        resrep=ResRep(**{name: getattr(config, name) for name in ResRep._fields}),
        **{name: getattr(config, name) for name in SHARED},
    )


SHARED = (
    "target",
    "ranking",
    "round_to",
    "centripetal",
    "narrowings",
    "score_batches",
    "timed_steps",
)
"""Flags that a `Setting` has under their names."""


def base_run(config: Config, data: Dataset, seed: int, recipe: Recipe, steps: int) -> Run:
    """Returns the run of the dense network."""
    of = networks.data_of(config.dataset)
    return Run(
        model=networks.model_of(config.model, config.width, data.num_classes),
        dataset=data,
        normalise=of.normalise,
        method=jaxsparse.dense(total_steps=steps),
        tx=make_optimizer(recipe, steps),
        batch_size=config.batch_size,
        seed=seed,
        eval_every=config.eval_every,
        augment=of.augment if config.augment else None,
        checkpoint_every=config.checkpoint_every,
    )


def recipe_of(config: Config) -> Recipe:
    """Returns GraNet's recipe, with the rate, decay and batch size of the flags."""
    return RECIPES["granet"]._replace(
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        batch_size=config.batch_size,
    )


def steps_of(config: Config, data: Dataset) -> tuple[int, int]:
    """Returns the steps of the base and of an arm."""
    check_one(config.steps, config.epochs)
    length = lambda steps, epochs: num_steps(
        steps, epochs, config.batch_size, len(data.train.labels)
    )
    base = length(config.base_steps, config.base_epochs)
    is_given = config.steps is not None or config.epochs is not None
    arm = length(config.steps, config.epochs) if is_given else base
    with said_in_flags():
        check_whole("base_steps", base, 1)
        check_whole("steps", arm, 2)
    return base, arm


def flags_of(config: Config, data: Dataset, seed: int) -> dict[str, Any]:
    """Returns the flags of a base, for its `config.json`."""
    names = (
        *("model", "dataset", "learning_rate", "weight_decay", "batch_size", "val_fraction"),
        *("augment", "eval_every", "checkpoint_every"),
    )
    base, _ = steps_of(config, data)
    return {
        **{name: getattr(config, name) for name in names},
        "schedule": "dense",
        "seed": seed,
        "width": networks.width_of(config.model, config.width),
        "base_steps": base,
    }


def arm_flags(config: Config, data: Dataset, name: str, arm: arms.Arm) -> dict[str, Any]:
    """Returns the flags that an arm has beside those of its base; None where at the default."""
    defaults = Config()
    given = {flag: getattr(config, flag) for flag in arm.takes}
    own = {flag: x if x != getattr(defaults, flag) else None for flag, x in given.items()}
    if "target" in own:
        own |= {"target": config.target, "sparsity": 1 - config.target}
    return {
        "schedule": name,
        "steps": steps_of(config, data)[1],
        "arm_rate": config.arm_rate,
        **own,
    }


def folder_name(name: str, asked: dict[str, Any]) -> str:
    """Returns the folder of an arm: its name, its target, and what else is asked for.

    >>> folder_name("l1", {"target": 0.5, "ranking": "layer", "round_to": 8})
    'l1-0.5-layer-round8'
    >>> folder_name("dense", {})
    'dense'
    """
    parts = [name]
    if asked.get("target") is not None:
        parts.append(f"{asked['target']:g}")
    if asked.get("ranking"):
        parts.append(asked["ranking"])
    if asked.get("round_to"):
        parts.append(f"round{asked['round_to']}")
    return "-".join(parts)
