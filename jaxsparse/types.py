"""Shared types: aliases, protocols, small tuples that pass between modules, and an error.

All code below the methods works on *leaves by path*: a plain dict from the path of each prunable
leaf ("Dense_0/kernel") to an array. A dict of arrays is a pytree, so `jax.tree.map`, `jit` and
`eval_shape` accept it. Leaves that stay dense are not in it.
"""

from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

import jax

PyTree: TypeAlias = Any
Leaves: TypeAlias = Mapping[str, jax.Array]
Counts: TypeAlias = Mapping[str, int] | Mapping[str, jax.Array]
Shapes: TypeAlias = Mapping[str, tuple[int, ...]]
Rules: TypeAlias = Sequence[tuple[str, bool | None]]
Scope: TypeAlias = Literal["global", "layer"]
Rounding: TypeAlias = Literal["floor", "ceil"]
CycleShape: TypeAlias = Literal["cosine", "triangular"]
DenseGradient: TypeAlias = Literal["never", "events", "always"]


class OptionError(ValueError):
    """An error about the value of an option.

    The message is kept in parts, so that a caller whose options have other names (a command line)
    can say it in its own names.

    Attributes:
      option: name of the option, such as "scope".
      value: the value that was given.
      wrong: what is wrong with it; the message is "option value wrong".
      advice: what to do instead, in the names of the library; "" if `wrong` says it already.

    >>> str(OptionError("scope", "all", "must be 'global' or 'layer'"))
    "scope 'all' must be 'global' or 'layer'"
    """

    def __init__(self, option: str, value: Any, wrong: str, advice: str = ""):
        super().__init__(option, value, wrong, advice)
        self.option, self.value, self.wrong, self.advice = option, value, wrong, advice

    def __str__(self) -> str:
        value = repr(self.value) if isinstance(self.value, str) else self.value
        return f"{self.option} {value} {self.wrong}{self.advice and f'; {self.advice}'}"


class EventMetrics(NamedTuple):
    """What an event did, counted per prunable leaf in the order of `prunable_paths(params)`.

    Attributes:
      num_active: int32[leaves], weights that are active after the event.
      num_dropped: int32[leaves], weights that were active before and are inactive after.
      num_grown: int32[leaves], weights that were inactive before and are active after.
      num_restarted: int32[leaves], weights that are active after the event but restart at 0: the
        grown ones, and those that one stage removed and a later stage brought back.
      num_nan: int32[leaves], NaN scores among the entries that a selection could choose from. NaN
        orders last, so the counts stay exact, but a number above 0 is a sign of a broken run.
      num_left_out: int32[], 1 if the event was left out because the gradient of its step was not
        finite (masks and weights are as before), else 0.
    """

    num_active: jax.Array
    num_dropped: jax.Array
    num_grown: jax.Array
    num_restarted: jax.Array
    num_nan: jax.Array
    num_left_out: jax.Array | int = 0

    @property
    def num_empty(self) -> jax.Array:
        """int32[], the number of prunable leaves left without an active weight."""
        return (self.num_active == 0).sum()


class Event(NamedTuple):
    """One mask update.

    Attributes:
      masks: the new masks, a tree of bool like params.
      kept: a tree of bool within `masks`: the active weights whose value and optimizer slots
        survive. Every other active weight starts again at 0.
      metrics: counts of what the event did, per leaf.
    """

    masks: PyTree
    kept: PyTree
    metrics: EventMetrics


class KernelAxes(NamedTuple):
    """The role of each axis of one leaf in the product that uses it; see `jaxsparse.axes`.

    Every axis of the leaf is named once. Axes written by hand may be negative, as in NumPy.

    Attributes:
      inputs: axes that the product sums over.
      outputs: axes of the result.
      window: the taps of a convolution; the product sums over them too.
      batch: axes along which each index has its own kernel, such as the layers of `nn.scan` or
        experts.
    """

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    window: tuple[int, ...] = ()
    batch: tuple[int, ...] = ()


class Observed(NamedTuple):
    """The output of a method's `observe`, which `update` takes in place of the gradients.

    Attributes:
      signal: a tree like params, such as an average of the gradients so far.
    """

    signal: PyTree


