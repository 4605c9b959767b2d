"""How the steps of a run are executed: on dense kernels with masks, or by active weights alone.

Both take a train state through the same steps; what is recorded, saved and evaluated is always the
state in full, so that a checkpoint does not depend on how it came about.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from experiments.training.run import Run, RunState
from experiments.training.steps import compile_steps, kinds
from jaxsparse import Method
from jaxsparse.nn import Forms, choose_forms
from jaxsparse.plan import Plan
from jaxsparse.sparse import (
    Positions,
    backend,
    compress,
    compress_leaves,
    count_active,
    expand,
    find_positions,
)

Data = tuple[jax.Array, jax.Array]
Indices = jax.Array | np.ndarray
Live = Any
"""A state as the execution keeps it between two steps."""


class Execution(Protocol):
    """Takes steps. What it is given it donates."""

    def start(self, state: RunState, capacity: Mapping[str, int] | None) -> Live:
        """From a state in full, and the capacity of the checkpoint that it comes from."""
        ...

    def step(self, live: Live, event: bool, indices: Indices) -> tuple[Live, jax.Array]:
        """One step on the images at `indices`; returns the mean loss too."""
        ...

    def full(self, live: Live) -> RunState:
        """The state in full; nothing is donated."""
        ...

    def capacity(self, live: Live) -> dict[str, int]:
        """What a checkpoint is to keep of how the state is executed."""
        ...

    def note(self, live: Live) -> str:
        """A line on how the network is executed, where there is anything to say."""
        ...


def make_execution(
    run: Run, state: RunState, data: Data, capacity: Mapping[str, int] | None = None
) -> Execution:
    """Returns what executes the run's steps, compiled for the state at hand.

    Args:
      run: what to train.
      state: to start from.
      data: images and labels.
      capacity: of the checkpoint that the state comes from; None: it is a fresh one.
    """
    if run.execution == "sparse":
        return Sparse(run, state, data, capacity)
    return Masked(run, state, data)


class Masked:
    """Dense kernels, masked."""

    def __init__(self, run: Run, state: RunState, data: Data):
        self._data = data
        self._steps = compile_steps(run, state, data, kinds(run))

    def start(self, state: RunState, capacity: Mapping[str, int] | None) -> RunState:
        """The state itself."""
        del capacity
        return state

    def step(self, live: RunState, event: bool, indices: Indices) -> tuple[RunState, jax.Array]:
        """As in `Execution`."""
        return self._steps[event](live, *self._data, indices)

    def full(self, live: RunState) -> RunState:
        """The state itself."""
        return live

    def capacity(self, live: RunState) -> dict[str, int]:
        """None."""
        del live
        return {}

    def note(self, live: RunState) -> str:
        """Nothing."""
        del live
        return ""


class Compressed(NamedTuple):
    """A state by its active weights.

    Attributes:
      state: compressed.
      positions: of the active weights, by path.
      forms: how the network is executed with them.
    """

    state: RunState
    positions: dict[str, Positions]
    forms: Forms


class Sparse:
    """By active weights, where that is faster.

    Between events a step reads and writes active weights only. An event looks at the state in full.
    Where the method grows by gradient, its step takes the dense gradient, which costs as much as a
    step of dense kernels; else the gradient of the active weights will do.

    A step is compiled anew when an event has changed which layers are sparse, or the capacity that
    they
    need: never at a constant number of weights a layer, once after cycles of density, during which
    there is capacity for the most that they ask for, else a few times.
    """

    def __init__(self, run: Run, state: RunState, data: Data, capacity: Mapping[str, int] | None):
        self._run = run
        self._data = data
        self._dense_steps = {}
        self._compiled: dict[Any, Callable[..., Any]] = {}
        self._highest = highest_counts(run.method, state.params)
        if run.method.dense_gradient == "events" and run.method.timetable.events:
            self._dense_steps = compile_steps(run, state, data, (True,))
        live = self.start(state, capacity)
        for event in kinds(run):
            if event not in self._dense_steps:
                self._sparse_step(live, event)

    def start(self, state: RunState, capacity: Mapping[str, int] | None) -> Compressed:
        """Chooses the form of every layer, and compresses the state."""
        active = count_active(state.masks, self._run.method.prunable)
        step = int(state.step)
        if step < self._highest.stop_step:
            active, capacity = self._highest.counts, None
        # A masked run has left no capacity.
        forms = forms_of(self._run, active, capacity or None, step=step)
        positions = find_positions(state.masks, self._run.method.prunable, capacity=forms.capacity)
        return Compressed(_compress(state, positions), positions, forms)

    def step(self, live: Compressed, event: bool, indices: Indices) -> tuple[Compressed, jax.Array]:
        """As in `Execution`."""
        if event and self._dense_steps:
            state, loss = self._dense_steps[True](self.full(live), *self._data, indices)
            return self.start(state, live.forms.capacity), loss
        step = self._sparse_step(live, event)
        state, loss = step(live.state, *self._data, indices, live.positions)
        if event:
            return self.start(state, live.forms.capacity), loss
        return live._replace(state=state), loss

    def full(self, live: Compressed) -> RunState:
        """The state in full."""
        return _expand(live.state, live.positions)

    def capacity(self, live: Compressed) -> dict[str, int]:
        """Of the leaves that are executed by their active weights."""
        return live.forms.capacity

    def note(self, live: Compressed) -> str:
        """How many layers are sparse now, and what computes them."""
        return f"sparse execution: {' '.join(backend())}; {str(live.forms).splitlines()[0]}"

    def _sparse_step(self, live: Compressed, event: bool) -> Callable[..., Any]:
        key = (event, live.forms.model, tuple(live.forms.capacity.items()))
        if key not in self._compiled:
            run = self._run._replace(model=live.forms.model)
            self._compiled[key] = compile_steps(
                run, live.state, self._data, (event,), live.positions
            )[event]
        return self._compiled[key]


_compress = jax.jit(compress)
_compress_leaves = jax.jit(compress_leaves)
_expand = jax.jit(expand)


class Highest(NamedTuple):
    """What cycles of density ask for.

    Attributes:
      counts: the most active weights of every leaf while they last, by path.
      stop_step: of the last cycle; 0 without cycles, or where it is not known before.
    """

    counts: dict[str, int]
    stop_step: int


def highest_counts(method: Method, params: Any) -> Highest:
    """Returns how many active weights each leaf has in the middle of the cycles of a method."""
    stop = _end_of_known_cycles(method)
    if not stop:
        return Highest({}, 0)
    found = method.targets(params)
    inside = [i for i, event in enumerate(method.timetable.events) if event.step <= stop]
    # At the start there may be more than at any event: none at all, where all is dense until later.
    most = lambda path, row: max([found.initial[path], *(int(row[i]) for i in inside)])
    return Highest({path: most(path, row) for path, row in found.rows.target.items()}, stop)


def _end_of_known_cycles(method: Method) -> int:
    """The last step of the cycles; 0 without, or where scores decide what a layer has in them."""
    recipe = method.recipe
    if recipe is None or recipe.cycles is None or recipe.scope != "layer" or recipe.pattern:
        return 0
    return recipe.cycles.stop_step


def forms_of(
    run: Run,
    active: Mapping[str, int],
    capacity: Mapping[str, int] | None = None,
    *,
    step: int = 0,
) -> Forms:
    """How the network is trained at some numbers of active weights, by path.

    Args:
      run: what is trained.
      active: the numbers.
      capacity: of the forms before the last mask update.
      step: completed steps. In cycles of density the numbers are to be the highest ones.
    """
    recipe, events = run.method.recipe, run.method.timetable.events
    own = recipe.cycles.stop_step if recipe is not None and recipe.cycles is not None else 0
    changing = any(event.density is not None and event.step > max(step, own) for event in events)
    exact = not changing and recipe is not None and recipe.scope == "layer"
    images = _images(run, run.batch_size // run.accumulate)
    return choose_forms(run.model, images, active, capacity, exact=exact)


def describe_execution(run: Run, plan: Plan) -> str:
    """Returns what the plan adds under --execution=sparse: the form of every layer, or nothing."""
    if run.execution == "masked":
        return ""
    lines = [f"sparse execution: {' '.join(backend())}"]
    # In cycles there is capacity for the most from the start on.
    first = [row.layers for row in plan.rows if row.step <= _end_of_known_cycles(run.method)]
    start = {path: max(layers[path] for layers in first) for path in plan.sizes}
    for when, active in {"at the start": start, "at the end": plan.rows[-1].layers}.items():
        lines.append(f"{when}: {forms_of(run, active)}")
    return "\n\n".join(["", *lines, ""])


def executed(run: Run, variables: Any, batch_size: int) -> tuple[nn.Module, Any, dict[str, Any]]:
    """How a trained network is applied: the model, its variables, the positions that go with them.

    What is active is told by the weights themselves.
    """
    if run.execution == "masked":
        return run.model, variables, {}
    masks = jax.tree.map(lambda x: x != 0, variables["params"])
    active = count_active(masks, run.method.prunable)
    forms = choose_forms(run.model, _images(run, batch_size), active, train=False)
    capacity = _seldom_changing(forms)
    positions = find_positions(masks, run.method.prunable, capacity=capacity)
    params = _compress_leaves(variables["params"], positions)
    return forms.model, {**variables, "params": params}, positions


def compressed(run: Run, state: RunState) -> tuple[nn.Module, Any, dict[str, Positions]]:
    """How a network in training is applied: the model, its params, the positions with them."""
    if run.execution == "masked":
        return run.model, state.params, {}
    forms = forms_of(run, count_active(state.masks, run.method.prunable))
    capacity = _seldom_changing(forms)
    positions = find_positions(state.masks, run.method.prunable, capacity=capacity)
    return forms.model, _compress_leaves(state.params, positions), positions


def _seldom_changing(forms: Forms) -> dict[str, int]:
    """The capacity rounded up to powers of two.

    The numbers of active weights differ from one evaluation to the next, by mask updates and where
    weights are still 0.
    """
    sizes = {form.path: form.size for form in forms.layers}
    return {p: min(1 << (n - 1).bit_length(), sizes[p]) for p, n in forms.capacity.items() if n}


def _images(run: Run, batch_size: int) -> jax.ShapeDtypeStruct:
    """The shape of a batch as the network takes it."""
    size = run.dataset.train.images.shape[1:]
    pixels = jax.ShapeDtypeStruct((batch_size, *size), jnp.uint8)
    return jax.eval_shape(run.normalise, pixels)


def check_execution(run: Run) -> None:
    """Refuses what sparse execution cannot do.

    Raises:
      ValueError: names the flag, its value and its range.
    """
    if run.execution not in ("masked", "sparse"):
        raise ValueError(f"--execution={run.execution} must be masked or sparse")
    if run.execution == "masked":
        return
    if run.method.dense_gradient == "always":
        raise ValueError(
            f"--execution=sparse: {run.method.name} reads the gradient of all weights at every "
            f"step; take --execution=masked"
        )
    dtype = getattr(run.model, "dtype", jnp.float32)
    if dtype != jnp.float32:
        raise ValueError(f"--execution=sparse takes --dtype=float32, not {jnp.dtype(dtype)}")
