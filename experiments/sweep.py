r"""Runs a grid in parallel processes: methods x sparsities x seeds of one model.

    python experiments/sweep.py --data_dir=DIR                          # a table of README.md
    python experiments/sweep.py --model=lenet5 --schedules static rigl --sparsities 0.9 0.95 \
        --seeds=3 --name=mine --flags steps=1000 batch_size=64          # a grid of your own
    python experiments/compare.py experiments/results/fashion_mnist     # its table and its plot

Every file of sweeping/grids/ is a grid, and says its paper, hardware, time and expected numbers.

Every finished run leaves a small file in --results: its flags, its summary, the commit and the
machine. A run with such a file is skipped, on any machine, and a run that was cut off goes on from
its last checkpoint. To continue a sweep, call it again. Each run is kept to cores of its own, and
ends with the sweep, however the sweep ends (on systems other than Linux, unless it is killed).

--vmap_seeds is for accelerators, see sweeping/vmapped.py: the same grid under the name
GRID-vmapped.
"""

import dataclasses
import os
import queue
import re
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from tqdm import tqdm

from experiments.options import cli
from experiments.records.run_folder import locked
from experiments.sweeping.grid import Grid, Job, Tickets, interleaved
from experiments.sweeping.jobs import is_finished, keep, run
from experiments.sweeping.kinds import SCRIPTS, kind_of
from experiments.sweeping.named import NAMES, grids_of
from experiments.sweeping.result_file import Result
from experiments.sweeping.workers import core_sets
from jaxsparse.checks import check_whole

# Flags of the script that the grid or the sweep sets.
TAKEN = ("model", "schedule", "sparsity", "seed", "data_dir", "out", "plan")


@dataclasses.dataclass(frozen=True)
class Config:
    """Runs a grid of methods, sparsities and seeds, and skips runs that are finished."""

    grid: cli.OptionalStr = None
    """Name of a grid: a file of sweeping/grids/. Default: fashion_mnist, or the grid that the flags
    below describe."""
    name: cli.OptionalStr = None
    """Name of a grid of your own, for its folders. Default: EXPERIMENT-MODEL."""
    model: cli.OptionalStr = None
    """Model of a grid of your own."""
    experiment: cli.OptionalStr = None
    """Script of a grid of your own: fashion_mnist, mnist or cifar. Default: fashion_mnist."""
    schedules: tuple[str, ...] = ()
    """Methods of a grid of your own; dense runs once a seed. Default: static rigl granet_st."""
    sparsities: tuple[float, ...] = ()
    """Sparsities of a grid of your own. Default: 0.9 0.95."""
    seeds: cli.OptionalInt = None
    """Number of seeds, which count from 0. Default: the grid's own number, or 3."""
    flags: tuple[str, ...] = ()
    """Other flags of the script, for a grid of your own, as name=value."""
    data_dir: cli.OptionalPath = None
    """Folder with the data. Default: that of the script."""
    jobs: cli.OptionalInt = None
    """Number of runs at the same time. Default: one a core, or one with an accelerator."""
    out: Path = Path("runs/sweeps")
    """Folder that will hold the folders of the runs."""
    results: cli.OptionalPath = None
    """Folder for the results: one small file a run, in a subfolder named after the grid. Default:
    results/ beside this script."""
    vmap_seeds: bool = False
    """Train the seeds of a method and sparsity in one process, as one compiled function. Use it for
    an accelerator that one small network leaves idle. The results are not those of single runs to
    the bit, so folders and results are kept apart, under the grid's name with -vmapped after it."""
    list: bool = False
    """Print what is finished and what is not, and run nothing."""


def main(config: Config) -> None:
    """Runs what is not finished yet.

    Raises:
      ValueError: a flag is wrong, a result there has other flags, or a run failed.
    """
    name, jobs = jobs_of(config)
    results = (config.results or Path(__file__).parent / "results") / name
    todo = [job for job in jobs if not is_finished(job, results)]
    print(f"{name}: {len(jobs) - len(todo)} of {len(jobs)} runs are finished in {results}")
    if config.list:
        for job in todo:
            print(f"  to do: {job.name}")
        return
    if todo:
        kind_of(todo[0]).load(todo[0])
        failed = run_all(batches(todo), config.out / name, results, config.jobs)
        if failed:
            raise ValueError(f"{len(failed)} of {len(todo)} runs failed: {', '.join(failed)}")
    print(f"the table: python experiments/compare.py {results}")


def jobs_of(config: Config) -> tuple[str, list[Job]]:
    """Returns the name of the sweep and its runs, as the flags describe them.

    Raises:
      ValueError: a flag is out of range, or the script does not take it.
    """
    for flag in ("seeds", "jobs"):
        if (number := getattr(config, flag)) is not None:
            check_whole(flag, number, 1)
    name, grids = named_grids(config) if config.model is None else own_grid(config)
    jobs = [
        _with_data(job, config.data_dir)._replace(vmapped=config.vmap_seeds)
        for job in interleaved(grids)
    ]
    names = [job.name for job in jobs]
    if twice := next((job for job in names if names.count(job) > 1), None):
        raise ValueError(f"two runs would be named {twice}: pass each schedule and sparsity once")
    for job in jobs:
        kind_of(job).config_of(job)
    return f"{name}-vmapped" if config.vmap_seeds else name, jobs


