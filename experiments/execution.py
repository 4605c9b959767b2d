"""How the steps of a run are executed: on dense kernels with masks, or by active weights alone.

Both take a train state through the same steps; what is recorded, saved and evaluated is always the
state in full, so that a checkpoint does not depend on how it came about.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from experiments.run import Run, RunState
from experiments.steps import compile_steps, kinds
from jaxsparse.nn import Forms, choose_forms
from jaxsparse.sparse import Positions, compress, expand, find_positions

Indices = jax.Array | np.ndarray
Live = Any
"""A state as the execution keeps it between two steps."""


class Execution(Protocol):
    """Takes steps. What it is given it donates."""

    def start(self, state: RunState) -> Live:
        """From a state in full."""
        ...

    def step(self, live: Live, event: bool, indices: Indices) -> tuple[Live, jax.Array]:
        """One step on the images at `indices`; returns the mean loss too."""
        ...

    def full(self, live: Live) -> RunState:
        """The state in full; nothing is donated."""
        ...


def make_execution(run: Run, state: RunState, images: jax.Array, labels: jax.Array) -> Execution:
    """Returns what executes the run's steps, compiled for the state at hand."""
    kind = Sparse if run.execution == "sparse" else Masked
    return kind(run, state, images, labels)


class Masked:
    """Dense kernels, masked."""

    def __init__(self, run: Run, state: RunState, images: jax.Array, labels: jax.Array):
        self._data = (images, labels)
        self._steps = compile_steps(run, state, images, labels, kinds(run))

    def start(self, state: RunState) -> RunState:
        """The state itself."""
        return state

    def step(self, live: RunState, event: bool, indices: Indices) -> tuple[RunState, jax.Array]:
        """As in `Execution`."""
        return self._steps[event](live, *self._data, indices)

    def full(self, live: RunState) -> RunState:
        """The state itself."""
        return live


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

    A step is compiled anew when an event has changed which layers are sparse, or the room that they
    need: never at a constant number of weights a layer, else a few times.
    """

    def __init__(self, run: Run, state: RunState, images: jax.Array, labels: jax.Array):
        self._run = run
        self._data = (images, labels)
        self._dense_steps = {}
        self._compiled: dict[Any, Callable[..., Any]] = {}
        if run.method.dense_gradient == "events" and run.method.timetable.events:
            self._dense_steps = compile_steps(run, state, images, labels, (True,))
        live = self.start(state)
        for event in kinds(run):
            if event not in self._dense_steps:
                self._sparse_step(live, event)

    def start(self, state: RunState) -> Compressed:
        """Chooses the form of every layer, and compresses the state."""
        forms = forms_of(self._run, state.masks)
        positions = find_positions(state.masks, self._run.method.prunable, room=forms.rooms)
        return Compressed(_compress(state, positions), positions, forms)

    def step(self, live: Compressed, event: bool, indices: Indices) -> tuple[Compressed, jax.Array]:
        """As in `Execution`."""
        if event and self._dense_steps:
            state, loss = self._dense_steps[True](self.full(live), *self._data, indices)
            return self.start(state), loss
        step = self._sparse_step(live, event)
        state, loss = step(live.state, *self._data, indices, live.positions)
        return (self.start(state) if event else live._replace(state=state)), loss

    def full(self, live: Compressed) -> RunState:
        """The state in full."""
        return _expand(live.state, live.positions)

    def _sparse_step(self, live: Compressed, event: bool) -> Callable[..., Any]:
        key = (event, live.forms.model, tuple(live.forms.rooms.items()))
        if key not in self._compiled:
            run = self._run._replace(model=live.forms.model)
            self._compiled[key] = compile_steps(
                run, live.state, *self._data, (event,), live.positions
            )[event]
        return self._compiled[key]


_compress = jax.jit(compress)
_expand = jax.jit(expand)


def forms_of(run: Run, masks: Any, *, train: bool = True) -> Forms:
    """How the network is executed at some masks."""
    size = run.dataset.train.images.shape[1:]
    batch = jax.ShapeDtypeStruct((run.batch_size // run.accumulate, *size), jnp.uint8)
    images = jax.eval_shape(run.normalise, batch)
    recipe = run.method.recipe
    changing = any(event.density is not None for event in run.method.timetable.events)
    exact = not changing and recipe is not None and recipe.scope == "layer"
    return choose_forms(run.model, images, masks, run.method.prunable, train=train, exact=exact)


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
