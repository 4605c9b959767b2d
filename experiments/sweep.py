r"""A grid of runs, as parallel processes: methods x sparsities x seeds of one model.

    python experiments/sweep.py --data_dir=DIR                          # a table of README.md
    python experiments/sweep.py --model=lenet5 --schedules static rigl --sparsities 0.9 0.95 \
        --seeds=3 --flags steps=1000 batch_size=64                      # a grid of one's own
    python experiments/compare.py experiments/results/fashion_mnist     # its table and its plot

Every finished run leaves a small file in --results: its flags, its summary, the commit and the
machine. A run with such a file is skipped, on any machine, and one that was cut off goes on from
its last checkpoint: to continue a sweep, call it again. Runs are kept to cores of their own.
"""

import dataclasses
import os
import queue
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from tqdm import tqdm

from experiments import cli
from experiments.grids import GRIDS, Grid, Job, interleaved
from experiments.methods import METHODS
from experiments.results import Result, flags_that_differ, read_result, result_of, write_result
from experiments.workers import core_sets, run_script

EXPERIMENTS = ("fashion_mnist", "cifar")


@dataclasses.dataclass(frozen=True)
class Config:
    """Runs a grid of methods, sparsities and seeds, and skips what is finished."""

    grid: cli.OptionalStr = None
    """A grid of grids.py by its name. Default: fashion_mnist, or what the flags below describe."""
    experiment: str = "fashion_mnist"
    """Script of the runs."""
    model: cli.OptionalStr = None
    """Model of a grid of one's own."""
    schedules: tuple[str, ...] = ("static", "rigl", "granet_st")
    """Methods of a grid of one's own; dense runs once a seed."""
    sparsities: tuple[float, ...] = (0.9, 0.95)
    """Sparsities of a grid of one's own."""
    seeds: cli.OptionalInt = None
    """Seeds, from 0. Default: the grid's own number, or 3."""
    flags: tuple[str, ...] = ()
    """Other flags of the script, as name=value."""
    data_dir: cli.OptionalPath = None
    """Folder with the data. Default: what the script takes."""
    jobs: cli.OptionalInt = None
    """Runs at the same time. Default: one a core; one where there is an accelerator."""
    out: Path = Path("runs/sweeps")
    """Folder for the folders of the runs."""
    results: Path = Path("experiments/results")
    """Folder for the results, one small file a run, in a subfolder named after the grid."""
    list: bool = False
    """Print what is finished and what is not, and stop."""


def main(config: Config) -> None:
    """Runs what is not finished yet.

    Raises:
      ValueError: a flag that makes no sense, a result with other flags, or runs that failed.
    """
    name, grids = grids_of(config)
    jobs = [_with_data(job, config.data_dir) for job in interleaved(grids)]
    results = config.results / name
    todo = [job for job in jobs if not is_finished(results / f"{job.name}.json", job)]
    print(f"{name}: {len(jobs) - len(todo)} of {len(jobs)} runs are finished in {results}")
    if config.list:
        print("\n".join(f"  to do: {job.name}" for job in todo))
        return
    failed = run_all(todo, config.out / name, results, config.jobs)
    if failed:
        raise ValueError(f"{len(failed)} of {len(todo)} runs failed: {'; '.join(failed)}")
    print(f"the table: python experiments/compare.py {results}")


def grids_of(config: Config) -> tuple[str, tuple[Grid, ...]]:
    """The name of the sweep and its grids, from the flags."""
    flags = _pairs(config.flags)
    if config.model is None:
        name = cli.nearest(config.grid or "fashion_mnist", GRIDS, kind="grid")
        grids = GRIDS[name]
        if flags:
            raise ValueError("--flags go with a grid of one's own: pass --model")
        if config.seeds is not None:
            grids = tuple(grid._replace(seeds=config.seeds) for grid in grids)
        _check_seeds(config.seeds)
        return name, grids
    if config.grid is not None:
        raise ValueError(f"--grid={config.grid} has its own models; leave out --model")
    cli.nearest(config.experiment, EXPERIMENTS, kind="experiment")
    for schedule in config.schedules:
        cli.nearest(schedule, METHODS, kind="schedule")
    seeds = 3 if config.seeds is None else config.seeds
    _check_seeds(seeds)
    grid = Grid(config.experiment, config.model, config.schedules, config.sparsities, seeds, flags)
    return f"{config.experiment}-{config.model}", (grid,)


def is_finished(path: Path, job: Job) -> bool:
    """Whether the result of a run is there.

    Raises:
      ValueError: it is that of a run with other flags, or cannot be read.
    """
    if not path.exists():
        return False
    if differ := flags_that_differ(read_result(path).config, job.flags):
        flag, theirs, ours = differ[0]
        raise ValueError(
            f"{path} is the result of a run with --{flag}={theirs}, not {ours}; pass another "
            f"--results"
        )
    return True


def run_all(jobs: Sequence[Job], out: Path, results: Path, num_jobs: int | None) -> list[str]:
    """Runs the jobs, a few at a time, and keeps their results; returns what failed, a line each."""
    free: queue.SimpleQueue[frozenset[int]] = queue.SimpleQueue()
    sets = core_sets(num_jobs)
    for cores in sets:
        free.put(cores)

    def work(job: Job) -> Result:
        cores = free.get()
        try:
            run_script(job.experiment, job.flags, out / job.name, cores)
            return result_of(out / job.name, cores)
        finally:
            free.put(cores)

    failed = []
    with (
        ThreadPoolExecutor(len(sets)) as pool,
        tqdm(total=len(jobs), unit="run", mininterval=0.1 if sys.stderr.isatty() else 10) as bar,
    ):
        running = {pool.submit(work, job): job for job in jobs}
        for done in as_completed(running):
            job = running[done]
            try:
                result = done.result()
            except (ValueError, OSError) as error:
                failed.append(f"{job.name}: {error}")
                bar.write(f"failed: {failed[-1]}", file=sys.stderr)
            else:
                write_result(results / f"{job.name}.json", result)
                bar.set_postfix_str(f"{job.name} {result.summary['test_accuracy']:.4f}")
            bar.update()
    return failed


def _with_data(job: Job, data_dir: Path | None) -> Job:
    if data_dir is None:
        return job
    return job._replace(flags={**job.flags, "data_dir": os.fspath(data_dir.absolute())})


def _pairs(flags: Sequence[str]) -> dict[str, str]:
    pairs = [flag.removeprefix("--").partition("=") for flag in flags]
    for flag, (name, _, value) in zip(flags, pairs, strict=True):
        if not (name and value):
            raise ValueError(f"--flags takes name=value, not {flag!r}")
    return {name.replace("-", "_"): value for name, _, value in pairs}


def _check_seeds(seeds: int | None) -> None:
    if seeds is not None and seeds < 1:
        raise ValueError(f"--seeds {seeds} must be at least 1")


if __name__ == "__main__":
    sys.exit(cli.run(main, Config, sys.argv[1:]))
