"""Seeds of one run trained together: a step of all of them is one compiled function, by `jax.vmap`.

An accelerator that a small network leaves idle trains several in nearly the time of one. On CPU
there is no gain, since a convolution whose weights differ between seeds is slow. Each seed draws
what it would draw alone, but sums are taken in another order, so that accuracies do not equal those
of single runs to the bit. Therefore config.json has the flag `vmapped`, and the two kinds are never
mixed.

`sweep.py --vmap_seeds` keeps folders and results under the grid's name with -vmapped after it, and
starts this as a program:

    vmapped.py --experiment=cifar --seeds=0,1,2 --flags="model=resnet20 steps=2000" --out=DIR/rigl

It leaves a folder for each seed, DIR/rigl-seed0 and so on, like those of single runs. Until all are
finished, DIR/rigl-seeds0-1-2 holds the checkpoints of them all; the same command goes on from the
newest.
"""

import contextlib
import dataclasses
import functools
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from experiments import loop
from experiments.options import cli
from experiments.records import alarms, metrics, progress, report
from experiments.records.progress import Best, Progress
from experiments.records.run_folder import RunFolder, check_folder, naming
from experiments.sweeping.kinds import SCRIPTS
from experiments.training.batches import Batch, Indexed, shuffled
from experiments.training.run import Run, RunState
from experiments.training.steps import kinds, train_step
from jaxsparse.checkpoint import save_checkpoint


class Lane(NamedTuple):
    """One of the runs that are trained together.

    Attributes:
      run: what to train; the runs differ in their seed alone.
      out: its folder.
      config: written to `config.json`.
    """

    run: Run
    out: Path
    config: dict[str, Any]


class Together(NamedTuple):
    """How far the runs have come.

    Attributes:
      step: completed optimizer steps of each run.
      states: one `RunState` whose arrays have the runs as their first axis.
      bests: the best model so far of each run.
      seconds: of training all runs so far.
    """

    step: int
    states: RunState
    bests: list[Best]
    seconds: float


@dataclasses.dataclass(frozen=True)
class Config:
    """Trains some seeds of one run together."""

    experiment: str
    """The script that trains a single one: fashion_mnist, mnist or cifar."""
    seeds: str
    """The seeds, with commas between them."""
    out: Path
    """The run of seed N goes to OUT-seedN."""
    flags: str = ""
    """Flags of the script, as name=value with spaces between them."""


def main(config: Config) -> None:
    """Trains the seeds."""
    script = SCRIPTS[cli.nearest(config.experiment, SCRIPTS, kind="experiment")]
    given = [f"--{flag}" for flag in shlex.split(config.flags)]
    lanes = []
    for seed in map(int, config.seeds.split(",")):
        parsed = cli.parse(script.Config, [*given, f"--seed={seed}"])
        # The first lane has read the data, which all share.
        run = lanes[0].run._replace(seed=seed) if lanes else script.run_of(parsed)
        out = config.out.with_name(f"{config.out.name}-seed{seed}")
        lanes.append(Lane(run, out, cli.as_dict(parsed) | {"vmapped": True}))
    title = report.title_of(lanes[0].config)
    group = config.out.with_name(f"{config.out.name}-seeds{config.seeds.replace(',', '-')}")
    for summary in train(lanes, group, title=f"{title}, {len(lanes)} seeds"):
        print(f"seed {summary['seed']}: test accuracy {summary['test_accuracy']:.4f}")


def train(lanes: Sequence[Lane], group: Path, *, title: str) -> list[dict[str, Any]]:
    """Trains runs that differ in their seed alone, as `loop.train` trains one.

    Args:
      lanes: the runs, at least one. A run that is finished already stays as it is.
      group: folder for the checkpoints of all, removed at the end.
      title: of the progress bar.

    Returns:
      The summaries of the runs that it finished.

    Raises:
      ValueError: as `loop.train`; or micro-batches, sparse execution, or a network that changes on
        the way, which are not served here.
      OSError: as `loop.train`.
    """
    run = lanes[0].run
    check(lanes)
    step, states, bests, seconds = resume(
        group, [loop.create_state(loop.with_masks(lane.run)) for lane in lanes]
    )
    start = step == 0
    for lane, state in zip(lanes, unstacked(states), strict=True):
        if start and not is_finished(lane):
            alarms.check_start(lane.run, state)
    with naming(group), contextlib.ExitStack() as stack:
        folders = [
            None
            if is_finished(lane)
            else stack.enter_context(RunFolder.create(lane.out, lane.config, after=step or None))
            for lane in lanes
        ]
        bar = stack.enter_context(loop.progress_bar(run.steps, title, step))
        first, batches = loop.peeked(batches_of(lanes, step))
        take_step = compile_step(lanes, states, first)
        for lane, folder, state in zip(lanes, folders, unstacked(states), strict=True):
            if start and folder is not None:
                metrics.log_start(lane.run, folder, state, bar)
        clock = loop.Stopwatch(seconds)
        while step < run.steps:
            step, states, losses = loop.to_next_look(run, take_step, states, batches, step, bar)
            with clock.paused(states.params):
                each = zip(lanes, folders, unstacked(states), losses, bests, strict=True)
                bests = [
                    best
                    if folder is None
                    else metrics.record(lane.run, folder, step, state, loss, best, bar)
                    for lane, folder, state, loss, best in each
                ]
                if metrics.checkpoint_is_due(run, step):
                    save(group, Together(step, states, bests, clock.seconds))
        summaries = [
            finish(lane, folder, Progress(step, lane.run, state, best, clock.seconds))
            for lane, folder, state, best in zip(
                lanes, folders, unstacked(states), bests, strict=True
            )
            if folder is not None
        ]
    shutil.rmtree(group)
    return summaries


