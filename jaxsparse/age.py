"""Adam's bias correction by the age of each weight instead of the age of the run."""

import math
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxsparse.checks import check_in
from jaxsparse.inside_optax import is_hole
from jaxsparse.masks import apply_mask
from jaxsparse.types import PyTree

OLD = 2**16 - 1
"""The largest age; a weight of this age counts as as old as the run."""


class ScaleByAgeState(NamedTuple):
    """State of `scale_by_age`.

    Attributes:
      steps: int32[], number of updates of the run.
      age: uint16, a tree like params: number of updates of each weight since it (re)started, at
        most 65535; 0 if it is inactive.
    """

    steps: jax.Array
    age: PyTree


def scale_by_age(b1: float = 0.9, b2: float = 0.999) -> optax.GradientTransformationExtraArgs:
    """Corrects the bias of Adam's moments by the age of each weight; chain it right after Adam.

        tx = jaxsparse.masked(optax.chain(
            optax.scale_by_adam(b1, b2),
            jaxsparse.scale_by_age(b1, b2),
            optax.add_decayed_weights(1e-2),
            optax.scale_by_learning_rate(1e-3),
        ))

    A weight that is grown at step t starts with moments of 0, as all weights do at step 0. Adam
    however divides them by 1 - b^t, which is close to 1, instead of 1 - b^a, where a is the number
    of updates that the weight has had. Under a constant gradient the first update is then
    (1 - b1) / sqrt(1 - b2) = 3.2 times the learning rate, and the 12th is 6.6 times. This
    transformation multiplies the update by

        (1 - b1^t) / (1 - b1^a) * sqrt((1 - b2^a) / (1 - b2^t))

    so that each weight takes the steps of Adam's algorithm 1 with its own t. A weight that was
    never regrown is as old as the run, and its updates equal optax's bit for bit. Adam's epsilon is
    divided by the second factor: on a new weight it acts as up to 1 / sqrt(1 - b2) = 32 times as
    large.

    Events need no extra call: the age has the shape of the parameter, so `apply_event` sets it to 0
    with the other slots. It takes two bytes per weight. A weight of age 65535 counts as as old as
    the run. With b2 up to 0.9997 this makes no difference in float32; with 0.9999 its updates grow
    by 0.07 % at that moment.

    Args:
      b1: decay of the first moment in the transformation before this one, in [0, 1).
      b2: decay of the second moment, in [0, 1).

    Returns:
      A transformation to chain right after `optax.scale_by_adam` or `optax.scale_by_belief` (not
      with nesterov=True, which corrects in another way), inside `masked`, which passes it the
      masks. It cannot go into or around `optax.adamw`: write the chain out as above. Without masks
      all weights have the age of the run, and it changes nothing.

    Raises:
      ValueError: a decay is not in [0, 1).

    Reference: Kingma and Ba, "Adam: A Method for Stochastic Optimization", 2015, algorithm 1.
    """
    b1, b2 = check_in("b1", b1, "[0, 1)"), check_in("b2", b2, "[0, 1)")

    def init(params: PyTree) -> ScaleByAgeState:
        age = jax.tree.map(lambda p: jnp.zeros(np.shape(p), jnp.uint16), params)
        return ScaleByAgeState(jnp.zeros((), jnp.int32), age)

    def update(
        updates: PyTree,
        state: ScaleByAgeState,
        params: PyTree | None = None,
        *,
        masks: PyTree | None = None,
        **extra: Any,
    ) -> tuple[PyTree, ScaleByAgeState]:
        del params, extra
        steps = jnp.asarray(optax.safe_increment(state.steps))
        age = jax.tree.map(lambda a: jnp.minimum(a, OLD - 1) + 1, state.age)
        if masks is not None:
            # optax.masked and optax.partition leave a hole where another optimizer works.
            keep = lambda a, mask: a if is_hole(a) else apply_mask(a, mask)
            age = jax.tree.map(keep, age, masks, is_leaf=is_hole)
        scale = lambda u, a: u * _correction(a, steps, b1, b2).astype(u.dtype)
        return jax.tree.map(scale, updates, age), ScaleByAgeState(steps, age)

    # The arguments have other names in optax's type of an update.
    return optax.GradientTransformationExtraArgs(init, cast(Any, update))


def _correction(age: jax.Array, steps: jax.Array, b1: float, b2: float) -> jax.Array:
    """float32, age's shape: the factor that corrects Adam's update; 1 where inactive."""

    def biased(decay: float, t: jax.Array) -> jax.Array:
        # exp of a product instead of decay ** t: with a power for every weight, AdamW's step took 5
        # times as long on CPU; with this it takes 1.3 to 1.6 times as long (2M and 8M weights).
        log = math.log(decay) if decay else -math.inf
        return 1.0 - jnp.exp(t.astype(jnp.float32) * log)

    first = biased(b1, steps) / biased(b1, age)
    second = biased(b2, age) / biased(b2, steps)
    as_old_as_the_run = age == jnp.minimum(steps, OLD).astype(age.dtype)
    return jnp.where(as_old_as_the_run | (age == 0), 1.0, first * jnp.sqrt(second))
