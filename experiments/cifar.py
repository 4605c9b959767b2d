"""Sparse ResNets, wide ResNets and VGGs on CIFAR-10 and CIFAR-100, with the papers' recipes.

    python experiments/data/prepare.py cifar10 --data_dir=data
    python experiments/cifar.py --model=resnet20 --schedule=granet_st --sparsity=0.95

The full recipe takes 160 epochs, which need an accelerator. A shorter run, say --epochs=10, is the
same in small: the learning rate still falls at 1/2 and 3/4 of training, pruning still ends at 1/2,
and GraNet still has 56 mask updates.

Images are padded by 4 pixels on each side (reflected for CIFAR-10, zero for CIFAR-100), cropped at
random, and mirrored at random. GraNet trains on 45,000 images of CIFAR-10 and on all 50,000 of
CIFAR-100; RigL trains on all. The held-out 5,000 select the model here; without them the last model
is taken. Images at the end of an epoch that fill no batch are left out, so that an epoch has 351
steps, where GraNet's code has 352.
"""

import dataclasses
import functools
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from flax import linen as nn

from experiments import loop
from experiments.data import cifar10, cifar100
from experiments.data.augment import crop_and_flip
from experiments.data.dataset import Dataset, Split, hold_out
from experiments.data.pixels import normalise
from experiments.options import cli, flags, tricks
from experiments.options.gsm import with_gsm
from experiments.options.init_masks import reads_images
from experiments.options.length import check_one, num_steps
from experiments.options.schedules import make_method, make_scoring
from experiments.records import report
from experiments.training.recipes import RECIPES, Recipe, make_optimizer
from experiments.training.run import Run
from jaxsparse import Method
from jaxsparse.nn import VGG, WideResNet, cifar_resnet, resnet

NUM_TRAIN = 50_000
IMAGE = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)

# Constructors, called with num_classes and dtype.
MODELS: dict[str, Callable[..., nn.Module]] = {
    **{f"resnet{n}": functools.partial(cifar_resnet, n) for n in (8, 20, 32, 56)},
    **{f"resnet{n}": functools.partial(resnet, n, stem="cifar") for n in (18, 34, 101)},
    "resnet50": functools.partial(resnet, 50, stem="cifar", fc_bias=False),
    "resnet34_narrow": functools.partial(resnet, 34, width=16),
    "wrn22_2": functools.partial(WideResNet, 22, 2),
    **{f"vgg{n}": functools.partial(VGG, n) for n in (16, 19)},
}
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
# The loader, and the padding that GraNet's runs have.
DATASETS: dict[str, tuple[ModuleType, str]] = {
    "cifar10": (cifar10, "reflect"),
    "cifar100": (cifar100, "zero"),
}


@flags.own_first
@dataclasses.dataclass(frozen=True)
class Config(flags.Running, flags.Tricks, flags.Pruning):
    """Trains a sparse network on CIFAR and writes a folder with metrics, summary and plot."""

    model: str = "resnet20"
    """resnet8, resnet20, resnet32, resnet56 (16 to 64 channels), resnet18, resnet34, resnet50,
    resnet101 (64 to 512, as on ImageNet), resnet34_narrow (16 to 128 channels behind the stem of
    ImageNet, for small machines), wrn22_2, vgg16 or vgg19."""
    schedule: str = "granet_st"
    """dense, static, gmp, set, rigl, set_itop, rigl_itop, snfs, granet, granet_st, east or gsm. Or
    masks that scores of the initial weights choose once, over all layers: snip, grasp, synflow,
    magnitude or random."""
    sparsity: float = 0.95
    """Share of the prunable weights that are 0 at the end, at least 0 and below 1."""
    dataset: str = "cifar10"
    """cifar10 or cifar100."""
    data_dir: Path = Path("data")
    """Folder that prepare.py or TFDS has put the data set in."""
    seed: int = 0
    """Seed of the initial weights, the masks, the order of the data and its augmentation."""
    out: cli.OptionalPath = None
    """Folder of the run. Default: runs/DATA/MODEL-SCHEDULE-SPARSITY-stepsN-seedN."""
    plan: bool = False
    """Print every event of the run, its number of weights and its FLOPs, and stop."""

    recipe: cli.OptionalStr = None
    """granet (160 epochs, learning rate / 10 at 1/2 and 3/4), rigl (250 epochs, / 5 three times) or
    east (250 epochs, as granet, gradient cut to norm 1). It gives the flags below their defaults.
    Default: granet, with the schedule east its own."""
    epochs: cli.OptionalFloat = None
    """Length of the run, to which schedules adapt. Default: the recipe's."""
    steps: cli.OptionalInt = None
    """Length of the run in optimizer steps, in place of --epochs."""
    learning_rate: cli.OptionalFloat = None
    """At the start. Default: 0.1."""
    weight_decay: cli.OptionalFloat = None
    """L2, added to the gradient of every parameter. Default: 0.0005, with east 0.0001."""
    batch_size: cli.OptionalInt = None
    """Images a step. Default: 128."""
    val_fraction: cli.OptionalFloat = None
    """Share of the training set that is held out. Default: 0.1 of cifar10 with granet, of
    both with east, else 0."""
    augment: Annotated[bool, tyro.conf.FlagConversionOff] = True
    """Crop and mirror the training images at random."""
    dtype: str = "float32"
    """float32, or bfloat16 for mixed precision: parameters, norms' statistics and logits stay
    float32."""


