"""Sparse LeNets on Fashion-MNIST.

    python experiments/fashion_mnist.py --model=lenet5 --schedule=granet_st --sparsity=0.95

Without --data_dir it trains on the sample that comes with the repository: 4,500 training, 500
validation and 1,000 test images. The full set is fetched once by

    python experiments/data/prepare.py fashion_mnist --data_dir=DIR

Recipe: SGD with Nesterov momentum, learning rate divided by 10 at 1/2 and 3/4 of training, as in
GraNet's CIFAR runs; no augmentation.
"""

import dataclasses
import math
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from experiments import cli, cost, flags, loop
from experiments.data import fashion_mnist
from experiments.methods import make_method
from experiments.run import Run
from jaxsparse import Method
from jaxsparse.nn import LeNet5, LeNet300100

MODELS = {"lenet_300_100": LeNet300100, "lenet5": LeNet5}
MEAN, STD = 0.2860, 0.3530  # of the training images, pixels in [0, 1]


@flags.own_first
@dataclasses.dataclass(frozen=True)
class Config(flags.Running, flags.Pruning):
    """Trains a sparse LeNet on Fashion-MNIST and writes a folder with metrics, summary and plot."""

    model: str = "lenet5"
    """lenet5 with 61470 prunable weights or lenet_300_100 with 266200."""
    schedule: str = "granet_st"
    """dense, static, gmp, set, rigl, set_itop, rigl_itop, snfs, granet or granet_st."""
    sparsity: float = 0.95
    """Share of the prunable weights that are 0 at the end, at least 0 and below 1."""
    steps: int = 2000
    """Optimizer steps."""
    seed: int = 0
    """Of the initial weights, the masks and the order of the data."""
    out: cli.OptionalPath = None
    """Folder of the run. Default: runs/DATA/MODEL-SCHEDULE-SPARSITY-stepsN-seedN."""
    data_dir: cli.OptionalPath = None
    """Folder with the full data set. Default: the sample in the repository."""
    plan: bool = False
    """Print every event of the run, its number of weights and its FLOPs, and stop."""

    learning_rate: float = 0.05
    """At the start."""
    momentum: float = 0.9
    """Of SGD, with Nesterov."""
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
        print(run.method.plan(*shapes_and_flops(run.model)))
        return
    print(describe(train(config)))


def train(config: Config) -> dict:
    """Trains as the config says and returns the summary, with the folder as "out"."""
    out = folder_of(config)
    title = f"{config.model} {config.schedule}"
    if config.schedule != "dense":
        title += f" {config.sparsity:g}"
    return loop.train(run_of(config), out, cli.as_dict(config), title=title) | {"out": out}


def run_of(config: Config) -> Run:
    """The run that the flags ask for, with its data."""
    model = MODELS[cli.nearest(config.model, MODELS, kind="model")]()
    return Run(
        model=model,
        method=method_of(config),
        tx=optimizer(config),
        dataset=fashion_mnist.load(config.data_dir, val_fraction=config.val_fraction),
        normalise=normalise,
        batch_size=config.batch_size,
        seed=config.seed,
        eval_every=config.eval_every,
        checkpoint_every=config.checkpoint_every,
        accumulate=config.accumulate,
    )


def shapes_and_flops(model: nn.Module) -> tuple[Any, dict[str, int]]:
    """The shapes of the model's parameters, and its dense forward FLOPs an image by path."""
    return cost.shapes_and_flops(model, jax.ShapeDtypeStruct((1, 28, 28, 1), jnp.float32))


def method_of(config: Config) -> Method:
    """The method that the flags ask for."""
    return make_method(
        config.schedule,
        sparsity=config.sparsity,
        steps=config.steps,
        **flags.pruning_options(config),
    )


def optimizer(config: Config) -> optax.GradientTransformation:
    """SGD with Nesterov momentum and L2; the learning rate falls tenfold at 1/2 and 3/4."""
    for flag in ("learning_rate", "momentum", "weight_decay"):
        value = getattr(config, flag)
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"--{flag} {value} must be a finite number of at least 0")
    drops = {config.steps // 2: 0.1, config.steps * 3 // 4: 0.1}
    learning_rate = optax.piecewise_constant_schedule(config.learning_rate, drops)
    return optax.chain(
        optax.add_decayed_weights(config.weight_decay),
        optax.sgd(learning_rate, momentum=config.momentum, nesterov=True),
    )


def normalise(images: jax.Array) -> jax.Array:
    """uint8[...] pixels to float32[...] of mean 0 and standard deviation 1."""
    return (images.astype(jnp.float32) / 255.0 - MEAN) / STD


def folder_of(config: Config) -> Path:
    """Where the run goes."""
    sparsity = "" if config.schedule == "dense" else f"-{config.sparsity:g}"
    name = f"{config.model}-{config.schedule}{sparsity}-steps{config.steps}-seed{config.seed}"
    data = "fashion_mnist_sample" if config.data_dir is None else "fashion_mnist"
    return config.out or Path("runs") / data / name


def describe(summary: dict) -> str:
    """A few lines that say what came out."""
    return "\n".join(
        [
            *(f"warning         {alarm}" for alarm in summary["alarms"]),
            f"test accuracy   {summary['test_accuracy']:.4f} at the end, "
            f"{summary['best_test_accuracy']:.4f} best by validation (step {summary['best_step']})",
            f"active weights  {summary['num_active']:,} of {summary['num_prunable']:,} "
            f"(sparsity {summary['sparsity']:.6g})",
            f"forward FLOPs   {summary['test_flops']:,.0f} an image, "
            f"{summary['test_flops_ratio']:.3f} of dense",
            f"training FLOPs  {summary['train_flops']:.4g}, "
            f"{summary['train_flops_ratio']:.3f} of dense",
            f"peak memory     {summary['peak_memory_mib']:,.0f} MiB of the "
            f"{summary['peak_memory_of']}",
            f"speed           {summary['steps_per_second']:.0f} steps a second",
            f"folder          {summary['out']}",
        ]
    )


if __name__ == "__main__":
    sys.exit(cli.run(main, Config, sys.argv[1:]))
