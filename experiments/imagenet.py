"""Sparse ResNets on ImageNet, on one device, on several, or on a pod.

    python experiments/data/prepare.py imagenet2012 --data_dir=data
    python experiments/imagenet.py --schedule=granet_st --sparsity=0.9

The defaults are GraNet's published run for its methods and RigL's for the others, see
`experiments/training/imagenet_recipes.py`. `--batch_size=4096` gives the same recipe for a pod,
with a learning rate in proportion. `--dry_run` shows what a run would cost here, and `--fake_data`
trains on generated images of full size.

All devices of all processes form one mesh. Start the same command once for each process:

    python experiments/imagenet.py --coordinator=10.0.0.1:1234 --num_processes=2 --process_id=0
    python experiments/imagenet.py --coordinator=10.0.0.1:1234 --num_processes=2 --process_id=1

or with `--discover` on TPU pods, Slurm and Kubernetes, where JAX finds the others. `--out` is a
folder that all of them share. Masks are the same on every device, since the events' gradients, keys
and thresholds are; after every event this is checked.

ImageNet has no test labels. As in the papers, the accuracy is that of the last model on the 50,000
validation images; the best one on the way is reported beside it.
"""

import functools
import signal
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh
from tqdm import tqdm

import jaxsparse
from experiments import loop
from experiments.data import imagenet
from experiments.data.dataset import Dataset, Split
from experiments.data.pixels import normalise
from experiments.mesh import layout, measure, start
from experiments.mesh.evaluation import evaluate
from experiments.mesh.folder import opened
from experiments.mesh.gradient import explicit
from experiments.mesh.processes import is_first, joined, stopped_by_sigterm
from experiments.mesh.reached import Reached, resume, save, saved
from experiments.mesh.source import Data, data_of
from experiments.options import cli, flags, tricks
from experiments.options.gsm import with_gsm
from experiments.options.imagenet_flags import Config
from experiments.options.length import check_one, num_steps
from experiments.options.schedules import make_method, make_scoring, said_in_flags
from experiments.records import cost, metrics, report
from experiments.records.meter import Meter
from experiments.records.resolved import resolved
from experiments.records.run_folder import RunFolder, check_folder
from experiments.training import between, steps, surgery
from experiments.training.batches import Batch
from experiments.training.imagenet_recipes import RECIPES, published_options, recipe_name, scaled
from experiments.training.recipes import Recipe, make_optimizer
from experiments.training.run import Run, RunState
from jaxsparse import Method, check_replicas
from jaxsparse.checks import check_whole
from jaxsparse.nn import resnet

MODELS = {f"resnet{n}": functools.partial(resnet, n) for n in (18, 34, 50, 101)}
NORMALISE = functools.partial(normalise, mean=imagenet.MEAN, std=imagenet.STD)
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def main(config: Config) -> None:
    """Trains, or prints what training would cost."""
    layout.give_cpu_devices_threads()
    with joined(
        config.coordinator,
        config.num_processes,
        config.process_id,
        discover=config.discover,
        start_timeout=config.start_timeout,
        heartbeat_timeout=config.heartbeat_timeout,
    ):
        mesh = layout.make_mesh()
        run, data = run_of(config, mesh)
        loop.check(run)
        if is_first():
            tricks.say_if_it_shares_nothing(config, run.model)
        do = cost_of if config.dry_run else train
        said = do(config, run, data, mesh)
        if is_first():
            print(said)


class Shown(NamedTuple):
    """The places where a run shows how it goes: records, progress bar, the meter of its speed."""

    folder: RunFolder
    bar: tqdm
    meter: Meter


def train(config: Config, run: Run, data: Data, mesh: Mesh) -> str:
    """Trains to the end, from the newest checkpoint if there is one; returns a few lines on it."""
    given = cli.as_dict(config)
    out = config.out or report.folder_of(run.dataset.name, given, run.steps)
    title = report.title_of(given)
    if is_first():  # before all of a checkpoint is read
        check_folder(out, given)
    reached = resume(out / "checkpoints", run, start.created(run, mesh, fsdp=config.fsdp))
    if run.scoring is not None and not reached.step:
        # Not before: a run that goes on has the masks of its checkpoint.
        reached = reached._replace(state=start.started(run, mesh, fsdp=config.fsdp))
    with (
        opened(out, given, after=reached.step or None) as folder,
        loop.progress_bar(run.steps, title, reached.step, hidden=not is_first()) as bar,
    ):
        if not reached.step:
            metrics.log_start(run, folder, reached.state, bar)
        shown = Shown(folder, bar, Meter(run.batch_size))
        with saved(out / "checkpoints"):
            reached = fit(reached, data, shown)
        summary = summarise(config, run, reached, data, folder.read_metrics())
        summary |= {"out": out, "throughput": str(shown.meter)}
        if is_first():
            report.draw(folder, summary, title)
        folder.finish(summary)
    return describe(summary) if is_first() else ""


