"""The parts of a study that its arms share: the dense run of a seed, and how arms go on from it."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import jaxsparse
from experiments.training.recipes import Recipe
from experiments.training.run import MASKS, Between, Run, RunState
from jaxsparse.nn import ResNet
from jaxsparse.structured import ChannelGroups, CostTable, channel_groups, group_costs
from jaxsparse.types import PyTree


class ResRep(NamedTuple):
    """Flags of ResRep, in an arm's own steps; None for the defaults that `resrep.times_of` finds.

    Attributes:
      lasso: strength of the penalty.
      mask_start: no choice of masks up to here.
      mask_interval: steps between choices.
      mask_stop: no choice after it.
      mask_quota: rows that a choice masks in addition.
      snap: rest rows at 0 that would orbit it.
    """

    lasso: float | None = None
    mask_start: int | None = None
    mask_interval: int | None = None
    mask_stop: int | None = None
    mask_quota: int | None = None
    snap: bool = True


class Setting(NamedTuple):
    """A study of one seed.

    Attributes:
      name: of the network, a value of `--model`.
      base: the run of the dense network, which every arm goes on from.
      steps: of an arm, after those of the base.
      recipe: momentum and weight decay of all arms.
      rate: learning rate of all arms, over an arm's own steps.
      target: share of the multiply-adds that may be left, in (0, 1].
      ranking: which channels compete, see `jaxsparse.structured.plan_widths`.
      round_to: numbers of channels are multiples of it, or full.
      resrep: flags of ResRep.
      centripetal: epsilon of C-SGD; None for the smallest that is enough.
      narrowings: of the arm "gradual".
      score_batches: that Taylor scores read.
      timed_steps: training steps that are timed before and after; 0 for none.
    """

    name: str
    base: Run
    steps: int
    recipe: Recipe
    rate: optax.Schedule
    target: float
    ranking: str = "global"
    round_to: int = 1
    resrep: ResRep = ResRep()
    centripetal: float | None = None
    narrowings: int = 4
    score_batches: int = 10
    timed_steps: int = 10

    @property
    def image(self) -> jax.ShapeDtypeStruct:
        """Shape of an image as the network takes it, with a batch axis of 1."""
        size = self.base.dataset.train.images.shape[1:]
        return jax.eval_shape(self.base.normalise, jax.ShapeDtypeStruct((1, *size), jnp.uint8))

    @property
    def model(self) -> ResNet:
        """The network at full width."""
        assert isinstance(self.base.model, ResNet)
        return self.base.model

    @property
    def tx(self) -> optax.GradientTransformation:
        """Plain SGD, by which all arms train that do not say otherwise."""
        decayed = optax.add_decayed_weights(self.recipe.weight_decay)
        return optax.chain(decayed, self.sgd)

    @property
    def sgd(self) -> optax.GradientTransformation:
        """The same without weight decay."""
        momentum, nesterov = self.recipe.momentum, self.recipe.nesterov
        return optax.sgd(self.rate, momentum=momentum, nesterov=nesterov)

    def going_on(
        self,
        step: int,
        last: int,
        model: ResNet,
        variables: PyTree,
        tx: optax.GradientTransformation,
        between: tuple[Between, ...] = (),
    ) -> tuple[Run, RunState]:
        """Returns the run of another network from a step on, and the state that it starts with.

        Steps are counted on from those of the base, so the order of the data and augmentation go on
        too. The optimizer starts afresh, and its schedules at their first step.

        Args:
          step: completed steps.
          last: the last step of the run.
          model: to train.
          variables: of the model.
          tx: the optimizer, not yet masked.
          between: changes of the state between steps.
        """
        method = jaxsparse.dense(total_steps=last)
        run = self.base._replace(model=model, method=method, tx=tx, between=between)
        rest = {name: tree for name, tree in variables.items() if name != "params"}
        state = RunState.create(
            apply_fn=model.apply,
            params=variables["params"],
            collections=rest,
            tx=tx,
            method=method,
            key=run.key(MASKS),
            track_exploration=True,
        )
        return run, state.replace(step=jnp.int32(step))


class Reached(NamedTuple):
    """A network that has been trained.

    Attributes:
      model: the network.
      state: at the end of its training.
      test_accuracy: in [0, 1]; None if it is not known here.
    """

    model: ResNet
    state: RunState
    test_accuracy: float | None = None

    @property
    def step(self) -> int:
        """Completed steps."""
        return int(self.state.step)


class Narrow(NamedTuple):
    """A narrower network.

    Attributes:
      model: a `ResNet` without compactors.
      variables: of the model.
      is_merged: whether it was made after training, so that earlier networks of the training are
        none of its kind.
      notes: numbers for the summary.
    """

    model: ResNet
    variables: PyTree
    is_merged: bool = False
    notes: dict[str, Any] = {}


class Stretch(NamedTuple):
    """A stretch of an arm's training; most arms have one.

    Attributes:
      target: share of the multiply-adds that may be left at its end, in (0, 1].
      last: its last step.
    """

    target: float
    last: int


class Begun(NamedTuple):
    """A stretch of training that is about to start.

    Attributes:
      run: what to train.
      state: that it starts with.
      narrow: what the network at its end is made into.
    """

    run: Run
    state: RunState
    narrow: Callable[[Reached], Narrow]

    @property
    def model(self) -> ResNet:
        """The network that is trained."""
        assert isinstance(self.run.model, ResNet)
        return self.run.model


def as_it_is(reached: Reached) -> Narrow:
    """Returns a network that was trained at its final widths."""
    return Narrow(reached.model, reached.state.variables)


def traced(model: ResNet, image: jax.ShapeDtypeStruct) -> tuple[ChannelGroups, CostTable]:
    """Returns the groups of a network's channels, and its multiply-adds by their widths."""
    of_model: Any = model  # a module has a hash, and its type says that it has none
    return _traced(of_model, image)


@functools.cache
def _traced(model: Any, image: jax.ShapeDtypeStruct) -> tuple[ChannelGroups, CostTable]:
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    groups = channel_groups(model.apply, variables, image)
    return groups, group_costs(groups, jaxsparse.layer_flops(model.apply, variables, image))


def multiply_adds(model: ResNet, image: jax.ShapeDtypeStruct) -> int:
    """Returns the multiply-adds of an image, by the counter."""
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    return sum(jaxsparse.layer_flops(model.apply, variables, image).values()) // 2
