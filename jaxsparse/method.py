"""A method: initial masks, a timetable, and the stages that every event runs.

`compose` is the one way to make a method; the published ones in `jaxsparse.methods` call it. A
method knows neither a model nor a training loop and holds no state; its `init` and `update` are
pure functions, to be called as they are or inside a compiled step. Methods of equal arguments are
equal, so that they can be static parts of trees and arguments of `jit`.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
import optax

from jaxsparse.axes import AxesByPath
from jaxsparse.comparable import comparable
from jaxsparse.distributions import erk
from jaxsparse.event import Cycles, Recipe, initial_masks, run_event, targets
from jaxsparse.masks import all_finite
from jaxsparse.paths import check_rules, dense_shapes, leaf_paths
from jaxsparse.patterns import PatternRules
from jaxsparse.plan import Plan, make_plan
from jaxsparse.planned_counts import Targets
from jaxsparse.timetable import Segment, Timetable
from jaxsparse.tracing.flops import OTHER
from jaxsparse.types import (
    DenseGradient,
    Distribution,
    Event,
    Observed,
    OptionError,
    PyTree,
    Rules,
    Scope,
    Stage,
)
from jaxsparse.unit_counts import check_options

_IDENTITY = optax.identity()  # one object, so that methods which observe nothing compare equal


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
      observe: turns the gradient of every step into the `grads` of `update` (SNFS). Its output is
        `Observed`; `update` of such a method takes nothing else. Its state does not change on a
        step whose gradient is not finite. `TrainState` and `sparse_optimizer` run it at every step;
        any other loop has to.
      skip_step: whether a step with an event leaves out the optimizer step (RigL, SET, SNFS).
        `TrainState` and `sparse_optimizer` leave it out; any other loop has to.
      prunable: the rules that say which leaves the method may prune; None is the default. This
        field only reports the rules of `init` and `update`: make the method anew to change them,
        since `_replace` would change the tables alone.
      dense_gradient: at which steps the method reads the gradient of inactive weights: "never"
        (GMP, SET), at its "events" (RigL, GraNet, to grow by it), or "always" (SNFS, which averages
        it over steps). Only the accounting of training FLOPs uses it: `jax.grad` at masked params
        gives the dense gradient in any case. The published methods know that `scores.random` needs
        no gradient; for another such score say `method._replace(dense_gradient="never")`.
      recipe: what `init`, `update` and `targets` are made of, for `with_pattern`, `with_cycles` and
        `starting_from`; None for a method that `compose` did not make.
    """

    name: str
    init: Callable[[jax.Array, PyTree], PyTree]
    update: Callable[..., Event]
    timetable: Timetable
    targets: Callable[[PyTree], Targets]
    observe: optax.GradientTransformation = _IDENTITY
    skip_step: bool = False
    prunable: Rules | None = None
    dense_gradient: DenseGradient = "never"
    recipe: Recipe | None = None

    def __repr__(self) -> str:
        """One line: JAX prints static parts of trees in its errors."""
        events, steps = len(self.timetable.events), self.timetable.total_steps
        return f"Method({self.name}, {events:,} events in {steps:,} steps)"

    @property
    def pattern(self) -> PatternRules:
        """The structure of the masks, as `check_pattern` takes it; `()` if they have none."""
        return () if self.recipe is None else self.recipe.pattern

    @property
    def scope(self) -> Scope:
        """Whether targets are one number over all leaves ("global") or one per leaf ("layer")."""
        return "layer" if self.recipe is None else self.recipe.scope

    @property
    def has_known_counts(self) -> bool:
        """Whether the number of active weights of every leaf is known before training.

        It is not if events prune or grow over all leaves together, or move weights between them:
        the scores then decide, and `plan` gives estimates.
        """
        if self.recipe is not None and self.recipe.moves_weights:
            return False
        changes = any(event.density is not None for event in self.timetable.events)
        return self.scope == "layer" or not changes

    @property
    def cycles(self) -> Cycles | None:
        """The cycles of density that `with_cycles` put in front; None if there are none."""
        return None if self.recipe is None else self.recipe.cycles

    @property
    def cycles_end(self) -> int:
        """The last step of the last cycle of density; 0 if there are no cycles."""
        return 0 if self.cycles is None else self.cycles.stop_step

    def plan(
        self,
        params: PyTree,
        flops: Mapping[str, int] | None = None,
        *,
        count_dense_gradient: bool = True,
        axes: AxesByPath | None = None,
    ) -> Plan:
        """The dry run: every event, what each layer keeps, and what training costs; print it.

        Args:
          params: any pytree of arrays or `jax.ShapeDtypeStruct`; only shapes are looked at.
          flops: dense forward FLOPs by path, from `layer_flops` on the same params; None leaves
            the costs out.
          count_dense_gradient: charge the steps that need the gradient of inactive weights for it.
            False is GraNet's published accounting.
          axes: what each axis of a leaf is, by path, from `kernel_axes`; the estimates for a global
            threshold depend on the fan-in. None goes by the rules of `jaxsparse.axes`.

        Raises:
          ValueError: the network cannot be trained so, for instance with fewer weights than layers;
            or `flops` is of another network.
        """
        leaves = leaf_paths(params)
        for path in flops or ():
            if path != OTHER and path not in leaves:
                raise ValueError(f"flops has a leaf {path}, which params lacks")
        charged = self.dense_gradient if count_dense_gradient else "never"
        wanted = self.targets(params)
        plan = make_plan(self.name, self.timetable, wanted, flops, charged, axes)
        dense = dense_shapes(params, self.prunable)
        return plan._replace(dense=dense, layers_are_estimates=not self.has_known_counts)

    def is_due(self, step: int) -> bool:
        """Whether an event follows optimizer step `step`: a Python int, counted from 1.

        Keep the count in the loop. `int(state.step)` would wait for the device at every step.

        Raises:
          ValueError: the step is traced, for example inside of `jit`.
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
    min_keep: int | None = None,
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
      min_keep: fewest active weights of each layer, in the initial masks and in what pruning
        leaves; the other layers make up for it, so that the total is exact. With 0 a layer may come
        out empty. None is 1, but 0 for what pruning with scope "global" leaves.
      prunable: which leaves; as in `prunable_paths`.
      observe: optax transformation of the dense gradient at every step, whose output `update`
        takes in place of the gradient; None is the gradient itself.
      skip_step: leave out the optimizer step where there is an event.
      dense_gradient: see `Method`. None assumes that stages grow by gradient: "always" with
        `observe`, else "events" if there are stages. Say "never" if no stage looks at the gradient
        of an inactive weight (pruning, growth at random).

    Returns:
      The method.

    Raises:
      ValueError: an option outside its range, or stages without an event at which they could run.
    """
    distribution = erk() if distribution is None else distribution
    # A tuple, so that a method can be a static argument of jit.
    prunable = check_rules(prunable)
    if dense_gradient is None:
        dense_gradient = "always" if observe is not None else "events" if stages else "never"
    check_options(scope, distribution, min_keep)
    min_keep = None if min_keep is None else int(min_keep)
    if dense_gradient not in get_args(DenseGradient):
        raise ValueError(f"dense_gradient {dense_gradient!r} must be 'never', 'events' or 'always'")

    if stages and not timetable.events:
        raise OptionError(
            "update_interval",
            timetable.update_interval,
            f"leaves {name} no event in {timetable.total_steps} steps, so its masks would never "
            "change",
            "take a shorter one, or static if that is meant",
        )

    recipe = Recipe(tuple(stages), timetable, distribution, scope, min_keep, prunable)
    recipe = recipe._replace(observes=observe is not None)
    return Method(
        name=name,
        timetable=timetable,
        observe=_IDENTITY if observe is None else observing(observe),
        skip_step=skip_step,
        prunable=prunable,
        dense_gradient=dense_gradient,
        **_functions(recipe),
    )


