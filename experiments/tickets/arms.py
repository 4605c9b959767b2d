"""States to train a mask from: with its own initial weights, with others, shuffled, narrow.

Each arm changes one thing about a ticket, and keeps the recipe and the order of the data.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

import jaxsparse
from experiments import loop
from experiments.training.run import MASKS, WEIGHTS, Run, RunState
from jaxsparse.patterns import PatternRules
from jaxsparse.types import OptionError, PyTree

# Draws of arms are folded into the run's keys with these numbers and that of the draw.
REINIT, SHUFFLE = 101, 102


def static_run(run: Run, masks: PyTree, steps: int, pattern: PatternRules | None = None) -> Run:
    """Returns the run with given masks that never change."""
    method = jaxsparse.static(masks=masks, total_steps=steps, prunable=run.method.prunable)
    if pattern is not None:
        method = jaxsparse.with_pattern(method, pattern)
    return run._replace(method=method, masks=None)


def ticket(
    run: Run, early: RunState, masks: PyTree, opt_state: Any = None, **changes: Any
) -> RunState:
    """Returns the state that a ticket is trained from: m * theta_k, a fresh optimizer, step k.

    Batch norms' params and statistics are those of the early state too. The optimizer has fresh
    slots, and a schedule that goes on at step k.

    Args:
      run: with the masks' method.
      early: the state after step k.
      masks: bool, like params.
      opt_state: whose schedules go on; None is that of the early state.
      **changes: of the early state: other params, collections or step.
    """
    early = early.replace(**changes)
    old = early.opt_state if opt_state is None else opt_state
    params, opt_state = jaxsparse.rewound(early.params, masks, run.tx, old)
    return early.replace(
        method=run.method, params=params, opt_state=opt_state, masks=masks, explored=masks
    )


def reinitialised(run: Run, draw: int = 0) -> RunState:
    """Returns a dense state at step 0 with other initial weights than the run's own."""
    key = jax.random.fold_in(jax.random.fold_in(run.key(WEIGHTS), REINIT), draw)
    state = loop.create_state(run)
    image = run.normalise(jnp.asarray(run.dataset.train.images[:1]))
    variables = dict(jax.jit(run.model.init)(key, image))
    return state.replace(params=variables.pop("params"), collections=variables)


def shuffled(run: Run, masks: PyTree, pattern: PatternRules | None = None, draw: int = 0) -> PyTree:
    """Returns the masks shuffled within their layers."""
    key = jax.random.fold_in(jax.random.fold_in(run.key(MASKS), SHUFFLE), draw)
    return jaxsparse.shuffle_masks(key, masks, pattern=pattern, prunable=run.method.prunable)


def narrow(run: Run, num_params: int) -> tuple[Run, int]:
    """Returns the dense run of a narrower network, and the number of its parameters.

    All hidden widths shrink by one factor, and the number of parameters comes as near to
    `num_params` as whole widths allow.

    Args:
      run: of the dense network.
      num_params: parameters that the ticket has: active weights, biases and norms.

    Raises:
      ValueError: the network has no widths to change.
    """
    model: Any = run.model
    names = ("widths", "width")  # a ResNet has both, and its widths are None
    field = next((name for name in names if getattr(model, name, None) is not None), None)
    if field is None:
        name = type(model).__name__
        raise OptionError("model", name, "has no widths to change", "leave out the arm small_dense")
    widths = getattr(model, field)

    def scaled(share: float) -> Any:
        few = lambda width: max(round(width * share), 1)
        new = few(widths) if isinstance(widths, int) else tuple(map(few, widths))
        return model.clone(**{field: new})

    @functools.cache
    def size(model: Any) -> int:
        initial = functools.partial(loop.initial_variables, run._replace(model=model))
        return sum(math.prod(x.shape) for x in jax.tree.leaves(jax.eval_shape(initial)["params"]))

    low, high = 0.0, 1.0
    while high - low > 1e-3:
        middle = (low + high) / 2
        low, high = (low, middle) if size(scaled(middle)) > num_params else (middle, high)
    best = min((scaled(low), scaled(high)), key=lambda model: abs(size(model) - num_params))
    return run._replace(model=best), size(best)


def num_params(state: RunState) -> int:
    """Returns the parameters of a state that are trained: active weights and all others."""
    sizes = sum(x.size for x in jax.tree.leaves(state.params))
    inactive = [int((~mask).sum()) for mask in jax.tree.leaves(state.masks)]
    return sizes - sum(inactive)
