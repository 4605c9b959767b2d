"""How the steps of a run are executed: on dense kernels with masks, or by active weights alone.

Both take a train state through the same steps. Records, checkpoints and evaluations always see the
state in full, so that a checkpoint does not depend on how it came about.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from flax import linen as nn

from experiments.training.batches import Batch
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

Live = Any
"""A state in the form that the execution keeps between two steps."""


class Execution(Protocol):
    """Takes steps. It donates the states that it is given."""

    def start(self, state: RunState, capacity: Mapping[str, int] | None) -> Live:
        """Takes over a state in full, with the capacity of the checkpoint that it comes from."""
        ...

    def step(self, live: Live, event: bool, batch: Batch) -> tuple[Live, jax.Array]:
        """Takes one step on a batch, with a mask update if `event`; returns the mean loss too."""
        ...

    def full(self, live: Live) -> RunState:
        """Returns the state in full; nothing is donated."""
        ...

    def capacity(self, live: Live) -> dict[str, int]:
        """Returns what a checkpoint has to keep of how the state is executed."""
        ...

    def note(self, live: Live) -> str:
        """Returns a line on how the network is executed, or "" if there is nothing to say."""
        ...


def make_execution(
    run: Run, state: RunState, batch: Batch, capacity: Mapping[str, int] | None = None
) -> Execution:
    """Compiles the run's steps for the state at hand, and returns what executes them.

    Args:
      run: what to train.
      state: to start from.
      batch: the first one; all others have its kind, shapes and shardings.
      capacity: of the checkpoint that the state comes from; None for a fresh state.
    """
    if run.execution == "sparse":
        return Sparse(run, state, batch, capacity)
    return Masked(run, state, batch)


class Masked:
    """Executes on dense kernels, with masks."""

    def __init__(self, run: Run, state: RunState, batch: Batch):
        self._steps = compile_steps(run, state, batch, kinds(run))

    def start(self, state: RunState, capacity: Mapping[str, int] | None) -> RunState:
        """Returns the state itself."""
        del capacity
        return state

    def step(self, live: RunState, event: bool, batch: Batch) -> tuple[RunState, jax.Array]:
        """As in `Execution`."""
        return self._steps[event](live, batch)

    def full(self, live: RunState) -> RunState:
        """Returns the state itself."""
        return live

    def capacity(self, live: RunState) -> dict[str, int]:
        """Returns an empty dict."""
        del live
        return {}

    def note(self, live: RunState) -> str:
        """Returns an empty string."""
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
    """Executes by active weights where that is faster.

    Between events a step reads and writes active weights only. An event needs the state in full. If
    the method grows by gradient, the step before its event computes the dense gradient, which costs
    as much as a step on dense kernels; otherwise the gradient of the active weights is enough.

    A step is compiled again when an event has changed which layers are sparse or how much capacity
    they need. That never happens if every layer keeps its number of weights. With cycles of density
    it happens once, after the last: until then every layer has capacity for the most weights that
    the cycles give it. With other changes of density it happens a few times.
    """

    def __init__(self, run: Run, state: RunState, batch: Batch, capacity: Mapping[str, int] | None):
        self._run = run
        self._dense_steps = {}
        self._compiled: dict[Any, Callable[..., Any]] = {}
        self._highest = highest_counts(run.method, state.params)
        if run.method.dense_gradient == "events" and run.method.timetable.events:
            self._dense_steps = compile_steps(run, state, batch, (True,))
        live = self.start(state, capacity)
        for event in kinds(run):
            if event not in self._dense_steps:
                self._sparse_step(live, event, batch)

    def start(self, state: RunState, capacity: Mapping[str, int] | None) -> Compressed:
        """Chooses the form of every layer, and compresses the state."""
        active = count_active(state.masks, self._run.method.prunable)
        step = int(state.step)
        if step < self._highest.stop_step:
            # Masks that the run was given may have more than the method asks for.
            most = self._highest.counts
            active, capacity = {path: max(n, active[path]) for path, n in most.items()}, None
        # The checkpoint of a masked run has an empty capacity, which counts as none.
        forms = forms_of(self._run, active, capacity or None, step=step)
        positions = find_positions(state.masks, self._run.method.prunable, capacity=forms.capacity)
        return Compressed(_compress(state, positions), positions, forms)

    def step(self, live: Compressed, event: bool, batch: Batch) -> tuple[Compressed, jax.Array]:
        """As in `Execution`."""
        if event and self._dense_steps:
            state, loss = self._dense_steps[True](self.full(live), batch)
            return self.start(state, live.forms.capacity), loss
        step = self._sparse_step(live, event, batch)
        state, loss = step(live.state, batch, live.positions)
        if event:
            return self.start(state, live.forms.capacity), loss
        return live._replace(state=state), loss

    def full(self, live: Compressed) -> RunState:
        """Returns the state in full."""
        return _expand(live.state, live.positions)

    def capacity(self, live: Compressed) -> dict[str, int]:
        """Returns the capacity of the leaves that are executed by their active weights."""
        return live.forms.capacity

    def note(self, live: Compressed) -> str:
        """Says how many layers are sparse now, and what computes them."""
        return f"sparse execution: {' '.join(backend())}; {str(live.forms).splitlines()[0]}"

    def _sparse_step(self, live: Compressed, event: bool, batch: Batch) -> Callable[..., Any]:
        key = (event, live.forms.model, tuple(live.forms.capacity.items()))
        if key not in self._compiled:
            run = self._run._replace(model=live.forms.model)
            steps = compile_steps(run, live.state, batch, (event,), live.positions)
            self._compiled[key] = steps[event]
        return self._compiled[key]


_compress = jax.jit(compress)
_compress_leaves = jax.jit(compress_leaves)
_expand = jax.jit(expand)


class Highest(NamedTuple):
    """The most active weights that cycles of density ask for.

    Attributes:
      counts: by path, for every leaf, over all cycles.
      stop_step: of the last cycle; 0 without cycles, or if the counts are not known beforehand.
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
    # The start may have more than any event: there is none if all stays dense until later.
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
    """Returns how each layer is executed in training, given its number of active weights.

    Args:
      run: what is trained.
      active: the numbers by path; within cycles of density, the highest ones.
      capacity: of the forms before the last mask update.
      step: completed steps.
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
    # With cycles, there is capacity for their highest counts from the start on.
    first = [row.layers for row in plan.rows if row.step <= _end_of_known_cycles(run.method)]
    start = {path: max(layers[path] for layers in first) for path in plan.sizes}
    for when, active in {"at the start": start, "at the end": plan.rows[-1].layers}.items():
        lines.append(f"{when}: {forms_of(run, active)}")
    return "\n\n".join(["", *lines, ""])


def executed(run: Run, variables: Any, batch_size: int) -> tuple[nn.Module, Any, dict[str, Any]]:
    """Returns how a trained network is applied: the model, its variables, and their positions.

    A weight counts as active if it is not 0.
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
    """Returns how a network in training is applied: the model, its params, and their positions."""
    if run.execution == "masked":
        return run.model, state.params, {}
    forms = forms_of(run, count_active(state.masks, run.method.prunable))
    capacity = _seldom_changing(forms)
    positions = find_positions(state.masks, run.method.prunable, capacity=capacity)
    return forms.model, _compress_leaves(state.params, positions), positions


def _seldom_changing(forms: Forms) -> dict[str, int]:
    """Returns the capacity rounded up to powers of two, so that few evaluations compile anew.

    The number of active weights changes from one evaluation to the next: by mask updates, and
    because a weight that has just grown is still 0.
    """
    sizes = {form.path: form.size for form in forms.layers}
    return {p: min(1 << (n - 1).bit_length(), sizes[p]) for p, n in forms.capacity.items() if n}


def _images(run: Run, batch_size: int) -> jax.ShapeDtypeStruct:
    """Returns the shape of a batch as the network takes it."""
    size = run.dataset.train.images.shape[1:]
    pixels = jax.ShapeDtypeStruct((batch_size, *size), jnp.uint8)
    return jax.eval_shape(run.normalise, pixels)


def check_execution(run: Run) -> None:
    """Refuses what sparse execution cannot do; the ValueError names flag, value and range."""
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