def named_grids(config: Config) -> tuple[str, tuple[Grid | Tickets, ...]]:
    """Returns the name of a grid of sweeping/grids/, and that grid with the seeds asked for."""
    for flag in ("name", "experiment", "schedules", "sparsities", "flags"):
        if getattr(config, flag):
            raise ValueError(f"--{flag} goes with a grid of your own: pass --model")
    name = cli.nearest(config.grid or "fashion_mnist", NAMES, kind="grid")
    grids = grids_of(name)
    if config.seeds is not None:
        grids = tuple(grid._replace(seeds=config.seeds) for grid in grids)
    return name, grids


def own_grid(config: Config) -> tuple[str, tuple[Grid | Tickets, ...]]:
    """Returns the grid that the flags describe, and a name for it."""
    if config.grid is not None:
        raise ValueError(f"--grid={config.grid} has its own models; leave out --model")
    experiment = cli.nearest(config.experiment or "fashion_mnist", SCRIPTS, kind="experiment")
    name = f"{experiment}-{config.model}" if config.name is None else config.name
    if name in NAMES or not re.fullmatch(r"\w[\w.-]*", name):
        raise ValueError(
            f"--name={name} must have letters, digits, '.', '_' and '-' alone, and be none of "
            f"{', '.join(NAMES)}"
        )
    grid = Grid(
        experiment,
        str(config.model),
        config.schedules or ("static", "rigl", "granet_st"),
        config.sparsities or (0.9, 0.95),
        3 if config.seeds is None else config.seeds,
        _pairs(config.flags),
    )
    return name, (grid,)


def batches(jobs: Sequence[Job]) -> list[list[Job]]:
    """Returns the jobs of each process: one, all seeds of a run, or all rounds of tickets."""
    together: dict[str, list[Job]] = {}
    for job in jobs:
        together.setdefault(job.process, []).append(job)
    return list(together.values())


def run_all(
    batches: Sequence[Sequence[Job]], out: Path, results: Path, num_jobs: int | None
) -> list[str]:
    """Runs a few batches at a time, keeps their results, and returns the names of failed runs.

    Args:
      batches: the jobs of each process.
      out: the folder that holds those of the runs.
      results: folder for the results.
      num_jobs: number of processes at a time, see `core_sets`.

    Raises:
      ValueError: another sweep is running in `out`.
    """
    free: queue.SimpleQueue[frozenset[int]] = queue.SimpleQueue()
    sets = core_sets(num_jobs)
    for cores in sets:
        free.put(cores)

    def work(jobs: Sequence[Job]) -> list[Result]:
        cores = free.get()
        try:
            return run(jobs, out, cores)
        finally:
            free.put(cores)

    failed: list[str] = []
    out.mkdir(parents=True, exist_ok=True)
    num_runs = sum(map(len, batches))
    with (
        os.fdopen(locked(out, "running a sweep")),
        ThreadPoolExecutor(len(sets)) as pool,
        tqdm(total=num_runs, unit="run", mininterval=0.1 if sys.stderr.isatty() else 10) as bar,
    ):
        running = {pool.submit(work, jobs): jobs for jobs in batches}
        for done in as_completed(running):
            names = [job.name for job in running[done]]
            try:
                finished = done.result()
                for job, result in zip(running[done], finished, strict=True):
                    keep(job, result, out, results)
            except (ValueError, OSError) as error:
                failed += names
                bar.write(f"failed: {', '.join(names)}: {error}", file=sys.stderr)
            else:
                bar.set_postfix_str(f"{names[-1]} {finished[-1].summary['test_accuracy']:.4f}")
            bar.update(len(names))
    return failed


def _with_data(job: Job, data_dir: Path | None) -> Job:
    if data_dir is None:
        return job
    return job._replace(flags={**job.flags, "data_dir": os.fspath(data_dir.absolute())})


def _pairs(flags: Sequence[str]) -> dict[str, str]:
    pairs = [flag.removeprefix("--").partition("=") for flag in flags]
    found = {name.replace("-", "_"): value for name, _, value in pairs}
    for flag, (name, _, value) in zip(flags, pairs, strict=True):
        if not (name and value):
            raise ValueError(f"--flags takes name=value, not {flag!r}")
        if name.replace("-", "_") in TAKEN:
            raise ValueError(f"--flags takes no {name}, which the sweep sets itself")
    return found


if __name__ == "__main__":
    sys.exit(cli.run(main, Config, sys.argv[1:]))
