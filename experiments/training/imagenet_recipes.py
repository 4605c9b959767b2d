"""How the papers train ResNet-50 on ImageNet, and the results that they report.

Each recipe is in shares of the run and has its published batch size. Another batch size changes the
learning rate in proportion (Goyal et al., "Accurate, large minibatch SGD", 2017), so that
`--batch_size=4096` is a recipe for a pod.

    granet  128 images a step, Liu et al. 2021: 100 epochs of 10,009 steps
    rigl    4,096 images a step, Evci et al. 2020: 32,000 steps
    east    as granet, with the gradient cut to norm 1; see below

Differs from GraNet's code in: weight decay leaves out the norms of all shortcuts too, which that
code decays because their names lack "bn"; the initial weights, see `jaxsparse.nn.resnet`.
Differs from RigL's code in: the rate rises over five epochs, as the paper says; the code as it was
released starts with the full rate; an image is cut and flipped at random, not distorted in colour.
EAST's paper does not say how it trained on ImageNet, and its code is ITOP's there. Its recipe here
is GraNet's, with the norm of the gradient limited as in EAST's runs on CIFAR: it is ours, and no
published number belongs to it.
"""

import math
from typing import Any, NamedTuple

from experiments.training.recipes import Recipe

GRANET = Recipe(
    100,
    128,
    0.1,
    ((0.3, 0.1), (0.6, 0.1), (0.9, 0.1)),
    nesterov=False,
    weight_decay=1e-4,
    warmup=0.05,
    stairs=5,
    decays_norms=False,
    label_smoothing=0.1,
)
RIGL = Recipe(
    102.31,
    4096,
    1.6,
    ((0.2932, 0.1), (0.6842, 0.1), (0.8797, 0.1)),
    weight_decay=1e-4,
    warmup=0.0489,
    decays_norms=False,
    label_smoothing=0.1,
)

RECIPES = {"granet": GRANET, "rigl": RIGL, "east": GRANET._replace(max_norm=1.0)}


class Published(NamedTuple):
    """A published result of ResNet-50 on ImageNet.

    Attributes:
      name: of the method, as papers write it.
      flags: of `imagenet.py`, beside --sparsity.
      sparsity: final.
      accuracy: top-1 on the 50,000 validation images, in percent.
      train_flops: of training, over those of a dense run of 100 epochs; nan if not reported.
      test_flops: of inference, over the dense network's; nan if not reported.
      source: where the numbers stand.
    """

    name: str
    flags: str
    sparsity: float
    accuracy: float
    train_flops: float
    test_flops: float
    source: str


_EVENTS = {"update_interval": 100 / 32_000, "stop_step": 25 / 32}
_GRADUAL = {"update_interval": 4000 / 1_000_900, "stop_step": 0.3}
_SHARES: dict[str, dict[str, float]] = {
    "gmp": {"update_interval": 1 / 32, "start_step": 10 / 32, "stop_step": 25 / 32},
    "set": _EVENTS,
    "rigl": _EVENTS,
    "snfs": _EVENTS,
    "set_itop": {"update_interval": 1500 / 1_000_900},
    "rigl_itop": {"update_interval": 4000 / 1_000_900},
    "east": {"update_interval": 4000 / 1_000_900},
    "granet": _GRADUAL,
    "granet_st": _GRADUAL,
}
_UNIFORM = {"distribution": "uniform", "dense_layers": "^conv1/"}
_CHOICES: dict[str, dict[str, str]] = {"gmp": {"scope": "layer", **_UNIFORM}}


def recipe_name(schedule: str) -> str:
    """Returns the recipe that a method has without --recipe.

    >>> [recipe_name(name) for name in ("granet_st", "rigl", "rigl_itop", "east")]
    ['granet', 'rigl', 'granet', 'east']
    """
    if schedule == "east":
        return "east"
    return "rigl" if schedule in ("static", "set", "rigl", "snfs", "gmp") else "granet"


