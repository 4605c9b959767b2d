"""How the papers train, in shares of the run: a shorter run is the same in small.

The recipes here are for CIFAR, those of `imagenet_recipes.py` for ImageNet.

Differs from EAST's code in: the initial weights of convolutions are normals of variance 2 / fan_out
as in all our networks, not PyTorch's default (`jaxsparse.nn.PYTORCH_INIT`); the second drop is at
3/4 of training, half an epoch after that code's 187th of 250; an epoch has 351 steps, not 352; and
in the norm that `max_norm` limits, see `Recipe`. As in that code, weight decay covers norms,
scalars of shared kernels and DyReLU too, and no flag excludes them. In `fashion_mnist.py` the
schedule `east` keeps GraNet's recipe, like all others: EAST's own is for CIFAR.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax


class Recipe(NamedTuple):
    """Stochastic gradient descent with momentum and a learning rate that falls in steps.

    Attributes:
      epochs: length of the published run.
      batch_size: images a step.
      learning_rate: at the start.
      drops: (share of the run, factor) pairs with ascending shares: from the step nearest to the
        share on, the rate is multiplied by the factor.
      held_out: share of the training images that is held out, by data set; 0 for all others.
      momentum: of SGD.
      nesterov: whether the momentum is Nesterov's.
      weight_decay: L2, added to the gradient of every parameter, norms and biases too.
      max_norm: a longer gradient is scaled to this norm before the decay is added; infinity leaves
        every gradient as it is. The norm is over active weights and all dense parameters. EAST's
        code takes it over all weights, which sparse execution does not know.
      warmup: share of the run in which the rate rises, in [0, 1).
      stairs: number of equal stairs of the warm-up, on which the rate is 1, 2, ... of stairs + 1
        parts; with 0 it rises at every step, from one part to all of them.
      decays_norms: whether weight decay covers norms and biases too, as it does kernels.
      label_smoothing: share of a label that is spread over all classes, in [0, 1).
    """

    epochs: float
    batch_size: int
    learning_rate: float
    drops: tuple[tuple[float, float], ...]
    held_out: Mapping[str, float] = {}
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4
    max_norm: float = math.inf
    warmup: float = 0.0
    stairs: int = 0
    decays_norms: bool = True
    label_smoothing: float = 0.0


RECIPES = {
    # Liu et al. 2021, VGG-19 and ResNet-50: divided by 10 after epochs 80 and 120.
    "granet": Recipe(160, 128, 0.1, ((1 / 2, 0.1), (3 / 4, 0.1)), {"cifar10": 0.1}),
    # Evci et al. 2020, WRN-22-2: 97,656 steps on all images, divided by 5 every 30,000.
    "rigl": Recipe(250, 128, 0.1, ((0.3072, 0.2), (0.6144, 0.2), (0.9216, 0.2))),
    # Li et al. 2025, ResNet-34 and ResNet-50: divided by 10 after epochs 125 and 187.
    "east": Recipe(
        250,
        128,
        0.1,
        ((1 / 2, 0.1), (3 / 4, 0.1)),
        {"cifar10": 0.1, "cifar100": 0.1},
        weight_decay=1e-4,
        max_norm=1.0,
    ),
}


def make_optimizer(recipe: Recipe, steps: int) -> optax.GradientTransformation:
    """Returns the optimizer of a run of so many steps.

    Raises:
      ValueError: a rate, momentum or decay that is negative or not finite; names the flag.

    >>> rate = learning_rate(RECIPES["granet"], 100)
    >>> [round(float(rate(step)), 4) for step in (0, 49, 50, 75, 99)]
    [0.1, 0.1, 0.01, 0.001, 0.001]
    """
    for flag in ("learning_rate", "momentum", "weight_decay"):
        value = getattr(recipe, flag)
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"--{flag}={value} must be in [0, inf)")
    clip = [] if math.isinf(recipe.max_norm) else [optax.clip_by_global_norm(recipe.max_norm)]
    decayed = None if recipe.decays_norms else kernels
    return optax.chain(
        *clip,
        optax.add_decayed_weights(recipe.weight_decay, decayed),
        optax.sgd(learning_rate(recipe, steps), momentum=recipe.momentum, nesterov=recipe.nesterov),
    )


def kernels(params: Any) -> Any:
    """Returns a tree like params: True for kernels, False for norms, biases and scalars."""
    return jax.tree.map(lambda x: x.ndim >= 2, params)


def learning_rate(recipe: Recipe, steps: int) -> optax.Schedule:
    """Returns the learning rate over the steps of a run."""
    drops: dict[int, float] = {}
    for share, factor in recipe.drops:
        step = round(steps * share)
        drops[step] = drops.get(step, 1.0) * factor  # two drops of a very short run may coincide
    rate = optax.piecewise_constant_schedule(recipe.learning_rate, drops)
    length = round(steps * recipe.warmup)
    if not length:
        return rate

    def rising(step: Any) -> jax.Array:
        if recipe.stairs:
            share = (step * recipe.stairs // length + 1) / (recipe.stairs + 1)
        else:
            share = (step + 1) / length
        return recipe.learning_rate * jnp.minimum(share, 1.0)

    return lambda step: jnp.where(jnp.asarray(step) < length, rising(step), rate(step))