def fit(reached: Reached, data: Data, shown: Shown) -> Reached:
    """Takes the steps that are left, with records, evaluations and checkpoints.

    Raises:
      ValueError: the training diverged, or devices disagree on the masks.
      SystemExit: after SIGTERM, when all processes have saved the same step.
    """
    (step, run, state, seconds, best), (folder, bar, meter) = reached, shown
    if step == run.steps:
        return reached
    first, batches = loop.peeked(data.train(step))
    take_step = compiled(run, state, first)
    clock = loop.Stopwatch(seconds)
    with stopped_by_sigterm() as asked_to_stop:
        while step < run.steps:
            batch = meter.next(batches)
            step += 1
            state, loss = take_step(run.method.is_due(step), state, batch)
            meter.follow(loss)
            if jax.default_backend() == "cpu":  # its devices wait for each other if steps overlap
                jax.block_until_ready(loss)
            bar.update()
            stops = asked_to_stop(step)
            if not (stops or metrics.is_looked_at(run, step)):
                continue
            with clock.paused(state), meter.paused():
                best = record(run, data, shown, step, state, float(loss), best)
                if surgery.is_due(run, step):
                    run, state = surgery.after(run, state, step)
                    take_step = compiled(run, state, first)
                if between.is_due(run, step):
                    state = between.after(run, state, step)
                reached = Reached(step, run, state, clock.seconds, best)
                if stops or metrics.checkpoint_is_due(run, step):
                    metrics.check_weights(step, state.params)
                    save(folder.path / "checkpoints", reached, wait=stops or step == run.steps)
            if stops:
                if is_first():
                    bar.write(f"stopped after step {step}; the same command goes on", sys.stderr)
                raise SystemExit(128 + signal.SIGTERM)
    return reached


def compiled(run: Run, state: RunState, batch: Batch) -> Callable[..., Any]:
    """Compiles the steps; the state keeps its place on the mesh."""
    by_event = by_kind(run, state, batch)
    return lambda event, state, batch: by_event[event](state, batch)


def by_kind(run: Run, state: RunState, batch: Batch) -> dict[bool, steps.Step]:
    """Returns the compiled steps, by whether there is a mask update."""
    places = jax.tree.map(lambda x: x.sharding, state)
    return steps.compile_steps(run, state, batch, steps.kinds(run), shardings=places)


def record(
    run: Run,
    data: Data,
    shown: Shown,
    step: int,
    state: RunState,
    loss: float,
    best: tuple[float, int],
) -> tuple[float, int]:
    """Logs the values of a step that is looked at; returns the best accuracy so far."""
    values: dict[str, Any] = metrics.loss_record(run, step, loss)  # refuses one that diverged
    if run.method.is_due(step):
        check_replicas(state.masks)
        values |= metrics.event_record(run, shown.folder, state, shown.bar)
    if values:
        values |= shown.meter.scalars()
    if metrics.is_validated(run, step):
        accuracy = evaluate(run, state.variables, data.evaluation())
        values |= {"val_accuracy": accuracy, "density": report.density_of(state)}
        best = max(best, (accuracy, step), key=lambda found: found[0])
        shown.bar.set_postfix({"val_accuracy": f"{accuracy:.4f}"})
    if values:
        shown.folder.log(step, **values)
    return best


def summarise(
    config: Config, begun: Run, reached: Reached, data: Data, records: list[dict[str, Any]]
) -> dict[str, Any]:
    """Checks the masks' invariants once more, and sums up the run, on all processes together.

    The first process has the records, and so the FLOPs.
    """
    run, state = reached.run, reached.state
    state.check()
    table = state.summary()
    image = jax.ShapeDtypeStruct((1, config.image_size, config.image_size, 3), jnp.float32)
    dense = cost.flops_of_model(run.model, state.params, image)
    sizes = {layer.path: layer.size for layer in table.layers}
    return {
        "method": config.schedule,
        "dataset": run.dataset.name,
        "model": config.model,
        "seed": run.seed,
        "sparsity": table.sparsity,
        "num_active": table.num_active,
        "num_prunable": table.num_prunable,
        "alarms": [*table.alarms, *table.notes],
        "layers": {x.path: {"num_active": x.num_active, "size": x.size} for x in table.layers},
        "num_events": len(run.method.timetable.events),
        "resolved": resolved(begun),
        "val_accuracy": evaluate(run, state.variables, data.evaluation()),
        "best_val_accuracy": reached.best[0],
        "best_step": reached.best[1],
        **(cost.flops_of_run(dense, records, sizes, run.method, run.batch_size) if records else {}),
        **cost.extras(begun.model, image, begun.phase, run.batch_size, table.num_active),
        **cost.peak_memory(),
        "steps": run.steps,
        "steps_per_second": run.steps / reached.seconds,
        "num_devices": jax.device_count(),
        "num_processes": jax.process_count(),
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "jaxsparse": jaxsparse.__version__,
    }


def cost_of(config: Config, run: Run, data: Data, mesh: Mesh) -> str:
    """Returns what --dry_run prints."""
    first, _ = loop.peeked(data.train(0))
    run = start.with_masks(run, mesh, fsdp=config.fsdp)
    state = start.created(run, mesh, fsdp=config.fsdp)
    image = jax.ShapeDtypeStruct((1, config.image_size, config.image_size, 3), jnp.float32)
    return measure.describe_cost(run, image, state, by_kind(run, state, first), first)


