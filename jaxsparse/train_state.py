"""A Flax train state that carries masks: everything a sparse run needs, in one pytree.

`TrainState` is one, `with_masks` makes one of a train state class that a script has already.
"""

import dataclasses
import types
from collections.abc import Callable, Mapping
from typing import Any, Self

import jax
import jax.numpy as jnp
import optax
from flax import struct
from flax.training import train_state
from jax.core import Tracer

from jaxsparse.axes import AxesByPath
from jaxsparse.changes import explore
from jaxsparse.masks import apply_masks, check_masks, pruned_only, sparsity
from jaxsparse.method import Method
from jaxsparse.metrics import Summary, summary
from jaxsparse.paths import prunable_paths
from jaxsparse.patterns import check_pattern
from jaxsparse.transforms import apply_event, masked
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
      explored: the union of all masks so far, or None if it is not tracked.
      apply_fn: usually `model.apply`.
      tx: `masked` around the optimizer.
      method: what chooses the masks.
      event: whether the next `apply_gradients` updates the masks; a Python bool and no leaf, so
        that jit compiles a step for either.
    """

    masks: PyTree
    observe_state: PyTree
    key: jax.Array
    event_metrics: EventMetrics
    explored: PyTree | None
    method: Method = struct.field(pytree_node=False)
    # By keyword, so that fields of a subclass need no default.
    event: bool = struct.field(pytree_node=False, default=False, kw_only=True)

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
        if masks is None:
            masks = method.init(key, params)
        else:
            _check_given(masks, params, method)
        masks = pruned_only(masks, method.prunable)
        params = apply_masks(params, masks)
        tx = masked(tx)
        num_leaves = len(prunable_paths(params, method.prunable))
        # Buffers of its own throughout: a step that donates the state must neither donate one
        # buffer twice nor delete what the caller still holds.
        own = lambda x: jnp.array(x, copy=True) if isinstance(x, jax.Array) else x
        copy = lambda tree: jax.tree.map(own, tree)
        return cls(
            step=jnp.zeros((), jnp.int32),
            params=params,
            masks=copy(masks),
            opt_state=copy(tx.init(params)),  # Prodigy and others keep the initial params there
            observe_state=copy(method.observe.init(params)),
            key=copy(key),
            event_metrics=EventMetrics(*(jnp.zeros(num_leaves, jnp.int32) for _ in range(5))),
            explored=copy(masks) if track_exploration else None,
            apply_fn=apply_fn,
            tx=tx,
            method=method,
            **copy(fields),
        )

    @property
    def sparsity(self) -> float:
        """Share of the method's prunable weights that are inactive (waits for the device)."""
        return sparsity(self.masks, self.method.prunable)

    def summary(self, axes: AxesByPath | None = None) -> Summary:
        """The table per layer of the method's prunable weights (waits for the device).

        Args:
          axes: as in `jaxsparse.summary`.
        """
        return summary(self.params, self.masks, self.method.prunable, axes=axes)

    def apply_gradients(
        self,
        *,
        grads: PyTree,
        event: bool | None = None,
        tx_args: Mapping[str, Any] | None = None,
        **fields: Any,
    ) -> Self:
        """One optimizer step, followed by a mask update where `event`.

        The event sees the gradient that the step was taken with, at the weights before it. A method
        with `skip_step` (RigL) leaves the optimizer step out there: the step count advances, the
        optimizer's own counts (of its learning-rate schedule, say) do not.

        Args:
          grads: the dense gradient at `params`, a tree like params.
          event: Python bool, `method.is_due(n)` for the n-th step; static under jit. None: what
            the state says, which is False unless it was replaced.
          tx_args: extra arguments of the optimizer's update, such as `value` for
            `optax.contrib.reduce_on_plateau`.
          **fields: replaced in the new state, such as batch statistics.
        """
        event = self.event if event is None else event
        step = self.step + 1
        signal, observe_state = self.method.observe.update(grads, self.observe_state, self.params)
        params, opt_state = self.params, self.opt_state
        if not (event and self.method.skip_step):
            tx = optax.with_extra_args_support(self.tx)  # it is one; Flax's type does not say so
            updates, opt_state = tx.update(
                grads, opt_state, params, masks=self.masks, **(tx_args or {})
            )
            params = optax.apply_updates(params, updates)
        state = self.replace(
            step=step,
            params=params,
            opt_state=opt_state,
            observe_state=observe_state,
            event=False,
            **fields,
        )
        return state._with_event(signal) if event else state

    def _with_event(self, signal: PyTree) -> Self:
        found = len(prunable_paths(self.params, self.method.prunable))
        if found != self.event_metrics.num_active.shape[0]:
            raise ValueError(
                f"params have {found} prunable leaves, at the start they had "
                f"{self.event_metrics.num_active.shape[0]}; expand a compressed state first"
            )
        event = self.method.update(self.params, signal, self.masks, self.step, key=self.key)
        params, opt_state = apply_event(self.tx, event, self.params, self.opt_state)
        explored = None if self.explored is None else explore(self.explored, event.masks)
        return self.replace(
            params=params,
            opt_state=opt_state,
            masks=event.masks,
            event_metrics=event.metrics,
            explored=explored,
        )


def _check_given(masks: PyTree, params: PyTree, method: Method) -> None:
    check_masks(masks, params)
    pattern = () if method.recipe is None else method.recipe.pattern
    here = lambda x: not isinstance(x, Tracer) and getattr(x, "is_fully_addressable", True)
    if pattern and all(map(here, jax.tree.leaves(masks))):
        check_pattern(masks, pattern, method.prunable)


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
