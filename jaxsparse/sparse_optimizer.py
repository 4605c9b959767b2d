"""An optimizer and a method in one: for training loops of one's own, over any tree of params.

    optimizer = jaxsparse.sparse_optimizer(method, optax.adam(1e-3))
    params, state = optimizer.init(params, key=key)

    @functools.partial(jax.jit, static_argnames="event")
    def step(params, state, batch, event):
        grads = jax.grad(loss)(params, batch)
        return optimizer.update(grads, state, params, event=event)

    for n in range(1, total_steps + 1):
        params, state = step(params, state, batch, event=method.is_due(n))

All that a method asks of a loop is in it: masks are applied, the gradient of every step is observed
(SNFS), the optimizer step is left out at the events of RigL, SET and SNFS, what an event does not
keep starts again at 0, frozen leaves stay as they are, and Flax's fp8 scales are overwritten.
`TrainState` is the same in Flax's clothes.
"""

from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer

from jaxsparse.axes import AxesByPath
from jaxsparse.comparable import comparable
from jaxsparse.event_counts import EventCounts, counted, event_notes, no_event
from jaxsparse.frozen import frozen_paths, leave_out
from jaxsparse.masks import apply_masks, check_masks, pruned_only
from jaxsparse.method import Method
from jaxsparse.metrics import Summary, check, summary
from jaxsparse.overwritten import trained_part, with_trained
from jaxsparse.paths import check_like, prunable_paths
from jaxsparse.patterns import check_pattern
from jaxsparse.transforms import apply_event, masked
from jaxsparse.types import EventMetrics, PyTree


class SparseState(NamedTuple):
    """All that changes beside params; a pytree of arrays.

    Attributes:
      step: int32[], completed steps, RigL's skipped ones included.
      masks: bool, the structure and shapes of params.
      opt_state: the state of the optimizer, without masks in it.
      observe_state: the state of `method.observe`.
      key: the key of all events; each folds in its step and the paths of the leaves.
      event_metrics: of the last event; zeros before the first one.
      events: how many events there were.
    """

    step: jax.Array
    masks: PyTree
    opt_state: PyTree
    observe_state: PyTree
    key: jax.Array
    event_metrics: EventMetrics
    events: EventCounts


class SparseOptimizer(NamedTuple):
    """What `sparse_optimizer` returns. Two of them that are made of equal parts are equal.

    Attributes:
      init: (params, *, key, masks=None) -> (params, state): draws the masks, or takes the given
        ones, and applies them.
      update: (grads, state, params, *, event=False, **tx_args) -> (params, state): one step, pure.
        `grads` is the dense gradient at params. `event` is a Python bool, `method.is_due(n)` for
        the n-th step, and static under `jit`. Further arguments go to the optimizer.
      method: the method, as it was given.
      tx: the optimizer, as it was given.
    """

    init: Callable[..., tuple[PyTree, SparseState]]
    update: Callable[..., tuple[PyTree, SparseState]]
    method: Method
    tx: optax.GradientTransformation

    def summary(
        self, params: PyTree, state: SparseState, axes: AxesByPath | None = None
    ) -> Summary:
        """The table per layer, and what of the method did not happen (waits for the device).

        `axes` is as in `jaxsparse.summary`.
        """
        frozen = frozen_paths(self.tx, params)
        method = leave_out(self.method, frozen, params)
        return run_summary(method, params, state, frozen, axes=axes)

    def check(self, params: PyTree, state: SparseState) -> None:
        """Raises a ValueError if an inactive weight or slot is not 0, or an event was forgotten."""
        frozen = frozen_paths(self.tx, params)
        check_run(leave_out(self.method, frozen, params), params, state)


def sparse_optimizer(method: Method, tx: optax.GradientTransformation) -> SparseOptimizer:
    """Joins a method and an optimizer, for a loop of one's own; see the top of this module.

    Args:
      method: chooses and changes the masks. Leaves that the optimizer never moves (see
        `frozen_paths`) are left as they are, and are not counted in the sparsity.
      tx: any optimizer that `masked` goes around, not yet masked.

    >>> import jaxsparse
    >>> method = jaxsparse.gmp(sparsity=0.5, total_steps=4, update_interval=2)
    >>> optimizer = sparse_optimizer(method, optax.sgd(0.1))
    >>> params, state = optimizer.init({"kernel": jnp.ones((2, 2))}, key=jax.random.key(0))
    >>> for n in range(1, 5):
    ...     params, state = optimizer.update(params, state, params, event=method.is_due(n))
    >>> int((params["kernel"] != 0).sum()), int(state.step), int(state.events.num_taken)
    (2, 4, 1)
    """
    return SparseOptimizer(_init_of(method, tx), _update_of(method, tx), method, tx)


@comparable
def _init_of(method: Method, tx: optax.GradientTransformation) -> Any:
    def init(
        params: PyTree, *, key: jax.Array, masks: PyTree | None = None
    ) -> tuple[PyTree, SparseState]:
        frozen = frozen_paths(tx, params)
        return start(leave_out(method, frozen, params), masked(tx), params, key, masks)

    return init


@comparable
def _update_of(method: Method, tx: optax.GradientTransformation) -> Any:
    def update(
        grads: PyTree, state: SparseState, params: PyTree, *, event: bool = False, **tx_args: Any
    ) -> tuple[PyTree, SparseState]:
        here = method
        if _asked(event):  # masks of other steps are handed on, whatever leaves they are of
            here = leave_out(method, frozen_paths(tx, params), params)
        return take_step(here, masked(tx), grads, state, params, event=event, **tx_args)

    return update


