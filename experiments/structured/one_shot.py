"""Arms that remove channels of the trained network at once, and train what is left.

A criterion scores the weights; the plan of widths follows from the sums over channels. The network
is narrow from the first step on.
"""

from collections.abc import Callable
from typing import TypeAlias

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
from experiments.training.run import Run, RunState
from experiments.training.steps import loss_and_grads
from jaxsparse.nn import ResNet
from jaxsparse.nn.narrow import narrow_module
from jaxsparse.structured import (
    ChannelGroups,
    WidthPlan,
    channel_importance,
    plan_widths,
    random_importance,
)
from jaxsparse.structured.importance import Importance

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
    """The mean of (sum w g)^2 over batches, of the kernels that make a channel.

    Reference: Molchanov et al., "Importance estimation for neural network pruning", CVPR 2019,
    equation 8 with a group's kernels as the set, over training batches that follow the base.
    """
    run = setting.base._replace(model=reached.model)
    state, total = reached.state, dict.fromkeys((group.name for group in groups), 0.0)
    grads_of = jax.jit(lambda state, batch: _gradient(run, state, batch))
    batches = run.batches(reached.step)
    still = jax.tree.map(jnp.zeros_like, state.collections)
    for _ in range(setting.score_batches):
        products = jax.tree.map(jnp.multiply, state.params, grads_of(state, next(batches)))
        found = channel_importance(groups, {"params": products, **still}, normalised=False)
        total = {name: total[name] + worth**2 for name, worth in found.items()}
    means = {name: np.mean(worth) for name, worth in total.items()}
    return {name: worth / (means[name] or 1.0) for name, worth in total.items()}


def _gradient(run: Run, state: RunState, batch: object) -> object:
    return loss_and_grads(run, state.params, state.collections, state.step, batch)[1]  # pyright: ignore[reportArgumentType]


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
