"""The training loop that all experiments share: one run, from data and method to its folder.

`train` is a whole run. A driver that trains more than once, as for lottery tickets, calls `fit`
once for each stretch, in a folder of its own:

    with loop.opened(run, out / "dense", config) as (folder, begun):
        trained = loop.fit(begun, folder)
    masks = jaxsparse.magnitude_masks(trained.state.params, sparsity=0.9)
    loop.train(run._replace(masks=masks), out / "sparse", config, title="")

Killed anywhere and started again, such a driver comes to the same bits: a stretch that had ended is
read from its last checkpoint, the one that was cut off goes on.

The loop is plain Python over two compiled steps, one with a mask update and one without. On CPU a
convolution inside a `lax.scan` or `lax.cond` would be several times slower.
"""

import contextlib
import functools
import itertools
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from tqdm import tqdm

import jaxsparse
from experiments.options.schedules import plan_of, said_in_flags
from experiments.records import alarms, progress
from experiments.records.cost import num_unshared
from experiments.records.metrics import (
    check_weights,
    checkpoint_is_due,
    is_looked_at,
    log_start,
    record,
)
from experiments.records.progress import Progress
from experiments.records.report import draw, sparsity_note, summarise
from experiments.records.run_folder import RunFolder, check_folder, naming
from experiments.training import between, scoring, surgery
from experiments.training.batches import Batch
from experiments.training.execution import Live, check_execution, make_execution
from experiments.training.run import MASKS, WEIGHTS, Run, RunState
from jaxsparse.checks import check_whole
from jaxsparse.plan import Plan
from jaxsparse.timetable import check_steps

AnyBatch = TypeVar("AnyBatch", bound=Batch)


def train(run: Run, out: Path, config: dict[str, Any], *, title: str) -> dict[str, Any]:
    """Trains, evaluates, and leaves a folder with metrics, summary, plot and the trained state.

    Called again for a run that was cut off, it goes on from the newest checkpoint. The result then
    equals that of the uninterrupted run to the bit, on the same devices and except for timings. Two
    things make it so: a checkpoint follows the mask update and the record of its step, and records
    after the checkpoint are removed before their steps are taken again.

    Validation alone selects the model: "last" is the model at the end, "best" has the highest
    validation accuracy among the evaluations of the final network at the final sparsity. (A denser
    network, earlier, would win otherwise.) Without validation images "best" is the last. Test
    images are looked at once, after training.

    Args:
      run: what to train.
      out: the run's folder.
      config: written to `config.json`; its fields model, schedule and seed go to the summary.
      title: of the plot.

    Returns:
      The summary, as in `summary.json`.

    Raises:
      ValueError: as `opened` and `fit`.
      OSError: the folder cannot be written. The run can go on when it can.
    """
    with opened(run, out, config) as (folder, begun):
        reached = fit(begun, folder, title=title)
        return finish(run, folder, reached, config, title)


@contextlib.contextmanager
def opened(
    run: Run, out: Path, config: dict[str, Any], *, state: RunState | None = None
) -> Iterator[tuple[RunFolder, Progress]]:
    """Opens the folder of a run that starts or goes on; closes it at the end of the context.

    Args:
      run: what to train, as it begins.
      out: the run's folder.
      config: written to `config.json`.
      state: to start with, of any step of the run; it is copied, and has to be the same whenever
        the run goes on. None starts with a fresh one, at step 0.

    Yields:
      The folder, and how far the run has come: the newest checkpoint, or the start.

    Raises:
      ValueError: the folder holds a finished run or one of another configuration, its checkpoints
        or metrics do not fit, there are fewer images than a batch, or masks that never change cut
        the network.
      OSError: the folder cannot be read or written.
    """
    plan = check(run)
    check_folder(out, config)
    image = run.normalise(jnp.asarray(run.dataset.train.images[:1]))
    draws = state is None and run.masks is None
    if draws and (note := sparsity_note(plan, config, num_unshared(run.model, image))):
        print(note, file=sys.stderr, flush=True)
    start = 0 if state is None else int(state.step)
    # No name for the fresh state, which would keep it alive to the end of a run that goes on.
    begun = progress.resume(
        out / "checkpoints", run, create_state(run) if state is None else progress.copy(state)
    )
    if begun.step == start and state is None and run.scoring is not None:
        # Not before: a run that goes on has the masks of its checkpoint, whatever scores say now.
        begun = progress.start(run, create_state(with_masks(run)))
    if begun.step == start:
        alarms.check_start(run, begun.state)
    after = None if begun.step == start else begun.step
    with naming(out), RunFolder.create(out, config, after=after, start=start) as folder:
        yield folder, begun