def start(
    method: Method,
    tx: optax.GradientTransformation,
    params: PyTree,
    key: jax.Array,
    masks: PyTree | None,
) -> tuple[PyTree, SparseState]:
    """Returns params and the state that training starts with.

    Args:
      method: chooses the masks.
      tx: `masked` around the optimizer.
      params: any pytree of arrays.
      key: of the initial masks and all events.
      masks: in place of `method.init`; see `TrainState.create`.

    Raises:
      ValueError: masks that do not fit params or lack the method's pattern, or that it cannot draw.
    """
    if masks is None:
        masks = method.init(key, params)
    else:
        masks = check_masks(masks, params)
        _check_given(masks, method)
    masks = pruned_only(masks, method.prunable)
    params = apply_masks(params, masks)
    # Buffers of its own throughout: a step that donates the state must neither donate one buffer
    # twice nor delete what the caller still holds.
    own = lambda x: jnp.array(x, copy=True) if isinstance(x, jax.Array) else x
    state = SparseState(
        step=jnp.zeros((), jnp.int32),
        masks=masks,
        opt_state=tx.init(trained_part(params)),  # Prodigy and others keep the initial params there
        observe_state=method.observe.init(params),
        key=key,
        event_metrics=no_event(len(prunable_paths(params, method.prunable))),
        events=EventCounts(jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32)),
    )
    return params, jax.tree.map(own, state)


def take_step(
    method: Method,
    tx: optax.GradientTransformation,
    grads: PyTree,
    state: SparseState,
    params: PyTree,
    *,
    event: bool,
    **tx_args: Any,
) -> tuple[PyTree, SparseState]:
    """One optimizer step, followed by a mask update where `event`; pure.

    The event sees the gradient that the step was taken with, at the weights before it. A method
    with `skip_step` (RigL) leaves the optimizer step out there: the step count advances, the
    optimizer's own counts (of its learning-rate schedule, say) do not.

    An event on a step whose gradient is not finite changes nothing but `events.num_left_out`. The
    next event of the method makes up for it. Under loss scaling, the next step can: ask for

        waits = method.is_due(n - 1) and bool(state.event_metrics.num_left_out)
        event = method.is_due(n) or waits

    Args:
      method: chooses the masks.
      tx: `masked` around the optimizer.
      grads: the dense gradient at params.
      state: before the step.
      params: before the step, masked.
      event: Python bool.
      **tx_args: of the optimizer's update, such as `value`.

    Raises:
      ValueError: trees that differ, or an `event` that is traced.
    """
    step = state.step + 1
    grads = check_like(grads, params, name="grads", like="params")
    signal, observe_state = method.observe.update(grads, state.observe_state, params)
    trained, opt_state = trained_part(params), state.opt_state
    if not (_asked(event) and method.skip_step):
        tx = optax.with_extra_args_support(tx)  # it is one; the type does not say so
        masks = trained_part(state.masks)
        updates, opt_state = tx.update(
            trained_part(grads), opt_state, trained, masks=masks, **tx_args
        )
        trained = optax.apply_updates(trained, updates)
    after = with_trained(params, grads, trained)
    state = state._replace(step=step, opt_state=opt_state, observe_state=observe_state)
    return _with_event(method, tx, signal, state, after) if event else (after, state)


def _asked(event: bool) -> bool:
    if isinstance(event, Tracer):
        raise ValueError(
            "event is traced, and it decides what is compiled: make it a static argument of jit "
            "(static_argnames='event'), with the Python bool method.is_due(n)"
        )
    return bool(event)


def _with_event(
    method: Method,
    tx: optax.GradientTransformation,
    signal: PyTree,
    state: SparseState,
    params: PyTree,
) -> tuple[PyTree, SparseState]:
    found, known = len(prunable_paths(params, method.prunable)), state.event_metrics.num_active
    if found != known.shape[0]:
        raise ValueError(
            f"params have {found} prunable leaves, at the start they had {known.shape[0]}; expand "
            "a compressed state first"
        )
    event = method.update(params, signal, state.masks, state.step, key=state.key)
    params, opt_state = apply_event(tx, event, params, state.opt_state)
    state = state._replace(
        masks=event.masks,
        opt_state=opt_state,
        event_metrics=event.metrics,
        events=counted(state.events, event.metrics),
    )
    return params, state


def run_summary(
    method: Method,
    params: PyTree,
    state: SparseState,
    frozen: Collection[str],
    *,
    axes: AxesByPath | None = None,
) -> Summary:
    """The table per layer with the frozen leaves apart, and notes on the events so far."""
    notes = event_notes(method, int(state.step), state.events, params, state.masks)
    table = summary(params, state.masks, method.prunable, frozen=frozen, axes=axes)
    return table._replace(notes=tuple(notes))


def check_run(method: Method, params: PyTree, state: SparseState) -> None:
    """Raises a ValueError if an inactive weight or slot is not 0, or an event was forgotten."""
    check(trained_part(params), state.opt_state, trained_part(state.masks))
    notes = event_notes(method, int(state.step), state.events, params, state.masks)
    if notes:
        raise ValueError("; ".join(notes))


def _check_given(masks: PyTree, method: Method) -> None:
    here = lambda x: not isinstance(x, Tracer) and getattr(x, "is_fully_addressable", True)
    if method.pattern and all(map(here, jax.tree.leaves(masks))):
        check_pattern(masks, method.pattern, method.prunable)
