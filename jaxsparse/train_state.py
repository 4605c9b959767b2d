"""A Flax train state that carries masks: everything a sparse run needs, in one pytree.

`TrainState` is one, `with_masks` makes one of a train state class that a script has already.
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

    `event` is a Python bool, so there are two compiled steps, and the one without an event holds no
    trace of the other. A step that has no argument for it finds it in the state, which it leaves
    with `event=False`: `state = step(state.replace(event=method.is_due(n)), batch)`.

    Subclass it to carry more, such as batch statistics, or see `with_masks`.

    Attributes:
      step: int32[], completed optimizer steps, RigL's skipped ones included.
      params: stored masked: an inactive weight is exactly 0.
      opt_state: the state of `tx`, without masks in it.
      masks: bool, the structure and shapes of params.
      observe_state: the state of `method.observe`.
      key: the key of all events; each folds in its step and the paths of the leaves.
      event_metrics: of the last event; zeros before the first one.
      events: how many events were taken, and left out because the gradient was not finite.
      explored: the union of all masks so far, or None if it is not tracked.
      apply_fn: usually `model.apply`.
      tx: `masked` around the optimizer.
      method: what chooses the masks.
      event: whether the next `apply_gradients` updates the masks; a Python bool and no leaf, so
        that jit compiles a step for either.
      frozen: paths of the leaves that the optimizer never moves (`optax.set_to_zero`): the method
        leaves them as they are. Static.
    """

    masks: PyTree
    observe_state: PyTree
    key: jax.Array
    event_metrics: EventMetrics
    events: EventCounts
    explored: PyTree | None
    method: Method = struct.field(pytree_node=False)
    # By keyword, so that fields of a subclass need no default.
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

        Args:
          apply_fn: kept for the caller, usually `model.apply`.
          params: any pytree of arrays.
          tx: the optimizer, not yet masked.
          method: chooses the masks.
          key: for the initial masks and all events.
          masks: used in place of `method.init` where given; leaves that are not prunable are taken
            as all True. Only a target that changes moves their number: a method of fixed sparsity
            keeps as many as are given, whatever its own sparsity. Under `with_pattern` they must
            have the pattern; `pattern_masks` makes such ones. (Traced ones, or those of which other
            processes hold a part, are not looked at.)
          track_exploration: keep the union of all masks (one byte a weight), for
            `exploration_rate`.
          **fields: of a subclass.

        Raises:
          ValueError: masks that do not fit params or lack the method's pattern, or that it cannot
            draw.
        """
        frozen = tuple(frozen_paths(tx, params))
        method = leave_out(method, frozen, params)
        tx = masked(tx)
        params, state = start(method, tx, params, key, masks)
        own = lambda x: jnp.array(x, copy=True) if isinstance(x, jax.Array) else x
        copy = lambda tree: jax.tree.map(own, tree)
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
        """Share of the method's prunable weights that are inactive (waits for the device)."""
        return sparsity(self.masks, self.method.prunable)

    def summary(self, axes: AxesByPath | None = None) -> Summary:
        """The table per layer, and what of the method did not happen (waits for the device).

        Args:
          axes: as in `jaxsparse.summary`.
        """
        return run_summary(self.method, self.params, self._sparse_state(), self.frozen, axes=axes)

    def check(self) -> None:
        """Checks that what is inactive is 0, and that the loop took its events, on the host.

        Raises:
          ValueError: names the first leaf or slot with an inactive entry that is not 0; or says
            how many events were forgotten or left out, or that a sparsity will not be reached.
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
        """One optimizer step, followed by a mask update where `event`; see `take_step`.

        Args:
          grads: the dense gradient at `params`, a tree like params.
          event: Python bool, `method.is_due(n)` for the n-th step; static under jit. None: what
            the state says, which is False unless it was replaced.
          tx_args: extra arguments of the optimizer's update, such as `value` for
            `optax.contrib.reduce_on_plateau`.
          **fields: replaced in the new state, such as batch statistics.
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
    """Returns the state with other values; a method that can do nothing more is refused.

    With another method what belongs to it is made anew: the state of its `observe`, and the count
    of events, where those that it would have had so far count as taken. Leaves that the optimizer
    never moves stay left out.

    Raises:
      ValueError: a method whose last pruning event is over, and whose sparsity would so never be
        reached.
    """
    method = changes.get("method", self.method)
    if method != self.method:
        changes = self._for_method(method, changes.get("step", self.step)) | changes
        changes["method"] = leave_out(method, self.frozen, self.params)
    return dataclasses.replace(self, **changes)


setattr(TrainState, "replace", _replace)  # noqa: B010 - whose type would be another


def with_masks(cls: type[train_state.TrainState]) -> Any:
    """Makes a train state class that a script has already one that carries masks; a decorator.

        @jaxsparse.with_masks
        class TrainState(flax.training.train_state.TrainState):
            batch_stats: Any

    What the class adds or overrides stays, and what its methods call through `super()` is that of
    `jaxsparse.TrainState`: `create` needs `method=` and `key=` as well, and a step with an event is

        state = train_step(state.replace(event=method.is_due(n)), batch)

    An override of `apply_gradients` that changes params after `super()` is to apply the masks to
    them again: `apply_masks(params, state.masks)`.

    Args:
      cls: a subclass of `flax.training.train_state.TrainState`. A field `key` of its own, as Flax's
        guide to dropout has it, is the key of the masks too: what the methods draw from it is
        independent of what `fold_in` with a step draws. Other names of our fields are taken.

    Returns:
      A subclass of `cls` and of `jaxsparse.TrainState`, of the same name; of Flax's own class
      `jaxsparse.TrainState` itself.

    Raises:
      TypeError: another class, or one that has something of the name of one of our fields.
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
    # `cls` first: its overrides come before ours, and ours before Flax's.
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