def describe(summary: dict[str, Any]) -> str:
    """Returns the summary as a few lines."""
    lines = [
        *(f"warning         {line}" for line in summary["alarms"]),
        f"accuracy        {summary['val_accuracy']:.4f} at the end, "
        f"{summary['best_val_accuracy']:.4f} at best (step {summary['best_step']}), on the "
        f"validation images",
        *report.describe_size(summary),
        f"speed           {summary['throughput']}",
        f"folder          {summary['out']}",
    ]
    return "\n".join(lines)


def run_of(config: Config, mesh: Mesh) -> tuple[Run, Data]:
    """Returns the run that the flags ask for, and its data."""
    with said_in_flags():
        check_whole("image_size", config.image_size, 1)
        check_whole("workers", config.workers, 0)
        check_whole("max_corrupt", config.max_corrupt, 0)
    recipe = recipe_of(config)
    layout.check_batch_size(mesh, recipe.batch_size, config.accumulate)
    data = data_of(config, recipe, mesh)
    check_one(config.steps, config.epochs)
    length = num_steps(config.steps, recipe.epochs, recipe.batch_size, data.num_train)
    method = method_of(config, length)
    epoch = max(data.num_train // recipe.batch_size, 1)
    run = Run(
        model=model_of(config),
        method=method,
        tx=tricks.with_freezing(
            with_gsm(make_optimizer(recipe, length), config, method, recipe), config, method
        ),
        dataset=blank(config),
        normalise=NORMALISE,
        batch_size=recipe.batch_size,
        seed=config.seed,
        eval_every=epoch if config.eval_every is None else config.eval_every,
        checkpoint_every=config.checkpoint_every,
        accumulate=config.accumulate,
        phase=tricks.phase_of(config, length),
        scoring=make_scoring(config.schedule, method, **flags.pruning_options(config)),
        sparse_init=config.sparse_init,
        source=data.train,
        label_smoothing=recipe.label_smoothing,
        distribute=functools.partial(explicit, mesh) if config.exchange == "explicit" else None,
    )
    return run, data


def blank(config: Config) -> Dataset:
    """Returns one black image, for its shape: the images themselves are loaded batch by batch."""
    image = np.zeros((1, config.image_size, config.image_size, 3), np.uint8)
    one = Split(image, np.zeros(1, np.int32))
    return Dataset("generated" if config.fake_data else "imagenet2012", one, one, one, 1000)


def model_of(config: Config) -> nn.Module:
    """Returns the network that the flags ask for."""
    make = MODELS[cli.nearest(config.model, MODELS, kind="model")]
    dtype = DTYPES[cli.nearest(config.dtype, DTYPES, kind="dtype")]
    return tricks.with_tricks(make(dtype=dtype, axis_name=norms_of(config)), config)


def norms_of(config: Config) -> str | None:
    """Returns the axis of the mesh over which norms average by themselves; None if they do not."""
    if config.norms not in ("global", "device"):
        raise ValueError(f"--norms={config.norms} must be global or device")
    if config.exchange not in ("automatic", "explicit"):
        raise ValueError(f"--exchange={config.exchange} must be automatic or explicit")
    if config.norms == "device" and config.exchange == "automatic":
        raise ValueError("--norms=device needs --exchange=explicit")
    return layout.AXIS if (config.exchange, config.norms) == ("explicit", "global") else None


def recipe_of(config: Config) -> Recipe:
    """Returns the recipe, with the changes that the flags ask for."""
    named = config.recipe or recipe_name(config.schedule)
    recipe = RECIPES[cli.nearest(named, RECIPES, kind="recipe")]
    if config.batch_size is not None:
        with said_in_flags():
            check_whole("batch_size", config.batch_size, 1)
        recipe = scaled(recipe, config.batch_size)
    given = {name: getattr(config, name) for name in ("epochs", "learning_rate", "weight_decay")}
    return recipe._replace(**{name: x for name, x in given.items() if x is not None})


def method_of(config: Config, length: int) -> Method:
    """Returns the method that the flags ask for, with published options where they say nothing."""
    sparsity = config.sparsity
    if config.schedule != "dense":
        image = jax.ShapeDtypeStruct((1, config.image_size, config.image_size, 3), jnp.float32)
        sparsity = tricks.sparsity_of(model_of(config), image, sparsity)
    if config.score_batch is not None:
        raise ValueError(
            f"--score_batch={config.score_batch}: this script scores by the batches of its first "
            "steps; make them smaller by --batch_size or --accumulate"
        )
    given = {k: x for k, x in flags.pruning_options(config).items() if x is not None}
    options = published_options(config.schedule, length) | given
    return make_method(config.schedule, sparsity=sparsity, steps=length, **options)


if __name__ == "__main__":
    sys.exit(cli.run(main, Config, sys.argv[1:], going_on=flags.going_on))
