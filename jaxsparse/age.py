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
"""Ages stop here, and a weight of this age is as old as the run."""


class ScaleByAgeState(NamedTuple):
    """State of `scale_by_age`.

    Attributes:
      steps: int32[], updates of the run.
      age: a tree like params of uint16: updates that each weight has had since it (re)started, at
        most 65535; 0 where it is inactive.
    """

    steps: jax.Array
    age: PyTree


def scale_by_age(b1: float = 0.9, b2: float = 0.999) -> optax.GradientTransformationExtraArgs:
    """Corrects the bias of Adam's moments by the age of each weight; goes right after Adam's part.

        tx = jaxsparse.masked(optax.chain(
            optax.scale_by_adam(b1, b2),
            jaxsparse.scale_by_age(b1, b2),
            optax.add_decayed_weights(1e-2),
            optax.scale_by_learning_rate(1e-3),
        ))

    A weight that is grown at step t starts with moments of 0, as all weights do at step 0, but Adam
    divides them by 1 - b^t, close to 1, and not by 1 - b^a, where a is the number of updates it has
    had. Under a constant gradient its first update is (1 - b1) / sqrt(1 - b2) = 3.2 times the
    learning rate, its 12th 6.6 times. This multiplies the update by

        (1 - b1^t) / (1 - b1^a) * sqrt((1 - b2^a) / (1 - b2^t))

    so that each weight takes the steps of Adam's algorithm 1 with its own t. A weight that was
    never regrown is as old as the run, and its updates stay optax's bit for bit. Adam's epsilon is
    divided by the second factor: it acts as up to 1 / sqrt(1 - b2) = 32 times as large on a weight
    that is new.

    An event needs nothing more: the age has the shape of the parameter, so that `apply_event` sets
    it to 0 with the other slots. It takes two bytes a weight. At an age of 65535 a weight counts as
    old as the run; with b2 up to 0.9997 no float32 can tell, with 0.9999 its updates grow by 0.07 %
    at that moment.

    Args:
      b1: decay of the first moment in the transformation before this one, in [0, 1).
      b2: decay of the second, in [0, 1).

    Returns:
      A transformation to chain right after `optax.scale_by_adam` or `optax.scale_by_belief` (not
      with nesterov=True, whose correction is another), inside `masked`, which hands it the masks.
      It cannot go into `optax.adamw` or around it: write the chain out, as above. Without masks all
      weights grow old together, and it changes nothing.

    Raises:
      ValueError: a decay outside [0, 1).

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
            # optax.masked and optax.partition leave a hole where another optimizer is at work.
            keep = lambda a, mask: a if is_hole(a) else apply_mask(a, mask)
            age = jax.tree.map(keep, age, masks, is_leaf=is_hole)
        scale = lambda u, a: u * _correction(a, steps, b1, b2).astype(u.dtype)
        return jax.tree.map(scale, updates, age), ScaleByAgeState(steps, age)

    # optax's type of an update names its arguments otherwise.
    return optax.GradientTransformationExtraArgs(init, cast(Any, update))


def _correction(age: jax.Array, steps: jax.Array, b1: float, b2: float) -> jax.Array:
    """float32, age's shape: by how much Adam's update falls short; 1 where inactive."""

    def biased(decay: float, t: jax.Array) -> jax.Array:
        # exp of a product and not decay ** t: with a power for every weight AdamW's step took 5
        # times as long on CPU, with this 1.3 to 1.6 times (2M and 8M weights).
        log = math.log(decay) if decay else -math.inf
        return 1.0 - jnp.exp(t.astype(jnp.float32) * log)

    first = biased(b1, steps) / biased(b1, age)
    second = biased(b2, age) / biased(b2, steps)
    as_old_as_the_run = age == jnp.minimum(steps, OLD).astype(age.dtype)
    return jnp.where(as_old_as_the_run | (age == 0), 1.0, first * jnp.sqrt(second))
