"""Arms that remove channels of the trained network at once, and train what is left.

A criterion scores the weights; the plan of widths follows from the sums over channels. The network
is narrow from the first step on.
"""

import functools
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from experiments.structured.setting import (
    Begun,
    Reached,
    Setting,
    Stretch,
    as_it_is,
    multiply_adds,
    traced,
)
from experiments.training.batches import Batch
from experiments.training.run import Run, RunState
from experiments.training.steps import loss_and_grads
from jaxsparse.nn import ResNet, narrow_module
from jaxsparse.paths import leaves_by_path, with_leaves
from jaxsparse.structured import (
    ChannelGroups,
    WidthPlan,
    channel_importance,
    mean_activations,
    plan_widths,
    random_importance,
)
from jaxsparse.structured.importance import Importance
from jaxsparse.types import PyTree

Criterion: TypeAlias = Callable[[Setting, Reached, ChannelGroups], Importance]


def by_l1(setting: Setting, reached: Reached, groups: ChannelGroups) -> Importance:
    """The sum of |w| over the kernels that make a channel (Li et al. 2017)."""
    del setting
    return channel_importance(groups, jax.tree.map(jnp.abs, reached.state.variables))


def by_norm_scale(setting: Setting, reached: Reached, groups: ChannelGroups) -> Importance:
    """The sum of |gamma| of a channel's norms (Liu et al. 2017), without their penalty."""
    del setting
    scores = jax.tree.map(jnp.abs, reached.state.variables)
    return channel_importance(groups, scores, of="norm")


def by_random(setting: Setting, reached: Reached, groups: ChannelGroups) -> Importance:
    """Uniform numbers from the seed of the run: the control of every criterion."""
    del reached
    return random_importance(groups, setting.base.seed)


def by_taylor(setting: Setting, reached: Reached, groups: ChannelGroups) -> Importance:
    """The mean over batches of (dL/dz)^2, where z = 1 is a gate behind a channel's norms.

    Its derivative is gamma dL/dgamma + beta dL/dbeta, summed over the norms that a sum couples. The
    filters before a norm say nothing: the loss does not change with their length, so their weights
    times gradients add up to 0.

    Reference: Molchanov et al., "Importance estimation for neural network pruning", CVPR 2019,
    equation 8, with gates behind batch norms as in section 3.3. Batches are those that follow the
    training of the base.
    """
    run = setting.base._replace(model=reached.model)
    state, total = reached.state, {group.name: np.zeros(group.width) for group in groups}
    gates_of = jax.jit(functools.partial(_gates, run))
    batches = run.batches(reached.step)
    for _ in range(setting.score_batches):
        scores = gates_of(state, next(batches))
        found = channel_importance(groups, scores, of="norm", normalised=False)
        total = {name: total[name] + worth**2 for name, worth in found.items()}
    return {name: worth / (float(worth.mean()) or 1.0) for name, worth in total.items()}


def _gates(run: Run, state: RunState, batch: Batch) -> PyTree:
    """Returns a tree like the variables, with the derivative of a norm's gates as its "scale"."""
    _, grads, _ = loss_and_grads(run, state.params, state.collections, state.step, batch)
    products = leaves_by_path(jax.tree.map(jnp.multiply, state.params, grads))
    gates: dict[str, Any] = {
        path: product + products[f"{path.removesuffix('scale')}bias"]
        for path, product in products.items()
        if path.endswith("/scale")
    }
    zeros = jax.tree.map(jnp.zeros_like, state.variables)
    return {**zeros, "params": with_leaves(zeros["params"], gates)}


def by_activation(setting: Setting, reached: Reached, groups: ChannelGroups) -> Importance:
    """The mean of |x| where the next layers read a channel, over training batches.

    Reference: Molchanov et al. 2017; see `mean_activations`. Batches are those that follow the
    training of the base, and the network is as at inference.
    """
    run, variables = setting.base, reached.state.variables
    measure = jax.jit(functools.partial(mean_activations, reached.model.apply))
    total = jax.tree.map(jnp.zeros_like, variables)
    batches = run.batches(reached.step)
    for _ in range(setting.score_batches):
        images, _ = next(batches).take()
        total = jax.tree.map(jnp.add, total, measure(variables, run.normalise(images)))
    return channel_importance(groups, total, of="input")


def plan(
    setting: Setting, model: ResNet, importance: Importance, *, target: float, ranking: str
) -> WidthPlan:
    """Returns the plan of widths that brings a network to a share of the full one's cost.

    Args:
      setting: has the image and `round_to`.
      model: at full width, or narrower.
      importance: of its channels.
      target: share of the multiply-adds at full width.
      ranking: which channels compete.

    Raises:
      ValueError: the smallest widths cost more.
    """
    groups, costs = traced(model, setting.image)
    share = target * multiply_adds(setting.model, setting.image) / costs({})
    return plan_widths(
        groups,
        importance,
        costs,
        target=min(share, 1.0),
        ranking=ranking,  # pyright: ignore[reportArgumentType]
        round_to=setting.round_to,
    )


def begin(
    setting: Setting, reached: Reached, stretch: Stretch, *, criterion: Criterion, ranking: str
) -> Begun:
    """Returns the training of the network that a plan leaves.

    Args:
      setting: of the study.
      reached: the trained base, or the end of the stretch before. After the base the optimizer
        starts afresh; later it goes on with what is left of its momentum.
      stretch: its target and its last step.
      criterion: what channels are worth.
      ranking: which channels compete.
    """
    groups, _ = traced(reached.model, setting.image)
    importance = criterion(setting, reached, groups)
    found = plan(setting, reached.model, importance, target=stretch.target, ranking=ranking)
    model = narrow_module(reached.model, found)
    assert isinstance(model, ResNet)
    variables = found.apply(reached.state.variables)
    run, state = setting.going_on(reached.step, stretch.last, model, variables, setting.tx)
    if reached.step > setting.base.steps:
        state = state.replace(opt_state=found.apply(reached.state.opt_state))
    return Begun(run, state, as_it_is)


def check(setting: Setting, *, ranking: str) -> list[str]:
    """Refuses a target that no plan reaches; the ValueError says the smallest share."""
    groups, _ = traced(setting.model, setting.image)
    same = {group.name: np.ones(group.width) for group in groups}
    plan(setting, setting.model, same, target=setting.target, ranking=ranking)
    return []
