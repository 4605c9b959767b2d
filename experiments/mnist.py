"""Sparse LeNets on MNIST, by the recipe of the sparse momentum paper.

    python experiments/data/prepare.py mnist --data_dir=data
    python experiments/mnist.py --data_dir=data --schedule=snfs --sparsity=0.95

The recipe is that of the paper's code: 100 epochs of 540 steps of 100 images, SGD with Nesterov
momentum, a learning rate of 0.1 that is divided by 10 every 25,000 steps, and no augmentation. The
last tenth of the training images is held out. Weights start as PyTorch's layers do.

Reference: Dettmers and Zettlemoyer, "Sparse Networks from Scratch", 2019, and its code.
"""

import dataclasses
import functools
import sys
from pathlib import Path

from flax import linen as nn

from experiments import fashion_mnist, loop
from experiments.data import mnist
from experiments.options import cli, flags, tricks
from experiments.records import report
from experiments.training.recipes import Recipe
from experiments.training.run import Run
from jaxsparse.nn import PYTORCH_INIT, pytorch_bias, zero_bias

MODELS, IMAGE, method_of = fashion_mnist.MODELS, fashion_mnist.IMAGE, fashion_mnist.method_of
# Initialisers of kernels, and of biases.
INITS = {
    "pytorch": (PYTORCH_INIT, pytorch_bias),
    "he": (nn.initializers.he_normal(), zero_bias),
    "lecun": (nn.initializers.lecun_normal(), zero_bias),
}
normalise = functools.partial(fashion_mnist.normalise, mean=mnist.MEAN, std=mnist.STD)
DROP_EVERY = 25_000  # steps, of which the published run has 54,000


@flags.own_first
@dataclasses.dataclass(frozen=True)
class Config(fashion_mnist.Config):
    """Trains a sparse LeNet on MNIST and writes a folder with metrics, summary and plot."""

    model: str = "lenet_300_100"
    """lenet_300_100 with 266200 prunable weights, lenet_300_100_bn, the same with batch norms, or
    lenet5 with 61470."""
    schedule: str = "snfs"
    """dense, static, gmp, set, rigl, set_itop, rigl_itop, snfs, granet, granet_st, east or gsm. Or
    masks that scores of the initial weights choose once, over all layers: snip, grasp, synflow,
    magnitude or random."""
    sparsity: float = 0.95
    """Share of the prunable weights that are 0 at the end, at least 0 and below 1."""
    steps: int = 54_000
    """Optimizer steps; the learning rate falls after 25,000 and 50,000 of 54,000."""
    seed: int = 0
    """Seed of the initial weights, the masks and the order of the data."""
    out: cli.OptionalPath = None
    """Folder of the run. Default: runs/mnist/MODEL-SCHEDULE-SPARSITY-stepsN-seedN."""
    data_dir: Path = Path("data")  # pyright: ignore[reportIncompatibleVariableOverride]
    """Folder that prepare.py or TFDS has put mnist in."""
    weights: str = "pytorch"
    """Initial weights: pytorch (kernels and biases uniform in +-1 / sqrt(fan_in)), or kernels by he
    (normal, variance 2 / fan_in) or lecun (1 / fan_in) with biases of 0."""

    learning_rate: float = 0.1
    """At the start."""
    batch_size: int = 100
    """Images a step."""
    eval_every: int = 540
    """Steps between validations."""
    checkpoint_every: int = 5400
    """Steps between checkpoints, from which the same command goes on after a crash. 0 saves only
    one, at the end."""


def main(config: Config) -> None:
    """Runs the experiment, or prints its plan."""
    run = run_of(config)
    tricks.say_if_it_shares_nothing(config, run.model)
    if config.plan:
        loop.check(run)
        print(report.describe_plan(loop.with_masks(run), fashion_mnist.IMAGE), end="")
        return
    print(report.describe(train(config, run)))


def train(config: Config, run: Run) -> dict:
    """Trains as the config says and returns the summary, with the folder as "out"."""
    asked = cli.as_dict(config)
    out = config.out or report.folder_of(data_of(config), asked, config.steps)
    return loop.train(run, out, asked, title=report.title_of(asked)) | {"out": out}


def data_of(config: Config) -> str:
    """Returns the name of the data that the run trains on."""
    return mnist.NAME


def run_of(config: Config) -> Run:
    """Returns the run that the flags ask for, with its data."""
    data = mnist.load(config.data_dir, val_fraction=config.val_fraction)
    return fashion_mnist.lenet_run(config, model_of(config), data, recipe_of(config), normalise)


def model_of(config: Config) -> nn.Module:
    """Returns the network that the flags ask for."""
    kernel, bias = INITS[cli.nearest(config.weights, INITS, kind="weights")]
    return fashion_mnist.model_of(config).clone(kernel_init=kernel, bias_init=bias)


def recipe_of(config: Config) -> Recipe:
    """Returns the paper's recipe with the rate, momentum, decay and batch size of the flags."""
    drops = ((DROP_EVERY / 54_000, 0.1), (2 * DROP_EVERY / 54_000, 0.1))
    recipe = fashion_mnist.recipe_of(config)
    return recipe._replace(epochs=100, drops=drops)


if __name__ == "__main__":
    sys.exit(cli.run(main, Config, sys.argv[1:], going_on=flags.going_on))