def check(lanes: Sequence[Lane]) -> None:
    """Refuses what cannot work before anything is written; raises a ValueError."""
    seeds = [lane.run.seed for lane in lanes]
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"--seeds={','.join(map(str, seeds))} must differ")
    for lane in lanes:
        loop.check(lane.run)
        if not is_finished(lane):
            check_folder(lane.out, lane.config)
    run = lanes[0].run
    if run.phase is not None:
        raise ValueError(
            "DyReLU is not served for seeds trained together; leave out --vmap_seeds, or pass "
            "--dyrelu=False"
        )
    if run.surgeries or run.source is not None:
        raise ValueError("surgeries and other batches are not served for seeds trained together")
    served = {"accumulate": 1, "execution": "masked"}
    for flag, value in served.items():
        if getattr(run, flag) != value:
            raise ValueError(
                f"--{flag}={getattr(run, flag)} is not served for seeds trained together; leave "
                f"out --vmap_seeds"
            )


def is_finished(lane: Lane) -> bool:
    """Whether an earlier process came to the end of the run."""
    return (lane.out / "summary.json").exists()


def batches_of(lanes: Sequence[Lane], first: int) -> Iterator[Indexed]:
    """Yields batches whose indices have the runs as their first axis; the images are shared."""
    run = lanes[0].run
    images, labels = map(jnp.asarray, run.dataset.train)
    orders = [
        shuffled(jax.random.key(lane.run.seed), len(labels), run.batch_size, start=first)
        for lane in lanes
    ]
    while True:
        yield Indexed(images, labels, np.stack([next(order) for order in orders]))


def compile_step(
    lanes: Sequence[Lane], states: RunState, batch: Indexed
) -> Callable[[RunState, bool, Batch], tuple[RunState, jax.Array]]:
    """Compiles the training step of all runs, without and with a mask update.

    Returns:
      (states, whether there is a mask update, batch) to the next states and float32[runs] losses.
      The states are donated.
    """
    run = lanes[0].run
    seeds = jnp.asarray([lane.run.seed for lane in lanes], jnp.uint32)

    def compiled(event: bool) -> Callable[..., tuple[RunState, jax.Array]]:
        def step(seed: jax.Array, state: RunState, batch: Batch) -> tuple[RunState, jax.Array]:
            return train_step(run._replace(seed=seed), event, state, batch)

        shared, own = cast(Any, None), cast(Any, 0)  # axes: all runs have the same images
        axes = (0, 0, Indexed(shared, shared, own))
        together = functools.partial(jax.vmap(step, in_axes=axes), seeds)
        return jax.jit(together, donate_argnums=0).lower(states, batch).compile()

    steps = {event: compiled(event) for event in kinds(run)}
    return lambda states, event, batch: steps[event](states, batch)


def stacked(states: Sequence[RunState]) -> RunState:
    """Returns one state whose arrays have the runs as their first axis."""
    # All take the tree of the first: each state has an optimizer object of its own in its tree.
    leaves = zip(*(jax.tree.leaves(state) for state in states), strict=True)
    return jax.tree.unflatten(jax.tree.structure(states[0]), map(jnp.stack, leaves))


def unstacked(states: RunState) -> list[RunState]:
    """Returns the states of the single runs."""
    leaves, structure = jax.tree.flatten(states)
    return [jax.tree.unflatten(structure, each) for each in zip(*leaves, strict=True)]


def save(group: Path, progress: Together) -> None:
    """Saves a checkpoint of all runs."""
    step, states, bests, seconds = progress
    arrays = {"states": states, "bests": [best.variables for best in bests]}
    extras = {
        "val_accuracies": [best.val_accuracy for best in bests],
        "best_steps": [best.step for best in bests],
        "seconds": seconds,
    }
    save_checkpoint(group, step, arrays, keep=2, extras=extras)


def resume(group: Path, states: Sequence[RunState]) -> Together:
    """Returns the progress of the newest checkpoint; starts with the states if there is none."""
    bests = [Best(-1.0, 0, progress.copy(state.variables)) for state in states]
    fresh = Together(0, stacked(states), bests, 0.0)
    arrays = {"states": fresh.states, "bests": [best.variables for best in bests]}
    restored = progress.restore(group, arrays)
    if restored is None:
        return fresh
    extras = restored.extras
    found = zip(
        extras["val_accuracies"], extras["best_steps"], restored.state["bests"], strict=True
    )
    bests = [Best(*best) for best in found]
    return Together(restored.step, restored.state["states"], bests, extras["seconds"])


def finish(lane: Lane, folder: RunFolder, reached: Progress) -> dict[str, Any]:
    """Leaves a run's folder as `loop.train` does: with its trained state, summary and plot."""
    progress.save(lane.out / "checkpoints", reached, keep=1)
    title = report.title_of(lane.config)
    return loop.finish(lane.run, folder, reached, lane.config, title)


if __name__ == "__main__":
    sys.exit(cli.run(main, Config, sys.argv[1:]))
