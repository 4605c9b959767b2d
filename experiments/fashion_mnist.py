"""Sparse LeNets on Fashion-MNIST.

    python experiments/fashion_mnist.py --model=lenet5 --schedule=granet_st --sparsity=0.95

Without --data_dir it trains on the sample that comes with the repository: 4,500 training, 500
validation and 1,000 test images. The full set is fetched once by

    python experiments/data/prepare.py fashion_mnist --data_dir=DIR

The recipe is SGD with Nesterov momentum, whose learning rate is divided by 10 at 1/2 and 3/4 of
training, as in GraNet's CIFAR runs. Images are not augmented.
"""

import dataclasses
import functools
import sys
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from experiments import loop
from experiments.data import fashion_mnist
from experiments.data.dataset import Dataset
from experiments.options import cli, flags, tricks
from experiments.options.gsm import with_gsm
from experiments.options.schedules import make_method, make_scoring
from experiments.records import report
from experiments.training.recipes import RECIPES, Recipe, make_optimizer
from experiments.training.run import Run
from jaxsparse import Method
from jaxsparse.nn import LeNet5, LeNet300100

MODELS: dict[str, Callable[[], nn.Module]] = {
    "lenet_300_100": LeNet300100,
    "lenet_300_100_bn": functools.partial(LeNet300100, norm=True),
    "lenet5": LeNet5,
}
IMAGE = jax.ShapeDtypeStruct((1, 28, 28, 1), jnp.float32)
MEAN, STD = 0.2860, 0.3530  # of the training images, pixels in [0, 1]


@flags.own_first
@dataclasses.dataclass(frozen=True)
class Config(flags.Running, flags.Tricks, flags.Pruning):
    """Trains a sparse LeNet on Fashion-MNIST and writes a folder with metrics, summary and plot."""

    model: str = "lenet5"
    """lenet5 with 61470 prunable weights, lenet_300_100 with 266200, or lenet_300_100_bn, the same
    with batch norms."""
    schedule: str = "granet_st"
    """dense, static, gmp, set, rigl, set_itop, rigl_itop, snfs, granet, granet_st, east or gsm. Or
    masks that scores of the initial weights choose once, over all layers: snip, grasp, synflow,
    magnitude or random."""
    sparsity: float = 0.95
    """Share of the prunable weights that are 0 at the end, at least 0 and below 1."""
    steps: int = 2000
    """Optimizer steps."""
    seed: int = 0
    """Seed of the initial weights, the masks and the order of the data."""
    out: cli.OptionalPath = None
    """Folder of the run. Default: runs/DATA/MODEL-SCHEDULE-SPARSITY-stepsN-seedN."""
    data_dir: cli.OptionalPath = None
    """Folder with the full data set. Default: the sample in the repository."""
    plan: bool = False
    """Print every event of the run, its number of weights and its FLOPs, and stop."""

    learning_rate: float = 0.05
    """At the start."""
    momentum: float = 0.9
    """Nesterov momentum of SGD."""
    weight_decay: float = 5e-4
    """L2, added to the gradient of every parameter."""
    batch_size: int = 128
    """Images a step."""
    val_fraction: float = 0.1
    """Share of the training set that is held out for validation."""


def main(config: Config) -> None:
    """Runs the experiment, or prints its plan."""
    if config.plan:
        run = run_of(config)
        loop.check(run)
        tricks.say_if_it_shares_nothing(config, run.model)
        print(report.describe_plan(loop.with_masks(run), IMAGE), end="")
        return
    print(report.describe(train(config)))


def train(config: Config) -> dict:
    """Trains as the config says and returns the summary, with the folder as "out"."""
    tricks.say_if_it_shares_nothing(config, model_of(config))
    asked = cli.as_dict(config)
    out = config.out or report.folder_of(data_of(config), asked, config.steps)
    return loop.train(run_of(config), out, asked, title=report.title_of(asked)) | {"out": out}


def data_of(config: Config) -> str:
    """Returns the name of the data that the run trains on."""
    return "fashion_mnist_sample" if config.data_dir is None else "fashion_mnist"


def run_of(config: Config) -> Run:
    """Returns the run that the flags ask for, with its data."""
    data = fashion_mnist.load(config.data_dir, val_fraction=config.val_fraction)
    return lenet_run(config, model_of(config), data, recipe_of(config), normalise)


def lenet_run(
    config: Config,
    model: nn.Module,
    dataset: Dataset,
    recipe: Recipe,
    normalise: Callable[[jax.Array], jax.Array],
) -> Run:
    """Returns the run of a LeNet on images of 28 x 28, as the flags ask for it."""
    steps, method = config.steps, method_of(config)
    tx = with_gsm(make_optimizer(recipe, steps), config, method, recipe)
    return Run(
        model=model,
        method=method,
        tx=tricks.with_freezing(tx, config, method),
        dataset=dataset,
        normalise=normalise,
        batch_size=config.batch_size,
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


def model_of(config: Config) -> nn.Module:
    """Returns the network that the flags ask for."""
    model = MODELS[cli.nearest(config.model, MODELS, kind="model")]()
    return tricks.with_tricks(model, config)


def method_of(config: Config) -> Method:
    """Returns the method that the flags ask for."""
    return make_method(
        config.schedule,
        sparsity=config.sparsity,
        steps=config.steps,
        **flags.pruning_options(config),
    )


def recipe_of(config: Config) -> Recipe:
    """Returns GraNet's recipe with the rate, momentum, decay and batch size of the flags."""
    return RECIPES["granet"]._replace(
        learning_rate=config.learning_rate,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        batch_size=config.batch_size,
    )


def normalise(images: jax.Array, *, mean: float = MEAN, std: float = STD) -> jax.Array:
    """Maps uint8[...] pixels to float32[...] with mean 0 and standard deviation 1."""
    return (images.astype(jnp.float32) / 255.0 - mean) / std


if __name__ == "__main__":
    sys.exit(cli.run(main, Config, sys.argv[1:], going_on=flags.going_on))
