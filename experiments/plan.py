r"""Prints the plan of a sparse run, without data or training: every event, each layer, FLOPs.

    python experiments/plan.py --model=resnet50 --schedule=rigl --sparsity=0.8

The networks are those for ImageNet and those of Fashion-MNIST. `cifar.py --plan` plans those for
CIFAR, and `imagenet.py --dry_run` measures a step too.

The FLOPs of training and of inference are given over those of the dense network, as in papers on
sparse training. RigL's own formula, which gives 0.4157 here, has one event in 101 steps up to the
end: --update_interval=101 --stop_step=32000. GMP as RigL's paper compares with it, with a dense
first convolution:

    python experiments/plan.py --model=resnet50 --schedule=gmp --sparsity=0.8 --scope=layer \
        --distribution=uniform --dense_layers=^conv1/ --update_interval=1000 --start_step=10000 \
        --stop_step=25000

If one threshold over all layers decides (GMP, GraNet), layers and FLOPs are estimates from the
initial weights, 8 to 36 % above GraNet's published multipliers (see README.md). The FLOPs of
training follow from those of the trained network, if a paper or a summary.json says them:
--schedule=granet --test_flops=0.28 gives the published 0.34.
"""

import dataclasses
import sys
from collections.abc import Callable
from typing import Annotated

import jax
import jax.numpy as jnp
import tyro
from flax import linen as nn

from experiments import fashion_mnist
from experiments.options import cli, flags, tricks
from experiments.options.schedules import AT_INIT, make_method, plan_of
from experiments.records import cost
from jaxsparse import Method, sparse_flops, training_flops
from jaxsparse.checks import check_in
from jaxsparse.nn import resnet
from jaxsparse.plan import Plan

# Name to (function that makes the network, shape of its input).
MODELS: dict[str, tuple[Callable[[], nn.Module], jax.ShapeDtypeStruct]] = {
    "resnet34": (lambda: resnet(34), jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)),
    "resnet50": (lambda: resnet(50), jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)),
    **{name: (make, fashion_mnist.IMAGE) for name, make in fashion_mnist.MODELS.items()},
}


@flags.own_first
@dataclasses.dataclass(frozen=True)
class Config(flags.Tricks, flags.Pruning):
    """Prints the plan of a sparse training run: every event, each layer, and the FLOPs."""

    model: str = "resnet50"
    """resnet34 or resnet50 (v1.5) as for ImageNet, at 224 x 224; lenet5 or lenet_300_100."""
    schedule: str = "rigl"
    """dense, static, gmp, set, rigl, set_itop, rigl_itop, snfs, granet, granet_st or east."""
    sparsity: float = 0.8
    """Share of the prunable weights that are 0 at the end, in [0, 1)."""
    steps: int = 32_000
    """Number of optimizer steps; RigL's ImageNet runs have 32,000 steps of 4,096 images."""
    count_dense_gradient: Annotated[bool, tyro.conf.FlagConversionOff] = True
    """Count the gradient of inactive weights in training. GraNet's published numbers do not."""
    test_flops: cli.OptionalFloat = None
    """Inference FLOPs of the trained network over those of the dense one, in (0, 1], if they are
    known. The training FLOPs of a method that prunes over all layers then follow from them, in
    place of the estimate."""


def main(config: Config) -> None:
    """Prints the plan."""
    make, image = MODELS[cli.nearest(config.model, MODELS, kind="model")]
    model = tricks.with_tricks(make(), config)
    tricks.say_if_it_shares_nothing(config, model)
    plan = plan_of(
        method_of(config, model, image),
        *cost.shapes_and_flops(model, image),
        count_dense_gradient=config.count_dense_gradient,
    )
    lines = str(plan).splitlines()
    if config.test_flops is not None:
        lines[1] = (  # replaces the line of the estimates
            f"FLOPs: training {train_flops_ratio(plan, config.test_flops):.4f} of dense, inference "
            f"{config.test_flops:g} as given; the layers and FLOPs below are estimates without it"
        )
    phase = tricks.phase_of(config, config.steps)
    found = cost.extras(model, image, phase, None, plan.rows[-1].num_active)
    print("\n".join([*lines, *(["", *cost.describe_extras(found)] if found else [])]))


def method_of(config: Config, model: nn.Module, image: jax.ShapeDtypeStruct) -> Method:
    """Returns the method that the flags ask for."""
    sparsity = config.sparsity
    if config.schedule != "dense":  # dense has no sparsity
        sparsity = tricks.sparsity_of(model, image, sparsity)
    options = flags.pruning_options(config)
    scores = config.init_masks or (config.schedule if config.schedule in AT_INIT else None)
    if scores is not None and config.scope != "layer":
        raise ValueError(
            f"scores of the initial weights ({scores}) decide what each layer has, and this plan "
            f"knows shapes alone; take --scope=layer, or --plan of fashion_mnist.py or cifar.py"
        )
    return make_method(config.schedule, sparsity=sparsity, steps=config.steps, **options)


def train_flops_ratio(plan: Plan, test_flops: float) -> float:
    """Returns training FLOPs over those of dense training, from the inference FLOPs at the end.

    The masks of the start are known, hence their forward FLOPs. From there forward FLOPs move to
    those of the end in proportion to the density. For example, GraNet's cubic schedule has a mean
    of 1/4; from a dense start over 30 of 100 epochs it gives test_flops + 0.075 (1 - test_flops).

    Args:
      plan: the plan of a method that prunes over all layers, with FLOPs.
      test_flops: forward FLOPs of the final network over those of the dense one, in (0, 1].

    Raises:
      ValueError: `test_flops` is out of range, or the plan knows the weights of each layer.
    """
    if not plan.layers_are_estimates or plan.flops is None:
        raise ValueError(f"--test_flops needs pruning over all layers; {plan.method} has none")
    check_in("test_flops", test_flops, "(0, 1]")
    start, end = plan.rows[0], plan.rows[-1]
    known = {path: start.layers[path] / size for path, size in plan.sizes.items()}
    first = sparse_flops(plan.flops, known) / sum(plan.flops.values())
    span = start.density - end.density
    share = lambda row: (row.density - end.density) / span if span else 0.0
    # One layer stands for all layers: its density is the ratio of FLOPs.
    ratios = {row.step: {"": test_flops + share(row) * (first - test_flops)} for row in plan.rows}
    costs = training_flops({"": 1}, ratios, plan.total_steps, dense_gradient=plan.dense_gradient)
    return costs / training_flops({"": 1}, {0: {}}, plan.total_steps)


if __name__ == "__main__":
    sys.exit(cli.run(main, Config, sys.argv[1:]))
