"""The results of a run: accuracy, counts of events, FLOPs, the summary and the plot."""

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

import jaxsparse
from experiments.data.dataset import Split
from experiments.options.asked import is_as_asked
from experiments.records import plots
from experiments.records.alarms import find_paths
from experiments.records.cost import (
    describe_extras,
    extras,
    flops_of_model,
    flops_of_run,
    peak_memory,
    shapes_and_flops,
)
from experiments.records.flow_series import flow_series
from experiments.records.progress import Progress
from experiments.records.resolved import resolved
from experiments.records.run_folder import RunFolder, series
from experiments.training.execution import describe_execution, executed
from experiments.training.run import Run
from jaxsparse import TrainState
from jaxsparse.counting import count_true
from jaxsparse.nn import sparse_execution, without_dyrelu
from jaxsparse.paths import prunable_leaves
from jaxsparse.plan import Plan
from jaxsparse.sparse import Positions


def evaluate(run: Run, variables: Any, split: Split, batch_size: int = 1000) -> float | None:
    """Returns the share of images of the split that are classified correctly, in [0, 1].

    A split without images gives None.

    Raises:
      ValueError: the network gives NaN, which would count as the first class.
    """
    correct = 0
    if not len(split.labels):
        return None
    model, variables, positions = executed(run, variables, batch_size)
    for start in range(0, len(split.labels), batch_size):
        images = jnp.asarray(split.images[start : start + batch_size])
        labels = jnp.asarray(split.labels[start : start + batch_size])
        found, num_nan = _count(model, run.normalise, variables, positions, images, labels)
        if num_nan:
            raise ValueError(
                f"the network gives NaN for {num_nan} of {len(labels)} images, though its training "
                f"loss is finite; for bfloat16 on CPU see the docstring of jaxsparse.nn"
            )
        correct += int(found)
    return correct / len(split.labels)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _count(
    model: nn.Module,
    normalise: Callable[[jax.Array], jax.Array],
    variables: Any,
    positions: Mapping[str, Positions],
    images: jax.Array,
    labels: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Returns the number of images classified correctly, and the number of those with a NaN."""
    with sparse_execution(positions):
        logits = jnp.asarray(model.apply(variables, normalise(images)))
    return (jnp.argmax(logits, -1) == labels).sum(), jnp.isnan(logits).any(-1).sum()


def describe_plan(run: Run, image: Any) -> str:
    """Returns what --plan prints: events, costs of DyReLU and sharing, how layers are executed.

    Args:
      run: what would be trained. If it has masks, the plan starts from their counts.
      image: the shape of an image, with a batch axis.
    """
    method = run.method
    if run.masks is not None:
        method = jaxsparse.starting_from(method, without_dyrelu(run.masks))
    plan = method.plan(*shapes_and_flops(run.model, image))
    found = extras(run.model, image, run.phase, run.batch_size, plan.rows[-1].num_active)
    lines = [str(plan), *(["", *describe_extras(found)] if found else []), ""]
    return "\n".join(lines) + describe_execution(run, plan)


def density_of(state: TrainState) -> float:
    """Returns active / prunable weights, in [0, 1]."""
    return 1.0 - jaxsparse.sparsity(state.masks, state.method.prunable)


def sparsity_note(plan: Plan, config: Mapping[str, Any], unshared: int | None = None) -> str:
    """Returns a line if a run will not have the sparsity that was asked for, else "".

    Args:
      plan: of the run.
      config: its flags.
      unshared: prunable weights of the network without sharing, to which the sparsity asked for
        refers; None if the network shares nothing.
    """
    asked = config.get("sparsity")
    planned = 1.0 - plan.rows[-1].num_active / (unshared or plan.num_prunable)
    if asked is None or config["schedule"] == "dense" or is_as_asked(planned, asked):
        return ""
    names = ("pattern", "pattern_layers", "dense_layers")
    flags = " ".join(f"--{name}={config[name]}" for name in names if config.get(name))
    because = f", because of {flags}" if flags else ""
    return (
        f"note: --sparsity={asked:g} was asked for, the run will have {planned:.3f}{because}; "
        f"--plan shows each layer"
    )


def layer_counts(state: TrainState) -> list[int]:
    """Returns the active weights of every prunable layer, in the order of `prunable_paths`."""
    leaves = prunable_leaves(state.masks, state.method.prunable)
    counts = jax.device_get([count_true(mask)[0] for mask in leaves.values()])
    return [int(count) for count in counts]


def event_scalars(state: TrainState) -> dict[str, Any]:
    """Returns the last event's counts summed over layers, its churn, and the exploration rate.

    The list "layer_num_active" is what the cost of training is computed from later.
    """
    by_layer = jax.device_get(state.event_metrics)._asdict()
    counts = {name: int(np.sum(values, dtype=np.int64)) for name, values in by_layer.items()}
    explored = jaxsparse.exploration_rate(state.explored, state.method.prunable)
    empty = int(state.event_metrics.num_empty)
    sizes = [x.size for x in prunable_leaves(state.masks, state.method.prunable).values()]
    return {
        "density": counts["num_active"] / sum(sizes),
        **counts,
        "num_empty": empty,
        "churn": float(jaxsparse.churn(state.event_metrics).total),
        "exploration_rate": float(explored),
        "layer_num_active": by_layer["num_active"].tolist(),
    }


def check_structure(state: TrainState) -> None:
    """Raises a ValueError if the masks lack the pattern that the method asks for."""
    if state.method.pattern:
        jaxsparse.check_pattern(state.masks, state.method.pattern, state.method.prunable)


def emptied(state: TrainState) -> list[str]:
    """Returns a warning for each layer that lost its last weight in the last event."""
    paths = jaxsparse.prunable_paths(state.params, state.method.prunable)
    active, dropped = state.event_metrics.num_active, state.event_metrics.num_dropped
    is_global = state.method.scope == "global"
    advice = "; --min_keep=N leaves N in every layer" if is_global else ""
    return [
        f"warning: no weight is left in {path} after step {state.step}{advice}"
        for path, left, gone in zip(paths, active.tolist(), dropped.tolist(), strict=True)
        if gone and not left
    ]


def summarise(
    begun: Run, reached: Progress, config: dict[str, Any], records: list[dict[str, Any]]
) -> dict[str, Any]:
    """Checks the masks' invariants once more, evaluates on the test images, and sums up the run.

    Args:
      begun: the run as it began.
      reached: how it ended.
      config: of the run.
      records: its metrics.
    """
    run, state, best = reached.run, reached.state, reached.best
    jaxsparse.check(state.params, state.opt_state, state.masks)
    check_structure(state)
    paths = find_paths(run, state)
    num_live = {layer.path: layer.num_live for layer in paths.layers}
    layers = state.summary()
    image = run.normalise(jnp.asarray(run.dataset.test.images[:1]))
    dense = flops_of_model(run.model, state.params, image)
    sizes = {layer.path: layer.size for layer in layers.layers}
    return {
        "method": config["schedule"],
        "dataset": run.dataset.name,
        "model": config["model"],
        "seed": run.seed,
        "sparsity": layers.sparsity,
        "num_active": layers.num_active,
        "num_prunable": layers.num_prunable,
        "empty_layers": [layer.path for layer in layers.layers if layer.num_active == 0],
        "num_live": paths.num_live,
        "alarms": [*layers.alarms, *layers.notes, *paths.alarms],
        "dead_channels": layers.dead._asdict(),
        "layers": {
            layer.path: {
                "num_active": layer.num_active,
                "num_live": num_live[layer.path],
                "size": layer.size,
                "density": layer.density,
            }
            for layer in layers.layers
        },
        "num_events": len(run.method.timetable.events),
        "resolved": resolved(begun),
        "test_accuracy": evaluate(run, state.variables, run.dataset.test),
        "val_accuracy": evaluate(run, state.variables, run.dataset.val),
        "best_step": best.step,
        "best_val_accuracy": None if best.val_accuracy < 0 else best.val_accuracy,
        "best_test_accuracy": evaluate(run, best.variables, run.dataset.test),
        "exploration_rate": float(jaxsparse.exploration_rate(state.explored, run.method.prunable)),
        **flops_of_run(dense, records, sizes, run.method, run.batch_size, start=records[0]["step"]),
        **extras(begun.model, image, begun.phase, run.batch_size, layers.num_active),
        **peak_memory(),
        "steps": run.steps,
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "jaxsparse": jaxsparse.__version__,
    }


def draw(folder: RunFolder, summary: Mapping[str, Any], title: str) -> None:
    """Writes `plot.png`: accuracy, density and gradient flow over steps, density per layer.

    It reads no array, since one process alone draws a run of several.
    """
    records = folder.read_metrics()
    plots.plot_run(
        folder.path / "plot.png",
        title=title,
        accuracy={"validation": series(records, "val_accuracy")},
        density=series(records, "density"),
        flow=flow_series(records),
        layers={path: (x["num_active"], x["size"]) for path, x in summary["layers"].items()},
    )


def folder_of(data: str, config: Mapping[str, Any], steps: int) -> Path:
    """Returns the folder of a run without --out."""
    sparsity = "" if config["schedule"] == "dense" else f"-{config['sparsity']:g}"
    run = f"{config['model']}-{config['schedule']}{sparsity}-steps{steps}-seed{config['seed']}"
    return Path("runs") / data / run


def title_of(config: Mapping[str, Any]) -> str:
    """Returns the name of a run in its progress bar and plot."""
    sparsity = "" if config["schedule"] == "dense" else f" {config['sparsity']:g}"
    return f"{config['model']} {config['schedule']}{sparsity}"


def _worst(alarms: Sequence[str]) -> list[str]:
    """Returns the alarms, those of thin layers last, of which many are cut to the first two."""
    thin = [alarm for alarm in alarms if alarm.endswith(" outputs")]
    others = [alarm for alarm in alarms if alarm not in thin]
    if len(thin) <= 3:
        return [*others, *thin]
    return [*others, *thin[:2], f"so in {len(thin) - 2} more layers: summary.json has them"]


def describe(summary: Mapping[str, Any]) -> str:
    """Returns the summary as a few lines."""
    best = (
        ", without validation images"
        if summary["best_val_accuracy"] is None
        else f", {summary['best_test_accuracy']:.4f} best by validation "
        f"(step {summary['best_step']})"
    )
    return "\n".join(
        [
            *(f"warning         {line}" for line in _worst(summary["alarms"])),
            f"test accuracy   {summary['test_accuracy']:.4f} at the end{best}",
            *describe_size(summary),
            f"speed           {summary['steps_per_second']:.3g} steps a second",
            f"folder          {summary['out']}",
        ]
    )


def describe_size(summary: Mapping[str, Any]) -> list[str]:
    """Returns the lines of a summary on weights, FLOPs and memory."""
    return [
        f"active weights  {summary['num_active']:,} of {summary['num_prunable']:,} "
        f"(sparsity {summary['sparsity']:.6g})",
        f"forward FLOPs   {summary['test_flops']:,.0f} an image, "
        f"{summary['test_flops_ratio']:.3g} of dense",
        f"training FLOPs  {summary['train_flops']:.4g}, "
        f"{summary['train_flops_ratio']:.3g} of dense",
        *describe_extras(summary),
        f"peak memory     {summary['peak_memory_mib']:,.0f} MiB of the {summary['peak_memory_of']}",
    ]
