"""Initial masks, events and targets of a method, as pure functions of its recipe."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxsparse.comparable import made_by
from jaxsparse.counting import count_true, num_true
from jaxsparse.event_rows import row_at
from jaxsparse.integers import to_int32
from jaxsparse.keys import fold_key
from jaxsparse.masks import all_finite, check_masks, dense_masks, pruned_only
from jaxsparse.one_shot import random_masks
from jaxsparse.paths import check_like, leaf_shapes, prunable_leaves, prunable_paths, with_leaves
from jaxsparse.pattern_rules import check_given, groups_of
from jaxsparse.patterns import PatternRules
from jaxsparse.planned_counts import Targets
from jaxsparse.redistribution import redistribute
from jaxsparse.stages import exchange, prune
from jaxsparse.timetable import Timetable
from jaxsparse.types import (
    Distribution,
    Event,
    EventMetrics,
    Groups,
    Leaves,
    Observed,
    PyTree,
    Row,
    Rules,
    Scope,
    Selected,
    Shapes,
    Stage,
)
from jaxsparse.unit_counts import check_sizes, initial_counts, rows_in_units
from jaxsparse.units import (
    GroupsByPath,
    fixed,
    from_units,
    group_size,
    to_units,
    unit_shapes,
    whole,
)


class Cycles(NamedTuple):
    """Events before a recipe's own, with stages of their own; see `with_cycles`.

    Attributes:
      stages: run in order at these events.
      ends: the last step of every cycle, at least one.
      interval: steps between these events.
      multiplier: the density in the middle of a cycle over that at its ends.
    """

    stages: tuple[Stage, ...]
    ends: tuple[int, ...]
    interval: int
    multiplier: float

    @property
    def stop_step(self) -> int:
        """The last step that may have such an event."""
        return self.ends[-1]


class Recipe(NamedTuple):
    """All that masks depend on; see `compose` for the fields.

    Attributes:
      stages: run in order at every event.
      timetable: the start and the events.
      distribution: shares out densities among layers.
      scope: whether targets are one number or one per leaf.
      min_keep: fewest active weights of each layer, or None; see `compose`.
      prunable: which leaves.
      pattern: rules for the structure of masks; `()` if they have none.
      cycles: the first events of the timetable if those have stages of their own, else None.
      observes: whether events read the output of the method's `observe` in place of gradients.
      masks: a function that returns the masks that training starts with, see `starting_from`; None
        if they are drawn at random.
    """

    stages: tuple[Stage, ...]
    timetable: Timetable
    distribution: Distribution
    scope: Scope
    min_keep: int | None
    prunable: Rules | None
    pattern: PatternRules = ()
    cycles: Cycles | None = None
    observes: bool = False
    masks: Callable[[], PyTree] | None = None

    @property
    def moves_weights(self) -> bool:
        """Whether events move weights between leaves while their sum stays as it is."""
        return any(made_by(stage, redistribute) for stage in self.stages)


def initial_masks(recipe: Recipe, key: jax.Array, params: PyTree) -> PyTree:
    """Returns the masks that training starts with, `Method.init`."""
    if recipe.masks is not None:
        masks = check_masks(recipe.masks(), params)
        check_given(masks, recipe.pattern, recipe.prunable)
        return pruned_only(masks, recipe.prunable)
    weights = prunable_leaves(params, recipe.prunable)
    shapes = leaf_shapes(weights)
    groups = _groups(recipe, shapes)
    counts = _initial_counts(recipe, shapes, groups)
    if counts == {path: int(np.prod(s)) for path, s in unit_shapes(shapes, groups).items()}:
        return dense_masks(params)
    return with_leaves(dense_masks(params), random_masks(key, weights, counts, groups))


def run_event(
    recipe: Recipe,
    params: PyTree,
    grads: PyTree,
    masks: PyTree,
    step: int | jax.Array,
    *,
    key: jax.Array | None = None,
) -> Event:
    """Performs the event of a step, `Method.update`.

    An event needs a gradient that is finite. On a step whose gradient is not, loss scaling and
    `optax.apply_if_finite` leave params as they were, and so does the event.
    """
    step = to_int32(step, "step")
    masks = check_masks(masks, params)
    grads = check_like(_signal(recipe, grads), params, name="grads", like="params")
    paths = prunable_paths(params, recipe.prunable)
    weights = prunable_leaves(params, paths=paths)
    old = prunable_leaves(masks, paths=paths)
    if not ((recipe.stages or recipe.cycles) and recipe.timetable.events):
        unchanged = Selected(old, jnp.zeros(len(paths), jnp.int32))
        return Event(masks, masks, _metrics(old, unchanged, old, jnp.array(True)))
    shapes = leaf_shapes(weights)
    groups = _groups(recipe, shapes)
    units = to_units(old, groups)
    active = {p: count_true(mask)[0] for p, mask in units.items()}
    row = row_at(recipe.timetable, _rows(recipe, shapes, groups), step, active)
    signal = prunable_leaves(grads, paths=paths)
    key = fold_key(key, "event", step)
    chosen, kept = _run_phase(recipe, step, weights, signal, units, row, key)
    is_finite = all_finite(grads)
    entries = lambda units: {
        p: jnp.where(is_finite, mask, old[p]) for p, mask in from_units(units, groups, old).items()
    }
    new, kept = chosen._replace(masks=entries(chosen.masks)), entries(kept)
    # Masks from elsewhere may hold units that are active in part: the rest of such a unit starts
    # at 0.
    kept |= {p: kept[p] & old[p] for p in whole(groups)}
    # Leaves that stay dense are all True, whatever the caller's masks are there.
    dense = dense_masks(masks)
    metrics = _metrics(old, new, kept, is_finite)
    return Event(with_leaves(dense, new.masks), with_leaves(dense, kept), metrics)


def targets(recipe: Recipe, params: PyTree) -> Targets:
    """Returns the counts that `plan` walks through, `Method.targets`."""
    shapes = leaf_shapes(prunable_leaves(params, recipe.prunable))
    groups = _groups(recipe, shapes)
    if recipe.masks is None:
        initial = _initial_counts(recipe, shapes, groups)
    else:
        initial = _given_counts(recipe, recipe.masks(), params, groups)
    return Targets(shapes, initial, _rows(recipe, shapes, groups), _grows(recipe))


def _groups(recipe: Recipe, shapes: Shapes) -> dict[str, Groups]:
    """The groups of all leaves, checked in every use of the method, not only at its first event.

    N:M needs a constant sparsity above 0, and leaves that compete need units of one size.
    """
    groups = groups_of(recipe.pattern, shapes)
    if groups and recipe.moves_weights:
        path, g = next(iter(groups.items()))
        raise ValueError(
            f"leaf {path} is {g.pattern}, and redistribute moves single weights between leaves; "
            "take a method without it, such as snfs(redistribute=False)"
        )
    for path, g in fixed(groups).items():
        if any(event.density is not None for event in recipe.timetable.events):
            raise ValueError(
                f"leaf {path} is {g.pattern}, which fixes its sparsity, and the method changes the "
                "sparsity during training; take one that holds it, such as rigl without cycles"
            )
        if recipe.timetable.initial_density == 1.0:
            raise ValueError(
                f"leaf {path} is {g.pattern}, but the method has sparsity 0; take one with a "
                "sparsity, such as static, and keep other leaves dense by its prunable="
            )
    check_sizes(recipe.timetable, shapes, groups, scope=recipe.scope, min_keep=recipe.min_keep)
    return groups


def _initial_counts(recipe: Recipe, shapes: Shapes, groups: GroupsByPath) -> dict[str, int]:
    density = recipe.timetable.initial_density
    return initial_counts(recipe.distribution, shapes, groups, density, recipe.min_keep)


def _given_counts(
    recipe: Recipe, masks: PyTree, params: PyTree, groups: GroupsByPath
) -> dict[str, int]:
    """The active units of every leaf in given masks, which have the pattern."""
    masks = check_masks(masks, params)
    check_given(masks, recipe.pattern, recipe.prunable)
    leaves = prunable_leaves(masks, recipe.prunable)
    counts = zip(leaves, num_true(leaves.values()), strict=True)
    return {path: count // group_size(groups.get(path)) for path, count in counts}


def _grows(recipe: Recipe) -> tuple[bool, ...]:
    """Whether each event brings leaves with too few weights up to their target.

    Cycles do. `prune`, `exchange` and `redistribute` do not, and a stage of someone's own is taken
    to do so.
    """
    known = (prune, exchange, redistribute)
    own = not all(any(made_by(stage, made) for made in known) for stage in recipe.stages)
    end = 0 if recipe.cycles is None else recipe.cycles.stop_step
    return tuple(own or event.step <= end for event in recipe.timetable.events)


def _rows(recipe: Recipe, shapes: Shapes, groups: GroupsByPath) -> Row:
    return rows_in_units(
        recipe.timetable,
        shapes,
        groups,
        scope=recipe.scope,
        distribution=recipe.distribution,
        min_keep=recipe.min_keep,
    )


def _run_phase(recipe: Recipe, step: int | jax.Array, *inputs: Any) -> tuple[Selected, Leaves]:
    """`_run_stages` with the stages of the last event up to `step`: the cycles' or the recipe's."""
    cycles = recipe.cycles
    run = lambda stages: functools.partial(_run_stages, stages, *inputs)
    if cycles is None:
        return run(recipe.stages)()
    own = [e.step for e in recipe.timetable.events if e.step > cycles.stop_step]
    if not own:
        return run(cycles.stages)()
    return lax.cond(step < own[0], run(cycles.stages), run(recipe.stages))


def _run_stages(
    stages: Sequence[Stage],
    weights: Leaves,
    signal: Leaves,
    masks: Leaves,
    row: Row,
    key: jax.Array | None,
) -> tuple[Selected, Leaves]:
    """The masks after all stages, and the weights that every stage left active."""
    new, kept = Selected(dict(masks), jnp.zeros(len(masks), jnp.int32)), masks
    for index, stage in enumerate(stages):
        after = stage(weights, signal, new.masks, row, fold_key(key, index))
        new = Selected({p: after.masks[p] for p in masks}, new.num_nan + after.num_nan)
        kept = {p: kept[p] & new.masks[p] for p in masks}
    return new, kept


def _signal(recipe: Recipe, grads: PyTree) -> PyTree:
    """The array that stages score by: the gradient, or the output of `observe`."""
    if isinstance(grads, Observed):
        return grads.signal
    if recipe.observes:
        raise ValueError(
            "this method reads an average of the gradient of every step, not one gradient: give "
            "update the signal of `signal, observe_state = method.observe.update(grads, "
            "observe_state, params)`, or take jaxsparse.sparse_optimizer, which does it"
        )
    return grads


def _metrics(old: Leaves, new: Selected, kept: Leaves, is_finite: jax.Array) -> EventMetrics:
    counts = [
        count_true(mask, old[p] & ~mask, mask & ~old[p], mask & ~kept[p])
        for p, mask in new.masks.items()
    ]
    columns = [jnp.stack(column) for column in zip(*counts, strict=True)]
    num_left_out = jnp.where(is_finite, 0, 1).astype(jnp.int32)
    return EventMetrics(*columns, num_nan=new.num_nan, num_left_out=num_left_out)
