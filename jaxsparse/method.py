"""A method: initial masks, a timetable, and the stages that every event runs.

`compose` is the one way to make a method; the published ones in `jaxsparse.methods` call it. A
method knows neither a model nor a training loop and holds no state; its `init` and `update` are
pure functions, to be called as they are or inside a compiled step.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxsparse.counting import count_true
from jaxsparse.distributions import erk, leaf_counts
from jaxsparse.flops import OTHER
from jaxsparse.keys import fold_key
from jaxsparse.masks import check_masks, dense_masks
from jaxsparse.paths import (
    check_like,
    check_rules,
    leaf_paths,
    prunable_leaves,
    prunable_paths,
    with_leaves,
)
from jaxsparse.plan import Plan, Targets, make_plan
from jaxsparse.scores import random, score_leaves
from jaxsparse.selection import top_k
from jaxsparse.timetable import Segment, Timetable, event_rows, row_at
from jaxsparse.types import (
    Counts,
    DenseGradient,
    Distribution,
    Event,
    EventMetrics,
    Leaves,
    PyTree,
    Row,
    Rules,
    Scope,
    Selected,
    Stage,
)


class Method(NamedTuple):
    """A way to choose and change masks.

    Attributes:
      name: its name in tables and messages.
      init: (key, params) -> masks, pure; the masks that training starts with.
      update: (params, grads, masks, step, *, key=None) -> Event, pure and compiled; always performs
        the event of that step (or of the last one before it). `grads` is the dense gradient, or
        what `observe` made of it; `step` counts completed steps including this one and may be
        traced.
      timetable: the steps that have an event.
      targets: (params) -> Targets, the counts that `plan` walks through.
      observe: what turns the gradient of every step into the `grads` of `update` (SNFS). A loop
        of one's own runs it at every step; `TrainState` does.
      skip_step: whether the optimizer step is left out where there is an event (RigL, SET, SNFS). A
        loop of one's own has to leave it out; `TrainState` does.
      prunable: the rules that say which leaves the method may prune; None is the default.
      dense_gradient: at which steps the method reads the gradient of inactive weights: "never"
        (GMP, SET), at its "events" (RigL, GraNet, to grow by it), or "always" (SNFS, which averages
        it over steps). Only the accounting of training FLOPs asks: `jax.grad` at masked params
        gives the dense gradient in any case. Of the scores to grow by, the published methods know
        `scores.random` to need none; for another one say `method._replace(dense_gradient="never")`.
    """

    name: str
    init: Callable[[jax.Array, PyTree], PyTree]
    update: Callable[..., Event]
    timetable: Timetable
    targets: Callable[[PyTree], Targets]
    observe: optax.GradientTransformation = optax.identity()
    skip_step: bool = False
    prunable: Rules | None = None
    dense_gradient: DenseGradient = "never"

    def plan(
        self,
        params: PyTree,
        flops: Mapping[str, int] | None = None,
        *,
        count_dense_gradient: bool = True,
    ) -> Plan:
        """The dry run: every event, what each layer keeps, and what training costs; print it.

        Args:
          params: any pytree of arrays or `jax.ShapeDtypeStruct`; only shapes are looked at.
          flops: dense forward FLOPs by path, from `layer_flops` on the same params; None leaves
            the costs out.
          count_dense_gradient: charge the steps that need the gradient of inactive weights for it.
            False is GraNet's published accounting.

        Raises:
          ValueError: what training could not do, such as fewer weights than layers, or `flops` of
            another network.
        """
        leaves = leaf_paths(params)
        for path in flops or ():
            if path != OTHER and path not in leaves:
                raise ValueError(f"flops has a leaf {path}, which params lacks")
        charged = self.dense_gradient if count_dense_gradient else "never"
        return make_plan(self.name, self.timetable, self.targets(params), flops, charged)

    def is_due(self, step: int) -> bool:
        """Whether an event follows optimizer step `step`: a Python int, counted from 1.

        Keep the count in the loop. `int(state.step)` would wait for the device at every step.
        """
        return self.timetable.is_due(step)

    def segments(self, start: int = 0) -> Iterator[Segment]:
        """Yields the stretches of steps between events, for loops built on `lax.scan`."""
        return self.timetable.segments(start)


def compose(
    name: str,
    stages: Sequence[Stage],
    timetable: Timetable,
    *,
    distribution: Distribution | None = None,
    scope: Scope = "layer",
    min_keep: int = 0,
    prunable: Rules | None = None,
    observe: optax.GradientTransformation | None = None,
    skip_step: bool = False,
    dense_gradient: DenseGradient | None = None,
) -> Method:
    """Makes a method from stages and a timetable.

    At an event the stages run in order. A weight survives it, with its value and optimizer slots,
    if every stage left it active; one that a stage removed and a later stage brought back starts
    again at 0, like one that was long inactive.

    Args:
      name: the method's name.
      stages: run in order at every event.
      timetable: the start and the events, from `make_timetable`.
      distribution: shares out densities among layers; None is `erk()`.
      scope: whether targets are one number ("global") or one per leaf ("layer").
      min_keep: fewest active weights that pruning leaves to each layer; with scope "layer" it is at
        least 1 in any case.
      prunable: which leaves; as in `prunable_paths`.
      observe: optax transformation of the dense gradient at every step; None is the identity.
      skip_step: leave out the optimizer step where there is an event.
      dense_gradient: see `Method`. None supposes that stages grow by gradient: "always" with
        `observe`, else "events" where there are stages. Stages that never look at the gradient of
        an inactive weight (pruning, growth at random) are to say "never".

    Returns:
      The method.

    Raises:
      ValueError: an option outside its range.
    """
    distribution = erk() if distribution is None else distribution
    # A tuple, so that a method can be a static argument of jit.
    prunable = check_rules(prunable)
    if dense_gradient is None:
        dense_gradient = "always" if observe is not None else "events" if stages else "never"
    _check_options(distribution, scope, min_keep, dense_gradient)

    def rows(shapes: dict[str, tuple[int, ...]]) -> Row:
        return event_rows(
            timetable,
            shapes,
            scope=scope,
            distribution=distribution,
            min_keep=min_keep,
        )

    def init(key: jax.Array, params: PyTree) -> PyTree:
        weights = prunable_leaves(params, prunable)
        counts = leaf_counts(distribution, _shapes(weights), timetable.initial_density)
        if counts == {path: np.size(w) for path, w in weights.items()}:
            return dense_masks(params)
        return with_leaves(dense_masks(params), random_masks(key, weights, counts))

    def update(
        params: PyTree,
        grads: PyTree,
        masks: PyTree,
        step: int | jax.Array,
        *,
        key: jax.Array | None = None,
    ) -> Event:
        check_masks(masks, params)
        check_like(grads, params, name="grads", like="params")
        paths = prunable_paths(params, prunable)
        weights = prunable_leaves(params, paths=paths)
        old = prunable_leaves(masks, paths=paths)
        if not (stages and timetable.events):
            unchanged = Selected(old, jnp.zeros(len(paths), jnp.int32))
            return Event(masks, masks, _metrics(old, unchanged, old))
        active = {p: count_true(mask)[0] for p, mask in old.items()}
        row = row_at(timetable, rows(_shapes(weights)), step, active)
        signal = prunable_leaves(grads, paths=paths)
        new, kept = _run_stages(stages, weights, signal, old, row, fold_key(key, "event", step))
        # Leaves that stay dense are all True, whatever the caller's masks say of them.
        dense = dense_masks(masks)
        metrics = _metrics(old, new, kept)
        return Event(with_leaves(dense, new.masks), with_leaves(dense, kept), metrics)

    def targets(params: PyTree) -> Targets:
        shapes = _shapes(prunable_leaves(params, prunable))
        initial = leaf_counts(distribution, shapes, timetable.initial_density)
        return Targets(shapes, initial, rows(shapes))

    return Method(
        name=name,
        init=init,
        update=jax.jit(update),
        timetable=timetable,
        targets=targets,
        observe=optax.identity() if observe is None else observe,
        skip_step=skip_step,
        prunable=prunable,
        dense_gradient=dense_gradient,
    )


def _check_options(
    distribution: Distribution, scope: str, min_keep: int, dense_gradient: str
) -> None:
    if not callable(distribution):
        raise ValueError(f"distribution {distribution!r} must be a function such as erk()")
    if scope not in ("global", "layer"):
        raise ValueError(f"scope {scope!r} must be 'global' or 'layer'")
    if min_keep < 0:
        raise ValueError(f"min_keep {min_keep} must be at least 0")
    if dense_gradient not in get_args(DenseGradient):
        raise ValueError(f"dense_gradient {dense_gradient!r} must be 'never', 'events' or 'always'")


def _run_stages(
    stages: Sequence[Stage],
    weights: Leaves,
    signal: Leaves,
    masks: Leaves,
    row: Row,
    key: jax.Array | None,
) -> tuple[Selected, Leaves]:
    """The masks after all stages, and what every stage left active."""
    new, kept = Selected(dict(masks), jnp.zeros(len(masks), jnp.int32)), masks
    for index, stage in enumerate(stages):
        after = stage(weights, signal, new.masks, row, fold_key(key, index))
        new = Selected({p: after.masks[p] for p in masks}, new.num_nan + after.num_nan)
        kept = {p: kept[p] & new.masks[p] for p in masks}
    return new, kept


@jax.jit  # op by op, the search would be compiled leaf by leaf, and again at every call
def random_masks(key: jax.Array, weights: Leaves, counts: Counts) -> dict[str, jax.Array]:
    """Draws masks with exactly `counts[path]` True, every subset of a leaf equally likely.

    Differs from GraNet's and ITOP's code, whose Bernoulli draws have the count only on average.
    """
    noise = score_leaves(random, weights, weights, fold_key(key, "init"))
    return top_k(noise, counts).masks


def _shapes(weights: Leaves) -> dict[str, tuple[int, ...]]:
    return {path: tuple(np.shape(w)) for path, w in weights.items()}


def _metrics(old: Leaves, new: Selected, kept: Leaves) -> EventMetrics:
    counts = [
        count_true(mask, old[p] & ~mask, mask & ~old[p], mask & ~kept[p])
        for p, mask in new.masks.items()
    ]
    columns = [jnp.stack(column) for column in zip(*counts, strict=True)]
    return EventMetrics(*columns, num_nan=new.num_nan)