def main(config: Config) -> None:
    """Runs the experiment, or prints its plan."""
    if config.plan:
        # Scores of images decide how many weights each layer has.
        needs_images = reads_images(config.schedule, config.init_masks)
        run = run_of(config, None if needs_images else blank(config))
        loop.check(run)
        tricks.say_if_it_shares_nothing(config, run.model)
        print(report.describe_plan(loop.with_masks(run), IMAGE), end="")
        return
    print(report.describe(train(config)))


def train(config: Config) -> dict[str, Any]:
    """Trains as the config says and returns the summary, with the folder as "out"."""
    tricks.say_if_it_shares_nothing(config, model_of(config))
    out = config.out or report.folder_of(data_of(config), cli.as_dict(config), steps_of(config))
    title = report.title_of(cli.as_dict(config))
    return loop.train(run_of(config), out, cli.as_dict(config), title=title) | {"out": out}


def run_of(config: Config, dataset: Dataset | None = None) -> Run:
    """Returns the run that the flags ask for; its data is read unless given."""
    recipe, (loader, mode), steps = recipe_of(config), dataset_of(config), steps_of(config)
    method = method_of(config)
    tx = with_gsm(make_optimizer(recipe, steps), config, method, recipe)
    return Run(
        model=model_of(config),
        method=method,
        tx=tricks.with_freezing(tx, config, method),
        dataset=dataset or loader.load(config.data_dir, val_fraction=val_fraction_of(config)),
        normalise=functools.partial(normalise, mean=loader.MEAN, std=loader.STD),
        augment=functools.partial(crop_and_flip, mode=mode) if config.augment else None,
        batch_size=recipe.batch_size,
        seed=config.seed,
        eval_every=config.eval_every,
        checkpoint_every=config.checkpoint_every,
        accumulate=config.accumulate,
        execution=config.execution or flags.DEFAULTS["execution"],
        phase=tricks.phase_of(config, steps),
        allow_cut=config.allow_cut,
        gradient_flow=config.gradient_flow,
        sparse_init=config.sparse_init,
        scoring=make_scoring(config.schedule, method, **flags.pruning_options(config)),
    )


def dataset_of(config: Config) -> tuple[ModuleType, str]:
    """Returns the loader of the data set, and the padding of its images."""
    return DATASETS[cli.nearest(config.dataset, DATASETS, kind="dataset")]


def data_of(config: Config) -> str:
    """Returns the name of the data that the run trains on."""
    return config.dataset


def blank(config: Config) -> Dataset:
    """Returns black images in place of the data set's, if only their number matters."""
    images = np.broadcast_to(np.uint8(0), (NUM_TRAIN, 32, 32, 3))
    every = Split(images, np.broadcast_to(np.int32(0), NUM_TRAIN))
    train, val = hold_out(every, val_fraction_of(config))
    return Dataset(config.dataset, train, val, train, dataset_of(config)[0].NUM_CLASSES)


def model_of(config: Config) -> nn.Module:
    """Returns the network that the flags ask for."""
    make = MODELS[cli.nearest(config.model, MODELS, kind="model")]
    dtype = DTYPES[cli.nearest(config.dtype, DTYPES, kind="dtype")]
    model = make(num_classes=dataset_of(config)[0].NUM_CLASSES, dtype=dtype)
    return tricks.with_tricks(model, config)


def recipe_of(config: Config) -> Recipe:
    """Returns the recipe, with the changes that the flags ask for."""
    named = config.recipe or ("east" if config.schedule == "east" else "granet")
    recipe = RECIPES[cli.nearest(named, RECIPES, kind="recipe")]
    names = ("epochs", "learning_rate", "weight_decay", "batch_size")
    given = {name: getattr(config, name) for name in names if getattr(config, name) is not None}
    return recipe._replace(**given)


def val_fraction_of(config: Config) -> float:
    """Returns the share of the training images that is held out."""
    if config.val_fraction is not None:
        return config.val_fraction
    return recipe_of(config).held_out.get(config.dataset, 0.0)


def steps_of(config: Config) -> int:
    """Returns the number of optimizer steps of the run.

    Raises:
      ValueError: --steps and --epochs are both given, the run has no step or too many, or an
        epoch has no step.
    """
    check_one(config.steps, config.epochs)
    recipe, num_train = recipe_of(config), len(blank(config).train.labels)
    return num_steps(config.steps, recipe.epochs, recipe.batch_size, num_train)


def method_of(config: Config) -> Method:
    """Returns the method that the flags ask for."""
    sparsity = config.sparsity
    if config.schedule != "dense":  # dense ignores the sparsity
        sparsity = tricks.sparsity_of(model_of(config), IMAGE, sparsity)
    return make_method(
        config.schedule,
        sparsity=sparsity,
        steps=steps_of(config),
        **flags.pruning_options(config),
    )


if __name__ == "__main__":
    sys.exit(cli.run(main, Config, sys.argv[1:], going_on=flags.going_on))