class Groups(NamedTuple):
    """How a pattern cuts one leaf into groups of equal size; see `jaxsparse.units`.

    Attributes:
      pattern: name of the pattern, such as "2:4".
      split: a shape to which the leaf is reshaped, so that `axes` can describe the groups.
      axes: the axes of `split` that run within a group, in rising order.
      num_active: number of active entries in every group, the N of N:M; None if a group is either
        wholly active or wholly inactive.
    """

    pattern: str
    split: tuple[int, ...]
    axes: tuple[int, ...]
    num_active: int | None = None


class Row(NamedTuple):
    """The targets of one event: integers, computed on the host.

    One weight is one entry. If the groups of a leaf are active as a whole, one weight is one group,
    and the leaf's masks have the shape of its groups (`units.unit_shape`).

    Attributes:
      target: number of active weights after the event: int32[] over all leaves together (scope
        "global"), or a dict of int32[] by path (scope "layer").
      drop: (numerator, denominator), int32[] each: the exact share of a leaf's active weights that
        an exchange replaces. The denominator is below 46341, so that products fit into int32.
      min_keep: Python int, the fewest weights that a global target may leave to each leaf; 0 for no
        limit.
      groups: groups by path, for the leaves that have a pattern.
    """

    target: Any
    drop: tuple[Any, Any]
    min_keep: int = 0
    groups: Mapping[str, Groups] = MappingProxyType({})


class Scores(NamedTuple):
    """Scores that are computed when they are needed instead of being stored.

    Attributes:
      inputs: a pytree of arrays.
      compute: inputs -> float arrays by path. It must be cheap: a search calls it at every pass.
    """

    inputs: Any
    compute: Callable[[Any], Mapping[str, jax.Array]]


class Candidates(NamedTuple):
    """What a selection chooses from: lists with one array per leaf.

    Attributes:
      eligible: bool arrays, entries that may be chosen. None if all may.
      given: bool arrays, entries already in the mask, hence not candidates. None if there are none.
      num: int32[leaves], the number of candidates; None if it is not known yet.
    """

    eligible: list[jax.Array] | None
    given: list[jax.Array] | None
    num: jax.Array | None


class Selected(NamedTuple):
    """The result of a selection or a stage.

    Attributes:
      masks: bool arrays by path.
      num_nan: int32[leaves], NaN scores among the eligible entries.
    """

    masks: dict[str, jax.Array]
    num_nan: jax.Array


class Score(Protocol):
    """A criterion for weights: a higher score means keep, or grow. Called once per leaf.

    A new criterion is a new function of this form; see `jaxsparse.scores`.
    """

    def __call__(self, w: jax.Array, g: jax.Array, key: jax.Array | None) -> jax.Array:
        """Scores one leaf.

        Args:
          w: float[shape], the weights (0 where inactive).
          g: float[shape], the dense gradient, or the output of the method's `observe`.
          key: the leaf's own key for this event, or None if the caller gave no key.

        Returns:
          float[shape], any range; infinities are ordered, NaN orders last.
        """
        ...


class Distribution(Protocol):
    """A rule that distributes a density over layers; see `jaxsparse.distributions`."""

    def __call__(self, shapes: Shapes, density: float) -> dict[str, float]:
        """Returns the density in [0, 1] of every leaf, by path; `leaf_counts` makes it integers.

        A shape may have size 0: the leaf is empty, or a pattern fixes its density already. Such a
        leaf takes no share of the density, and the value returned for it is ignored.
        """
        ...


class Stage(Protocol):
    """One step of an event: a pure function from masks to masks; see `jaxsparse.stages`."""

    def __call__(
        self, weights: Leaves, signal: Leaves, masks: Leaves, row: Row, key: jax.Array | None
    ) -> Selected:
        """Returns the masks after this stage, for the same paths.

        Weights and signal have the shapes of the leaves. So do masks, except for leaves that
        `row.groups` counts in units. `scores.score_leaves` gives scores the shapes of the masks.
        """
        ...


class StepSchedule(Protocol):
    """A number as a function of the step, evaluated on the host in float64; see `schedules`."""

    def __call__(self, step: int) -> float:
        """Returns the value at `step`, counted from 1."""
        ...


class PlannedEvent(NamedTuple):
    """One entry of a timetable.

    Attributes:
      step: the optimizer step, counted from 1; the event happens right after it.
      density: the target density, or None if the number of active weights stays as it is.
      drop_fraction: exact share of each leaf's active weights to replace, in [0, 1].
    """

    step: int
    density: float | None
    drop_fraction: Fraction
