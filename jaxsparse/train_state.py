"""A Flax train state that carries masks: everything a sparse run needs, in one pytree.

`TrainState` is such a class. `with_masks` adds masks to a train state class that you already have.
"""

import dataclasses
import types
from collections.abc import Callable, Mapping
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from flax.training import train_state
from jax.core import Tracer

from jaxsparse.axes import AxesByPath
from jaxsparse.event_counts import EventCounts, no_event, num_due, unreached
from jaxsparse.frozen import frozen_paths, leave_out
from jaxsparse.mask_history import explore
from jaxsparse.masks import sparsity
from jaxsparse.meshes import mesh_of, replicate
from jaxsparse.method import Method
from jaxsparse.metrics import Summary
from jaxsparse.paths import prunable_paths
from jaxsparse.sparse_optimizer import SparseState, check_run, run_summary, start, take_step
from jaxsparse.transforms import masked
from jaxsparse.types import EventMetrics, PyTree


class TrainState(train_state.TrainState):
    """`flax.training.train_state.TrainState` with masks and a method.

        state = TrainState.create(apply_fn=model.apply, params=params, tx=optax.sgd(0.1),
                                  method=method, key=key)

        @functools.partial(jax.jit, static_argnames="event", donate_argnums=0)
        def train_step(state, batch, event):
            grads = jax.grad(loss)(state.params, batch)
            return state.apply_gradients(grads=grads, event=event)

        for n in range(1, total_steps + 1):
            state = train_step(state, batch, event=method.is_due(n))

    `event` is a Python bool, so there are two compiled steps, and the one without an event contains
    nothing of the event. If your step has no such argument, set it in the state:
    `state = step(state.replace(event=method.is_due(n)), batch)`. The new state has `event=False`.

    Subclass it to carry more, such as batch statistics, or see `with_masks`.

    Attributes:
      step: int32[], completed optimizer steps, RigL's skipped ones included.
      params: stored masked: an inactive weight is exactly 0.
      opt_state: the state of `tx`, without masks in it.
      masks: bool, the structure and shapes of params.
      observe_state: the state of `method.observe`.
      key: the key of all events; each event folds in its step and the paths of the leaves.
      event_metrics: those of the last event; zeros before the first one.
      events: how many events were taken, and how many were left out because the gradient was not
        finite.
      explored: bool like masks, the union of all masks so far; None if it is not tracked.
      apply_fn: usually `model.apply`.
      tx: `masked` around the optimizer.
      method: chooses the masks.
      event: whether the next `apply_gradients` updates the masks; a Python bool, not a leaf, so jit
        compiles one step for each value.
      frozen: paths of the leaves that the optimizer never moves (`optax.set_to_zero`). The method
        leaves them as they are. Static.
    """

    masks: PyTree
    observe_state: PyTree
    key: jax.Array
    event_metrics: EventMetrics
    events: EventCounts
    explored: PyTree | None
    method: Method = struct.field(pytree_node=False)
    # Keyword-only, so that fields of a subclass need no default.
    event: bool = struct.field(pytree_node=False, default=False, kw_only=True)
    frozen: tuple[str, ...] = struct.field(pytree_node=False, default=(), kw_only=True)

    @classmethod
    def create(
        cls,
        *,
        apply_fn: Callable[..., Any],
        params: PyTree,
        tx: optax.GradientTransformation,
        method: Method,
        key: jax.Array,
        masks: PyTree | None = None,
        track_exploration: bool = False,
        **fields: Any,
    ) -> Self:
        """Draws the masks, applies them to params, and wraps the optimizer in `masked`.

        If params lie on a mesh, so does the state: masks and slots as their weights, everything
        else on every device. Under `jit` its `out_shardings` decide.

        Args:
          apply_fn: stored for the caller, usually `model.apply`.
          params: any pytree of arrays.
          tx: the optimizer, not yet masked.
          method: chooses the masks.
          key: key of the initial masks and all events.
          masks: initial masks; None draws them with `method.init`. Leaves that are not prunable are
            taken as all True. A method of fixed sparsity keeps the number of active weights that
            it is given, whatever its own sparsity; only a target that changes over time moves it.
            Under `with_pattern` the masks must have the pattern; `pattern_masks` makes such masks.
            (The pattern is not checked if masks are traced.)
          track_exploration: whether to keep the union of all masks, for `exploration_rate`; takes
            one byte per weight.
          **fields: fields of a subclass.

        Raises:
          ValueError: the masks do not fit params or lack the method's pattern, or the method cannot
            draw masks.
        """
        frozen = tuple(frozen_paths(tx, params))
        method = leave_out(method, frozen, params)
        tx = masked(tx)
        params, state = start(method, tx, params, key, masks)
        own = lambda x: jnp.array(x, copy=True) if isinstance(x, jax.Array) else x
        mesh = mesh_of(params)
        copy = lambda tree: jax.tree.map(own, replicate(mesh, tree))
        return cls(
            params=params,
            explored=copy(state.masks) if track_exploration else None,
            apply_fn=apply_fn,
            tx=tx,
            method=method,
            frozen=frozen,
            **state._asdict(),
            **copy(fields),
        )

    @property
    def sparsity(self) -> float:
        """Share of the method's prunable weights that are inactive; waits for the device."""
        return sparsity(self.masks, self.method.prunable)

    def summary(self, axes: AxesByPath | None = None) -> Summary:
        """Returns the table of layers, with notes on events that did not happen.

        Waits for the device.

        Args:
          axes: as in `jaxsparse.summary`.
        """
        return run_summary(self.method, self.params, self._sparse_state(), self.frozen, axes=axes)

    def check(self) -> None:
        """Checks that inactive weights and slots are 0, and that all events were taken.

        Waits for the device.

        Raises:
          ValueError: an inactive entry is not 0 (names the first leaf or slot), events were
            forgotten or left out (says how many), or the final sparsity will not be reached.
        """
        check_run(self.method, self.params, self._sparse_state())

    def apply_gradients(
        self,
        *,
        grads: PyTree,
        event: bool | None = None,
        tx_args: Mapping[str, Any] | None = None,
        **fields: Any,
    ) -> Self:
        """Takes an optimizer step, then updates the masks if `event`; see `take_step`.

        Args:
          grads: the dense gradient at `params`, a tree like params.
          event: Python bool, `method.is_due(n)` for the n-th step; static under jit. None takes
            `state.event`, which is False unless you replaced it.
          tx_args: extra arguments of the optimizer's update, such as `value` for
            `optax.contrib.reduce_on_plateau`.
          **fields: new values of other fields, such as batch statistics.
        """
        event = self.event if event is None else event
        params, state = take_step(
            self.method,
            self.tx,
            grads,
            self._sparse_state(),
            self.params,
            event=event,
            **(tx_args or {}),
        )
        explored = self.explored
        if event and explored is not None:
            explored = explore(explored, state.masks)
        return self.replace(
            params=params, explored=explored, event=False, **state._asdict(), **fields
        )

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        setattr(cls, "replace", _replace)  # noqa: B010 - Flax gives every class a plain one

    def _for_method(self, method: Method, step: jax.Array) -> dict[str, Any]:
        found: dict[str, Any] = {}
        if method.observe != self.method.observe:
            found["observe_state"] = method.observe.init(self.params)
        num_leaves = len(prunable_paths(self.params, method.prunable))
        if num_leaves != self.event_metrics.num_active.shape[0]:
            found["event_metrics"] = no_event(num_leaves)
        if isinstance(step, Tracer | jax.ShapeDtypeStruct) or np.ndim(step):
            return found
        if problem := unreached(method, int(step), self.params, self.masks):
            raise ValueError(problem)
        taken = jnp.array(num_due(method, int(step)), jnp.int32)
        return found | {"events": EventCounts(taken, jnp.zeros((), jnp.int32))}

    def _sparse_state(self) -> SparseState:
        return SparseState(*(getattr(self, name) for name in SparseState._fields))