def published_options(schedule: str, steps: int) -> dict[str, Any]:
    """Returns the options that a method has on ImageNet, for a run of so many steps.

    They are RigL's for GMP (from 10,000 to 25,000 of 32,000 steps, uniform, the first convolution
    dense), SET, RigL and SNFS (every 100 steps up to 25,000), and GraNet's (every 4,000 of
    1,000,900 steps, pruning up to epoch 30 of 100) and ITOP's for the others.

    >>> published_options("rigl", 32_000)
    {'update_interval': 100, 'stop_step': 25000}
    >>> published_options("granet_st", 100_090)
    {'update_interval': 400, 'stop_step': 30027}
    """
    shares = _SHARES.get(schedule, {})
    found = {name: max(round(share * steps), 1) for name, share in shares.items()}
    return {**found, **_CHOICES.get(schedule, {})}


def scaled(recipe: Recipe, batch_size: int) -> Recipe:
    """Returns the recipe for another batch size, with a learning rate in proportion.

    >>> scaled(GRANET, 1024).learning_rate
    0.8
    """
    rate = recipe.learning_rate * batch_size / recipe.batch_size
    return recipe._replace(batch_size=batch_size, learning_rate=rate)


_RIGL_RECALLED = "Evci et al. 2020 (recalled)"
_RIGL = "Evci et al. 2020"
_GRANET_RECALLED = "Liu et al. 2021, GraNet (recalled)"
_UNIF = "--distribution=uniform --dense_layers=^conv1/"

PUBLISHED = (
    Published("dense", "--schedule=dense", 0.0, 76.8, 1.0, 1.0, _GRANET_RECALLED),
    Published("static, ERK", "--schedule=static", 0.8, 72.1, 0.42, 0.42, _RIGL_RECALLED),
    Published("static, ERK", "--schedule=static", 0.9, 67.7, 0.24, 0.24, _RIGL_RECALLED),
    Published("SET, uniform", f"--schedule=set {_UNIF}", 0.8, 72.9, 0.23, 0.23, _RIGL),
    Published("SET, uniform", f"--schedule=set {_UNIF}", 0.9, 69.6, 0.10, 0.10, _RIGL),
    Published("RigL, uniform", f"--schedule=rigl {_UNIF}", 0.8, 74.6, 0.23, 0.23, _RIGL),
    Published("RigL, uniform", f"--schedule=rigl {_UNIF}", 0.9, 72.02, 0.13, 0.13, _RIGL),
    Published("RigL, ERK", "--schedule=rigl", 0.8, 75.1, 0.42, 0.42, _RIGL),
    Published("RigL, ERK", "--schedule=rigl", 0.9, 73.0, 0.25, 0.24, _RIGL),
    Published("RigL-ITOP", "--schedule=rigl_itop", 0.8, 75.84, 0.42, 0.42, "Liu et al. 2021, ITOP"),
    Published("RigL-ITOP", "--schedule=rigl_itop", 0.9, 73.82, 0.25, 0.24, "Liu et al. 2021, ITOP"),
    Published("GMP", "--schedule=gmp", 0.8, 75.6, 0.56, 0.23, _RIGL_RECALLED),
    Published("GMP", "--schedule=gmp", 0.9, 73.9, 0.51, 0.10, _RIGL_RECALLED),
    Published("GraNet", "--schedule=granet", 0.8, 75.8, 0.34, 0.28, _GRANET_RECALLED),
    Published("GraNet", "--schedule=granet", 0.9, 74.2, 0.23, 0.16, _GRANET_RECALLED),
    Published("GraNet-ST", "--schedule=granet_st", 0.8, 76.0, 0.37, 0.35, _GRANET_RECALLED),
    Published("GraNet-ST", "--schedule=granet_st", 0.9, 74.5, 0.25, 0.20, _GRANET_RECALLED),
    Published(
        "GraNet-ST, 250 epochs",
        "--schedule=granet_st --epochs=250",
        0.9,
        76.4,
        math.nan,
        math.nan,
        "Liu et al. 2021, GraNet",
    ),
)
"""The rows of `docs/imagenet.md`. EAST is not among them: its paper gives no row that we have."""