def fit(begun: Progress, folder: RunFolder, *, title: str = "") -> Progress:
    """Trains to the end of the run, with records and checkpoints in its folder.

    Args:
      begun: from `opened`. Its state is donated.
      folder: from `opened`.
      title: of the progress bar.

    Returns:
      How far it has come: the state at the end, and the run with the model that surgeries made. A
      run that had ended before comes back as it is.

    Raises:
      ValueError: the training diverged, masks lack the pattern of the method, or a change between
        steps gave a state of another form.
    """
    step, run, state, best, seconds, capacity = begun
    if step == run.steps:
        return begun
    first, batches = peeked(run.batches(step))
    execution = make_execution(run, state, first, capacity)
    with progress_bar(run.steps, title, step) as bar:
        if not folder.read_metrics():
            log_start(run, folder, state, bar)
        live = execution.start(state, capacity)
        if note := execution.note(live):
            bar.write(note, file=sys.stderr)
        clock = Stopwatch(seconds)
        while step < run.steps:
            step, live, loss = to_next_look(run, execution.step, live, batches, step, bar)
            with clock.paused(live):
                state, capacity = execution.full(live), execution.capacity(live)
                if surgery.is_due(run, step):
                    run, state = surgery.after(run, state, step)
                    best = best._replace(variables=progress.copy(state.variables))
                    execution = make_execution(run, state, first, capacity)
                    live = execution.start(state, capacity)
                    state, capacity = execution.full(live), execution.capacity(live)
                if between.is_due(run, step):
                    live = execution.start(between.after(run, state, step), capacity)
                    state, capacity = execution.full(live), execution.capacity(live)
                best = record(run, folder, step, state, loss, best, bar)
                begun = Progress(step, run, state, best, clock.seconds, capacity)
                if checkpoint_is_due(run, step):
                    check_weights(step, state.params)
                    keep = 1 if step == run.steps else 2
                    progress.save(folder.path / "checkpoints", begun, keep=keep)
    return begun


def to_next_look(
    run: Run,
    take_step: Callable[[Live, bool, Batch], tuple[Live, jax.Array]],
    live: Live,
    batches: Iterator[Batch],
    step: int,
    bar: tqdm,
) -> tuple[int, Live, jax.Array]:
    """Takes the steps after `step`, up to the next one that is looked at.

    Returns:
      The step, the state after it, and its loss.
    """
    while True:
        step += 1
        live, loss = take_step(live, run.method.is_due(step), next(batches))
        bar.update()
        if is_looked_at(run, step):
            return step, live, loss


class Stopwatch:
    """Counts the seconds of training.

    Attributes:
      seconds: up to the last pause, without the pauses.
    """

    def __init__(self, seconds: float):
        self.seconds = seconds
        self._since = time.perf_counter()

    @contextlib.contextmanager
    def paused(self, arrays: Any) -> Iterator[None]:
        """Stops when the arrays are computed, until the end of the context."""
        jax.block_until_ready(arrays)
        self.seconds += time.perf_counter() - self._since
        yield
        self._since = time.perf_counter()


