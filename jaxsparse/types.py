"""The vocabulary: aliases, protocols, small tuples that pass between the parts, and an error.

Everything below the methods works on *leaves by path*: a plain dict that maps the path of each
prunable leaf ("Dense_0/kernel") to an array. A dict of arrays is a pytree, so `jax.tree.map`,
`jit` and `eval_shape` take it; leaves that stay dense never get there.
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
    """A value that an option does not take, in parts, for a caller whose options have other names.

    Attributes:
      option: its name, such as "scope".
      value: what it was given.
      wrong: why that will not do, a sentence that begins with the option and its value.
      advice: what else to do, in the names of the library; "" where `wrong` says it.

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
      num_active: int32[leaves], active after the event.
      num_dropped: int32[leaves], active before and inactive after.
      num_grown: int32[leaves], inactive before and active after.
      num_restarted: int32[leaves], active after the event but starting again at 0: the grown ones,
        and those that one stage removed and a later stage brought back.
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
      metrics: what happened, per leaf.
    """

    masks: PyTree
    kept: PyTree
    metrics: EventMetrics


class KernelAxes(NamedTuple):
    """What each axis of one leaf is in the product that uses it; see `jaxsparse.axes`.

    Every axis of the leaf is named once. A number may be negative, as in NumPy, where one writes
    them by hand.

    Attributes:
      inputs: the product sums over them.
      outputs: they are axes of the result.
      window: the taps of a convolution, summed over as well.
      batch: each place has a kernel of its own, such as a layer of `nn.scan` or an expert.
    """

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    window: tuple[int, ...] = ()
    batch: tuple[int, ...] = ()


class Observed(NamedTuple):
    """What a method's `observe` made of the gradients so far; `update` takes it in their place.

    Attributes:
      signal: a tree like params.
    """

    signal: PyTree


class Groups(NamedTuple):
    """How a pattern cuts one leaf into groups of equal size; see `jaxsparse.units`.

    Attributes:
      pattern: its name, such as "2:4".
      split: a shape for the leaf's entries in their order, in which `axes` can name the groups.
      axes: the axes of `split` that run within a group, rising.
      num_active: how many entries of every group are active, n of N:M; None: a group is active as a
        whole or not at all.
    """

    pattern: str
    split: tuple[int, ...]
    axes: tuple[int, ...]
    num_active: int | None = None


class Row(NamedTuple):
    """What is asked of one event: integers, computed on the host.

    What counts as one weight is one entry, or one group of a leaf whose groups are active as a
    whole: its masks then have the shape of the groups (`groups.unit_shape`).

    Attributes:
      target: int32[] active weights over all leaves together (scope "global"), or a dict of
        int32[] by path (scope "layer"): how many there should be after the event.
      drop: (numerator, denominator), int32[] each: the exact share of a leaf's active weights that
        an exchange replaces; denominator below 46341 so that products stay within int32.
      min_keep: Python int, fewest weights that a global target may leave to each leaf; 0 is none.
      groups: by path, of the leaves that have a pattern.
    """

    target: Any
    drop: tuple[Any, Any]
    min_keep: int = 0
    groups: Mapping[str, Groups] = MappingProxyType({})


class Scores(NamedTuple):
    """Scores that are computed where they are needed instead of being stored.

    Attributes:
      inputs: a pytree of arrays.
      compute: inputs -> float arrays by path; cheap, since a search calls it at every pass.
    """

    inputs: Any
    compute: Callable[[Any], Mapping[str, jax.Array]]


class Candidates(NamedTuple):
    """What a selection chooses from, in lists with an array of each leaf.

    Attributes:
      eligible: bool arrays; None: all entries are.
      given: bool arrays, entries that are in without being chosen, and no candidates; None: none.
      num: int32[leaves], the number of candidates where it is known already, or None.
    """

    eligible: list[jax.Array] | None
    given: list[jax.Array] | None
    num: jax.Array | None


class Selected(NamedTuple):
    """What a selection or a stage returns.

    Attributes:
      masks: bool arrays by path.
      num_nan: int32[leaves], NaN scores among the eligible entries.
    """

    masks: dict[str, jax.Array]
    num_nan: jax.Array


class Score(Protocol):
    """What a weight is worth: higher means keep, or grow. Called once per leaf.

    A new criterion is a new function of this form; see `jaxsparse.scores`.
    """

    def __call__(self, w: jax.Array, g: jax.Array, key: jax.Array | None) -> jax.Array:
        """Scores one leaf.

        Args:
          w: float[shape], the weights (0 where inactive).
          g: float[shape], the dense gradient, or what the method's `observe` made of it.
          key: the leaf's own key for this event, or None where the caller gave no key.

        Returns:
          float[shape], any range; infinities are ordered, NaN is last.
        """
        ...


class Distribution(Protocol):
    """How a density is shared out among layers; see `jaxsparse.distributions`."""

    def __call__(self, shapes: Shapes, density: float) -> dict[str, float]:
        """Returns the density in [0, 1] of every leaf, by path; `leaf_counts` makes it integers.

        A shape may have a size of 0: an empty leaf, or one whose density a pattern fixes already.
        It takes no share of the density, and what is returned for it counts for nothing.
        """
        ...


class Stage(Protocol):
    """One step of an event: a pure function from masks to masks; see `jaxsparse.stages`."""

    def __call__(
        self, weights: Leaves, signal: Leaves, masks: Leaves, row: Row, key: jax.Array | None
    ) -> Selected:
        """Returns the masks after this stage, for the same paths.

        Weights and signal have the shapes of the leaves; masks too, but for leaves that
        `row.groups` counts in units. `scores.score_leaves` brings scores into the masks' shapes.
        """
        ...


class StepSchedule(Protocol):
    """A number over optimizer steps, evaluated on the host in float64; see `schedules`."""

    def __call__(self, step: int) -> float:
        """Returns the value at `step`, counted from 1."""
        ...


class PlannedEvent(NamedTuple):
    """One entry of a timetable.

    Attributes:
      step: the optimizer step, counted from 1, right after which the event happens.
      density: the target density, or None where the number of active weights is held.
      drop_fraction: exact share of each leaf's active weights to replace, in [0, 1].
    """

    step: int
    density: float | None
    drop_fraction: Fraction
