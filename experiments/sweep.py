r"""A grid of runs, as parallel processes: methods x sparsities x seeds of one model.

    python experiments/sweep.py --data_dir=DIR                          # a table of README.md
    python experiments/sweep.py --model=lenet5 --schedules static rigl --sparsities 0.9 0.95 \
        --seeds=3 --name=mine --flags steps=1000 batch_size=64          # a grid of one's own
    python experiments/compare.py experiments/results/fashion_mnist     # its table and its plot

Every finished run leaves a small file in --results: its flags, its summary, the commit and the
machine. A run with such a file is skipped, on any machine, and one that was cut off goes on from
its last checkpoint: to continue a sweep, call it again. Runs are kept to cores of their own, and
end with the sweep, however that ends (on Linux; elsewhere not where it is killed).

--vmap_seeds is for accelerators, see vmapped.py: the same grid under the name GRID-vmapped.
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
from experiments.sweeping.grids import GRIDS, Grid, Job, interleaved
from experiments.sweeping.jobs import SCRIPTS, check_data, config_of, is_finished, keep, run
from experiments.sweeping.result_file import Result
from experiments.sweeping.workers import core_sets

# What a grid sets itself, or the sweep.
TAKEN = ("model", "schedule", "sparsity", "seed", "data_dir", "out", "plan")


@dataclasses.dataclass(frozen=True)
class Config:
    """Runs a grid of methods, sparsities and seeds, and skips what is finished."""

    grid: cli.OptionalStr = None
    """A grid of grids.py by its name. Default: fashion_mnist, or what the flags below describe."""
    name: cli.OptionalStr = None
    """Name of a grid of one's own, for its folders. Default: EXPERIMENT-MODEL."""
    model: cli.OptionalStr = None
    """Model of a grid of one's own."""
    experiment: cli.OptionalStr = None
    """Script of a grid of one's own. Default: fashion_mnist."""
    schedules: tuple[str, ...] = ()
    """Methods of a grid of one's own; dense runs once a seed. Default: static rigl granet_st."""
    sparsities: tuple[float, ...] = ()
    """Sparsities of a grid of one's own. Default: 0.9 0.95."""
    seeds: cli.OptionalInt = None
    """Seeds, from 0. Default: the grid's own number, or 3."""
    flags: tuple[str, ...] = ()
    """Other flags of the script of a grid of one's own, as name=value."""
    data_dir: cli.OptionalPath = None
    """Folder with the data. Default: what the script takes."""
    jobs: cli.OptionalInt = None
    """Runs at the same time. Default: one a core; one where there is an accelerator."""
    out: Path = Path("runs/sweeps")
    """Folder for the folders of the runs."""
    results: cli.OptionalPath = None
    """Folder for the results, one small file a run, in a subfolder named after the grid. Default:
    results/ beside this script."""
    vmap_seeds: bool = False
    """Train the seeds of a method and sparsity in one process, as one compiled function: for an
    accelerator that one small network leaves idle. Not equal to single runs to the bit, so folders
    and results are kept apart, under the grid's name with -vmapped after it."""
    list: bool = False
    """Print what is finished and what is not, and stop."""


def main(config: Config) -> None:
    """Runs what is not finished yet.

    Raises:
      ValueError: a flag that makes no sense, a result with other flags, or runs that failed.
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
        check_data(todo[0])
        failed = run_all(batches(todo), config.out / name, results, config.jobs)
        if failed:
            raise ValueError(f"{len(failed)} of {len(todo)} runs failed: {', '.join(failed)}")
    print(f"the table: python experiments/compare.py {results}")


def jobs_of(config: Config) -> tuple[str, list[Job]]:
    """The name of the sweep and its runs, from the flags.

    Raises:
      ValueError: a flag that makes no sense, or that the script does not take.
    """
    if config.seeds is not None and config.seeds < 1:
        raise ValueError(f"--seeds {config.seeds} must be at least 1")
    if config.jobs is not None and config.jobs < 1:
        raise ValueError(f"--jobs {config.jobs} must be at least 1")
    name, grids = named_grids(config) if config.model is None else own_grid(config)
    jobs = [
        _with_data(job, config.data_dir)._replace(vmapped=config.vmap_seeds)
        for job in interleaved(grids)
    ]
    names = [job.name for job in jobs]
    if twice := next((job for job in names if names.count(job) > 1), None):
        raise ValueError(f"two runs would be {twice}: pass each schedule and sparsity once")
    for job in jobs:
        config_of(job)
    return f"{name}-vmapped" if config.vmap_seeds else name, jobs


def named_grids(config: Config) -> tuple[str, tuple[Grid, ...]]:
    """A name of grids.py and its grids."""
    for flag in ("name", "experiment", "schedules", "sparsities", "flags"):
        if getattr(config, flag):
            raise ValueError(f"--{flag} goes with a grid of one's own: pass --model")
    name = cli.nearest(config.grid or "fashion_mnist", GRIDS, kind="grid")
    if config.seeds is None:
        return name, GRIDS[name]
    return name, tuple(grid._replace(seeds=config.seeds) for grid in GRIDS[name])


def own_grid(config: Config) -> tuple[str, tuple[Grid, ...]]:
    """The grid that the flags describe, and a name for it."""
    if config.grid is not None:
        raise ValueError(f"--grid={config.grid} has its own models; leave out --model")
    experiment = cli.nearest(config.experiment or "fashion_mnist", SCRIPTS, kind="experiment")
    name = f"{experiment}-{config.model}" if config.name is None else config.name
    if name in GRIDS or not re.fullmatch(r"\w[\w.-]*", name):
        raise ValueError(f"--name={name} must be of letters, digits, . _ - and not {list(GRIDS)}")
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
    """The jobs that a process takes: one, or where seeds are vmapped all that differ in theirs."""
    together: dict[str, list[Job]] = {}
    for job in jobs:
        together.setdefault(job.without_seed if job.vmapped else job.name, []).append(job)
    return list(together.values())


def run_all(
    batches: Sequence[Sequence[Job]], out: Path, results: Path, num_jobs: int | None
) -> list[str]:
    """Runs a few batches at a time and keeps their results; returns the names of runs that failed.

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