def _replace(self: TrainState, **changes: Any) -> TrainState:
    """Returns the state with other values.

    A new method gets a new state of `observe` and new event counts: the events that it would have
    had so far count as taken. Leaves that the optimizer never moves stay left out.

    Raises:
      ValueError: the new method's sparsity is not reached, and its last pruning event is over.
    """
    method = changes.get("method", self.method)
    if method != self.method:
        changes = self._for_method(method, changes.get("step", self.step)) | changes
        changes["method"] = leave_out(method, self.frozen, self.params)
    return dataclasses.replace(self, **changes)


setattr(TrainState, "replace", _replace)  # noqa: B010 - an assignment would have another type


def with_masks(cls: type[train_state.TrainState]) -> Any:
    """Adds masks to a train state class that a script already has; a class decorator.

        @jaxsparse.with_masks
        class TrainState(flax.training.train_state.TrainState):
            batch_stats: Any

    The class keeps what it adds or overrides, and its calls of `super()` reach those of
    `jaxsparse.TrainState`. `create` then also needs `method=` and `key=`, and a step with an event
    is

        state = train_step(state.replace(event=method.is_due(n)), batch)

    If an override of `apply_gradients` changes params after `super()`, it must apply the masks to
    them again: `apply_masks(params, state.masks)`.

    Args:
      cls: a subclass of `flax.training.train_state.TrainState`. If it has a field `key`, as in
        Flax's guide to dropout, that key serves the masks too: methods draw from it independently
        of `fold_in` with a step. It must not use any other name of our fields.

    Returns:
      A subclass of `cls` and of `jaxsparse.TrainState` with the name of `cls`. Flax's own class
      gives `jaxsparse.TrainState` itself.

    Raises:
      TypeError: `cls` is another class, or has an attribute with the name of one of our fields.
    """
    if not (isinstance(cls, type) and issubclass(cls, train_state.TrainState)):
        raise TypeError(
            f"with_masks takes a subclass of flax.training.train_state.TrainState, not {cls!r}"
        )
    if issubclass(TrainState, cls):
        return TrainState
    if issubclass(cls, TrainState):
        return cls
    _check_names(cls)
    names = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__}
    # `cls` comes first, so its overrides precede ours, and ours precede Flax's.
    return types.new_class(
        cls.__name__, (cls, TrainState), exec_body=lambda body: body.update(names)
    )


def _check_names(cls: type[train_state.TrainState]) -> None:
    fields = {field.name: field for field in dataclasses.fields(cls)}
    flax = {field.name for field in dataclasses.fields(train_state.TrainState)}
    ours = [f.name for f in dataclasses.fields(TrainState) if f.name not in flax]
    key = fields.get("key")
    if key is not None and key.metadata.get("pytree_node", True):
        ours.remove("key")
    for name in ours:
        if name in fields or hasattr(cls, name):
            raise TypeError(
                f"with_masks: {cls.__name__}.{name} has the name of a field that it would get; "
                "give it another one"
            )
