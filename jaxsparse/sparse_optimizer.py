"""An optimizer and a method in one, for your own training loop over any tree of params.

    optimizer = jaxsparse.sparse_optimizer(method, optax.adam(1e-3))
    params, state = optimizer.init(params, key=key)

    @functools.partial(jax.jit, static_argnames="event")
    def step(params, state, batch, event):
        grads = jax.grad(loss)(params, batch)
        return optimizer.update(grads, state, params, event=event)

    for n in range(1, total_steps + 1):
        params, state = step(params, state, batch, event=method.is_due(n))

It does everything that a method asks of a loop. It applies the masks, observes the gradient of
every step (SNFS), leaves out the optimizer step at the events of RigL, SET and SNFS, restarts at 0
what an event does not keep, leaves frozen leaves as they are, and overwrites Flax's fp8 scales.
`TrainState` does the same as a Flax train state.
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
from jaxsparse.invariants import check
from jaxsparse.masks import apply_masks, check_masks, pruned_only
from jaxsparse.meshes import mesh_of, place, replicate, shardings_on
from jaxsparse.method import Method
from jaxsparse.metrics import Summary, summary
from jaxsparse.overwritten import trained_part, with_trained
from jaxsparse.paths import check_like, prunable_paths
from jaxsparse.pattern_rules import check_given
from jaxsparse.transforms import apply_event, masked, place_slots
from jaxsparse.types import EventMetrics, PyTree


class SparseState(NamedTuple):
    """Everything that changes during training beside params; a pytree of arrays.

    Attributes:
      step: int32[], completed steps, RigL's skipped ones included.
      masks: bool, the structure and shapes of params.
      opt_state: the state of the optimizer, without masks in it.
      observe_state: the state of `method.observe`.
      key: the key of all events; each event folds in its step and the paths of the leaves.
      event_metrics: those of the last event; zeros before the first one.
      events: how many events were taken, and how many were left out.
    """

    step: jax.Array
    masks: PyTree
    opt_state: PyTree
    observe_state: PyTree
    key: jax.Array
    event_metrics: EventMetrics
    events: EventCounts


class SparseOptimizer(NamedTuple):
    """What `sparse_optimizer` returns. Two of them made of equal parts are equal.

    Attributes:
      init: (params, *, key, masks=None) -> (params, state): draws the masks, or takes the given
        ones, and applies them. If params lie on a mesh, so does the state: masks and slots as their
        weights, everything else on every device.
      update: (grads, state, params, *, event=False, **tx_args) -> (params, state): one step, pure.
        `grads` is the dense gradient at params. `event` is a Python bool, `method.is_due(n)` for
        the n-th step; static under `jit`. Further arguments go to the optimizer.
      method: the method as given.
      tx: the optimizer as given.
    """

    init: Callable[..., tuple[PyTree, SparseState]]
    update: Callable[..., tuple[PyTree, SparseState]]
    method: Method
    tx: optax.GradientTransformation

    def summary(
        self, params: PyTree, state: SparseState, axes: AxesByPath | None = None
    ) -> Summary:
        """Returns the table of layers, with notes on events that did not happen.

        Waits for the device. `axes` is as in `jaxsparse.summary`.
        """
        frozen = frozen_paths(self.tx, params)
        method = leave_out(self.method, frozen, params)
        return run_summary(method, params, state, frozen, axes=axes)

    def check(self, params: PyTree, state: SparseState) -> None:
        """Raises a ValueError if an inactive weight or slot is not 0, or an event was forgotten.

        Waits for the device.
        """
        frozen = frozen_paths(self.tx, params)
        check_run(leave_out(self.method, frozen, params), params, state)


def sparse_optimizer(method: Method, tx: optax.GradientTransformation) -> SparseOptimizer:
    """Joins a method and an optimizer for your own training loop; see the top of this module.

    Args:
      method: chooses and changes the masks. It leaves alone the leaves that the optimizer never
        moves (see `frozen_paths`); they are not counted in the sparsity.
      tx: any optimizer that `masked` accepts, not yet masked.

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
        if _asked(event):  # other steps use only method.observe
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

    If params lie on a mesh, all of the state does: masks and slots as their weights, everything
    else, a weight that was not placed included, on every device.

    Args:
      method: chooses the masks.
      tx: `masked` around the optimizer.
      params: any pytree of arrays.
      key: key of the initial masks and all events.
      masks: initial masks; None draws them with `method.init`. See `TrainState.create`.

    Raises:
      ValueError: the masks do not fit params or lack the method's pattern, or the method cannot
        draw masks.
    """
    mesh = mesh_of(params)
    params, key = replicate(mesh, (params, key))
    if masks is None:
        masks = method.init(key, params)
    else:
        masks = check_masks(masks, params)
        check_given(masks, method.pattern, method.prunable)
    masks = pruned_only(masks, method.prunable)
    if mesh is not None:
        masks = jax.tree.map(place, masks, shardings_on(mesh, params))
    params = apply_masks(params, masks)
    # Every leaf gets its own buffer: a step that donates the state must not donate one buffer
    # twice, and must not delete what the caller still holds.
    own = lambda x: jnp.array(x, copy=True) if isinstance(x, jax.Array) else x
    state = SparseState(
        step=jnp.zeros((), jnp.int32),
        masks=masks,
        opt_state=tx.init(trained_part(params)),  # Prodigy and others keep the initial params in it
        observe_state=method.observe.init(params),
        key=key,
        event_metrics=no_event(len(prunable_paths(params, method.prunable))),
        events=EventCounts(jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32)),
    )
    if mesh is not None:
        slots = place_slots(tx, state.opt_state, trained_part(params), mesh)
        state = replicate(mesh, state._replace(opt_state=slots))
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
    """Takes an optimizer step, then updates the masks if `event`; pure.

    The event uses the gradient of the step, at the weights before the step. A method with
    `skip_step` (RigL) leaves out the optimizer step at an event: the step count advances, but the
    optimizer's own counts (such as that of its learning-rate schedule) do not.

    If the gradient is not finite, an event changes nothing but `events.num_left_out`. The method's
    next event makes up for it. Under loss scaling the next step can make up for it: use

        waits = method.is_due(n - 1) and bool(state.event_metrics.num_left_out)
        event = method.is_due(n) or waits

    Args:
      method: chooses the masks.
      tx: `masked` around the optimizer.
      grads: the dense gradient at params.
      state: the state before the step.
      params: the parameters before the step, masked.
      event: Python bool, whether to update the masks.
      **tx_args: extra arguments of the optimizer's update, such as `value`.

    Raises:
      ValueError: trees differ, or `event` is traced.
    """
    step = state.step + 1
    grads = check_like(grads, params, name="grads", like="params")
    signal, observe_state = method.observe.update(grads, state.observe_state, params)
    trained, opt_state = trained_part(params), state.opt_state
    if not (_asked(event) and method.skip_step):
        tx = optax.with_extra_args_support(tx)  # it has it already, but its type does not say so
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
            "event is traced, but it decides what is compiled: make it a static argument of jit "
            "(static_argnames='event') and pass the Python bool method.is_due(n)"
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
    """Returns the table of layers, with frozen leaves apart, and notes on the events so far."""
    notes = event_notes(method, int(state.step), state.events, params, state.masks)
    table = summary(params, state.masks, method.prunable, frozen=frozen, axes=axes)
    return table._replace(notes=tuple(notes))


def check_run(method: Method, params: PyTree, state: SparseState) -> None:
    """Raises a ValueError if an inactive weight or slot is not 0, or an event was forgotten."""
    check(trained_part(params), state.opt_state, trained_part(state.masks))
    notes = event_notes(method, int(state.step), state.events, params, state.masks)
    if notes:
        raise ValueError("; ".join(notes))
