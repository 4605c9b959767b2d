"""Alarms of a run: layers and whole networks through which no path leads any more.

At extreme sparsity masks can cut off a layer, a residual branch or the network. A method that moves
its masks may open a path again, so the loop records the cut and warns once. Masks that never change
stay as they are, so a network that they cut is refused before it is trained.
"""

import functools
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from tqdm import tqdm

from experiments.records.run_folder import RunFolder
from experiments.training.phase import with_relu
from experiments.training.run import Run, RunState
from jaxsparse.counting import count_true
from jaxsparse.nn import without_dyrelu
from jaxsparse.paths import check_rules, prunable_leaves, prunable_paths
from jaxsparse.tracing.connectivity import Connectivity, LayerPaths, live_weights, where_paths_end
from jaxsparse.types import Rules

Normalise = Callable[[jax.Array], jax.Array]


def find_paths(run: Run, state: RunState) -> Connectivity:
    """Returns how many weights of each layer are active, and how many of them lie on a path.

    DyReLU lets everything through; it counts as the ReLU that it becomes. A call costs a forward
    and a backward pass of one image. The function is compiled once.
    """
    rules = check_rules(run.method.prunable)
    image = run.dataset.train.images[:1]
    model, variables, masks = _with_relu(run, state)
    counts = _counts(model, run.normalise, rules, variables, masks, image)
    active, live = jax.device_get(counts)
    paths = prunable_paths(state.masks, rules)
    rows = zip(paths, active.tolist(), live.tolist(), strict=True)
    return Connectivity(tuple(LayerPaths(*row) for row in rows))


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _counts(
    model: nn.Module,
    normalise: Normalise,
    rules: Rules | None,
    variables: dict[str, Any],
    masks: Any,
    image: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Returns the active and the live weights of each layer, int32[layers] each."""
    forward = _forward(model, normalise, variables)
    live = live_weights(forward, variables["params"], masks, image, prunable=rules)
    count_all = lambda tree: jnp.stack(
        [count_true(mask)[0] for mask in prunable_leaves(tree, rules).values()]
    )
    return count_all(masks), count_all(live)


def _forward(
    model: nn.Module, normalise: Normalise, variables: dict[str, Any]
) -> Callable[[Any, jax.Array], Any]:
    return lambda params, image: model.apply({**variables, "params": params}, normalise(image))


def _with_relu(run: Run, state: RunState) -> tuple[nn.Module, dict[str, Any], Any]:
    """Returns the network, its variables and its masks, without DyReLU."""
    return with_relu(run.model), *without_dyrelu((state.variables, state.masks))


def check_start(run: Run, state: RunState) -> None:
    """Refuses masks that cut the network and never change, unless the run allows them.

    Raises:
      ValueError: says at which layer all paths end.
    """
    if run.allow_cut or run.method.timetable.events or not find_paths(run, state).is_cut:
        return
    advice = f"another --seed than {run.seed} or a higher --min_keep"
    if run.scoring is not None and run.scoring.options.get("scope") != "layer":
        advice = "--scope=layer or a higher --min_keep"
    raise ValueError(
        f"the network is cut: no path leads from an image to a logit{_end_of_paths(run, state)}, "
        f"and {run.method.name} never changes its masks; lower --sparsity, or pass {advice}, or "
        "--allow_cut=True for a run at chance level"
    )


def record(run: Run, folder: RunFolder, state: RunState, bar: tqdm) -> dict[str, list[int]]:
    """Returns the record of paths; warns once of each layer that is dead, and of a cut network."""
    found = find_paths(run, state)
    for warning in warnings(run, state, found, folder.warned):
        bar.write(warning, file=sys.stderr)
    return {"layer_num_live": [layer.num_live for layer in found.layers]}


def warnings(run: Run, state: RunState, found: Connectivity, warned: set[str]) -> list[str]:
    """Returns a line for each layer that is dead for the first time; one line if all are cut off.

    Args:
      run: what is trained.
      state: after a mask update, or at the start.
      found: what `find_paths` returned for it.
      warned: the paths of layers that have had their line, and "" if the network has had its own;
        new ones are added.
    """
    step = int(state.step)
    when = f"after step {step}" if step else "at the start"
    if found.is_cut:
        end = "" if "" in warned else _end_of_paths(run, state)
        lines = {"": f"warning: no path leads from an image to a logit {when}{end}"}
    else:
        lines = {
            layer.path: f"warning: {layer.path} is dead {when}: none of its {layer.num_active:,} "
            f"weights lies on a path from an image to a logit"
            for layer in found.layers
            if layer.is_dead
        }
    if not step:  # later on, `report.emptied` warns when the last weight goes
        empty = {layer.path for layer in found.layers if not layer.num_active}
        lines |= {path: f"warning: no weight is in {path} {when}" for path in empty}
    new = {path: line for path, line in lines.items() if path not in warned}
    warned.update(new)
    return list(new.values())


def _end_of_paths(run: Run, state: RunState) -> str:
    model, variables, masks = _with_relu(run, state)
    forward = _forward(model, run.normalise, variables)
    image = run.dataset.train.images[:1]
    end = where_paths_end(forward, variables["params"], masks, image)
    return f", all end at {end}" if end else ""