def observing(transformation: optax.GradientTransformation) -> optax.GradientTransformation:
    """Returns the transformation as a method's `observe`, whose output is `Observed`.

    A gradient that is not finite does not change its state. Loss scaling and
    `optax.apply_if_finite` treat the optimizer's state in the same way.
    """
    return optax.GradientTransformation(transformation.init, _observing(transformation.update))


@comparable
def _observing(update: Callable[..., Any]) -> Any:
    def observe(grads: PyTree, state: PyTree, params: PyTree | None = None) -> Any:
        signal, new = update(grads, state, params)
        is_finite = all_finite(grads)
        state = jax.tree.map(lambda new, old: jnp.where(is_finite, new, old), new, state)
        return Observed(signal), state

    return observe


def recipe_of(method: Method) -> Recipe:
    """Returns what a method is made of.

    Raises:
      ValueError: it is no method, or one that `compose` did not make.
    """
    if not isinstance(method, Method):
        raise ValueError(f"method {method!r} must be a method such as rigl(sparsity=0.9, ...)")
    if method.recipe is None:
        raise ValueError(f"method {method.name} must be one that compose made")
    return method.recipe


def remade(method: Method, recipe: Recipe, **fields: Any) -> Method:
    """Returns the method with another recipe and all that follows from it, and other fields."""
    return method._replace(timetable=recipe.timetable, **_functions(recipe), **fields)


def _functions(recipe: Recipe) -> dict[str, Any]:
    """The fields of a method that follow from its recipe."""
    return {
        "init": _init_of(recipe),
        "update": _update_of(recipe._replace(masks=None)),  # one for all masks to start from
        "targets": _targets_of(recipe),
        "recipe": recipe,
    }


@comparable
def _init_of(recipe: Recipe) -> Callable[..., PyTree]:
    return functools.partial(initial_masks, recipe)


@comparable
def _update_of(recipe: Recipe) -> Callable[..., Event]:
    try:
        return _compiled(recipe)
    except TypeError:  # a user's own part cannot be hashed
        return jax.jit(functools.partial(run_event, recipe))


@functools.lru_cache(maxsize=256)
def _compiled(recipe: Recipe) -> Callable[..., Event]:
    """One compiled function for all methods of one recipe."""
    return jax.jit(functools.partial(run_event, recipe))


@comparable
def _targets_of(recipe: Recipe) -> Callable[[PyTree], Targets]:
    return functools.partial(targets, recipe)