def check(run: Run) -> Plan:
    """Refuses what cannot work before anything is written; returns the plan of the run.

    Raises:
      ValueError: names the flag, its value and its range.
    """
    with said_in_flags():
        if run.source is None:
            check_whole("batch_size", run.batch_size, 1, len(run.dataset.train.labels))
        check_steps(eval_every=run.eval_every, log_every=run.log_every)
        check_whole("seed", run.seed, 0, 2**32 - 1)
        check_whole("checkpoint_every", run.checkpoint_every, 0)
        check_whole("accumulate", run.accumulate, 1)
    if run.batch_size % run.accumulate:
        raise ValueError(f"--accumulate={run.accumulate} must divide --batch_size={run.batch_size}")
    if run.sparse_init not in (None, "unit", "layer"):
        raise ValueError(f"--sparse_init={run.sparse_init} must be unit or layer")
    check_execution(run)
    surgery.check_surgeries(run)
    return plan_of(run.method, jax.eval_shape(functools.partial(initial_variables, run))["params"])


def peeked(batches: Iterator[AnyBatch]) -> tuple[AnyBatch, Iterator[AnyBatch]]:
    """Returns the first batch, and an iterator that still yields it."""
    first = next(batches)
    return first, itertools.chain([first], batches)


def finish(
    run: Run,
    folder: RunFolder,
    reached: Progress,
    config: dict[str, Any],
    title: str,
    **more: Any,
) -> dict[str, Any]:
    """Looks at the test images, and writes plot and summary, of the run as it began.

    Args:
      run: as it began.
      folder: from `opened`.
      reached: from `fit`.
      config: as for `opened`.
      title: of the plot.
      **more: goes to the summary too.
    """
    records = folder.read_metrics()
    steps = run.steps - records[0]["step"]  # a run may start at any step
    summary = summarise(run, reached, config, records) | more
    summary["steps_per_second"] = steps / reached.seconds
    draw(folder, summary, title)
    folder.finish(summary)
    return summary


def progress_bar(steps: int, title: str, first: int, *, hidden: bool = False) -> tqdm:
    """Returns a progress bar for a terminal, which is a line every ten seconds in a log file.

    Args:
      steps: of the run.
      title: before the bar.
      first: completed steps.
      hidden: show nothing, as in all processes but the first.
    """
    return tqdm(
        disable=hidden,
        total=steps,
        initial=first,
        unit="step",
        desc=title,
        dynamic_ncols=True,
        mininterval=0.1 if sys.stderr.isatty() else 10.0,
    )


def create_state(run: Run) -> RunState:
    """Returns the state that a run starts with: initial weights, and its masks or the method's."""
    variables = jax.jit(functools.partial(initial_variables, run))()
    params = variables.pop("params")
    create = functools.partial(
        RunState.create,
        apply_fn=run.model.apply,
        collections=variables,
        tx=run.tx,
        method=run.method,
        key=run.key(MASKS),
        track_exploration=True,
    )
    state = create(params=params, masks=run.masks)
    if run.sparse_init is None:
        return state
    params = jaxsparse.sparse_init(params, state.masks, by=run.sparse_init)  # pyright: ignore[reportArgumentType]
    return create(params=params, masks=state.masks)


def with_masks(run: Run, *, places: Any = None, hidden: bool = False) -> Run:
    """Returns the run with the initial masks that its scoring chooses; as it is if it has none.

    Args:
      run: with its scoring, or without.
      places: shardings of the initial variables; None leaves them on one device.
      hidden: say nothing of it, as in all processes but the first.

    Raises:
      ValueError: the scores cannot choose masks; names the flag.
    """
    if run.scoring is None or run.masks is not None:
        return run
    note = f"choosing the initial masks by {run.scoring.criterion}"
    if not hidden:
        print(note, file=sys.stderr, flush=True)
    with said_in_flags():
        variables = jax.jit(functools.partial(initial_variables, run), out_shardings=places)()
        return run._replace(masks=scoring.masks_of(run, variables))


def initial_variables(run: Run) -> dict[str, Any]:
    """Returns the initial variables: with the same seed they are the same for every method."""
    image = run.normalise(jnp.asarray(run.dataset.train.images[:1]))
    return dict(run.model.init(run.key(WEIGHTS), image))
