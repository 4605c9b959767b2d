"""Runs of a sweep: parses their flags, finds their results, trains them, keeps what comes out."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from experiments import cifar, fashion_mnist, mnist
from experiments.options import cli
from experiments.records.run_folder import difference
from experiments.sweeping.grid import Job
from experiments.sweeping.result_file import (
    Result,
    commit,
    flags_that_differ,
    note_start,
    read_result,
    result_of,
    write_result,
)
from experiments.sweeping.workers import run_script

SCRIPTS: Mapping[str, ModuleType] = {
    "fashion_mnist": fashion_mnist,
    "mnist": mnist,
    "cifar": cifar,
}


def config_of(job: Job) -> Any:
    """Parses the flags as the script will.

    Raises:
      ValueError: an unknown flag, model or schedule, or a value that the method does not take.
    """
    script = SCRIPTS[job.experiment]
    config = cli.parse(script.Config, [f"--{name}={value}" for name, value in job.flags.items()])
    cli.nearest(config.model, script.MODELS, kind="model")
    script.method_of(config)
    return config


def check_data(job: Job) -> None:
    """Reads the data as the script will, which raises an error if it is not there."""
    SCRIPTS[job.experiment].run_of(config_of(job))


def is_finished(job: Job, results: Path) -> bool:
    """Whether the result of a run is there.

    Raises:
      ValueError: the file cannot be read, or is the result of a run with other flags or data.
    """
    path = results / f"{job.name}.json"
    if not path.exists():
        return False
    try:
        result = read_result(path)
    except ValueError as error:
        raise ValueError(f"{error}; delete it to make the run again") from None
    _check_same(result, job, f"{path} is the result of", "pass another --results")
    return True


def run(jobs: Sequence[Job], out: Path, cores: frozenset[int]) -> list[Result]:
    """Runs jobs to their end and returns their results.

    A run whose folder is there goes on from its last checkpoint. This may be called in any thread,
    as it parses no flags, which only the main thread may do.

    Args:
      jobs: one job; or several that differ in their seed alone, which are trained together.
      out: the folder that holds those of the runs.
      cores: the cores that the process is kept to.

    Raises:
      ValueError: a run failed.
    """
    if not all((out / job.name / "summary.json").exists() for job in jobs):
        for job in jobs:
            note_start(out / job.name, commit())
        run_script(*_command(jobs, out), cores)
    return [result_of(out / job.name, cores) for job in jobs]


def keep(job: Job, result: Result, out: Path, results: Path) -> None:
    """Writes the result of a run in the folder `out` to the folder `results`.

    Raises:
      ValueError: the run's folder holds a run with other flags or data.
      OSError: the result cannot be written.
    """
    _check_same(result, job, f"{out / job.name} holds", "pass another --out, or delete it")
    write_result(results / f"{job.name}.json", result)


def _command(jobs: Sequence[Job], out: Path) -> tuple[Path, dict[str, Any], Path]:
    """Returns the script, its flags, and the folder for `--out`."""
    first, *_ = jobs
    here = Path(__file__).parent
    experiments = here.parent
    if not first.vmapped:
        return experiments / f"{first.experiment}.py", first.flags, out / first.name
    shared = [f"{name}={value}" for name, value in first.flags.items() if name != "seed"]
    flags = {
        "experiment": first.experiment,
        "seeds": ",".join(str(job.flags["seed"]) for job in jobs),
        "flags": shlex.join(shared),
    }
    return here / "vmapped.py", flags, out / first.without_seed


def _check_same(result: Result, job: Job, what: str, remedy: str) -> None:
    """Checks that a result is that of a job.

    Raises:
      ValueError: it is not; the line is `what`, the first difference, and what to do.
    """
    if bool(result.config.get("vmapped")) != job.vmapped:
        theirs, ours = ("without", "with") if job.vmapped else ("with", "without")
        raise ValueError(f"{what} a run {theirs} --vmap_seeds, not {ours} it; {remedy}")
    config = config_of(job)
    newer = cli.as_dict(type(config)())  # for flags newer than the run
    if differ := flags_that_differ(newer | result.config, cli.as_dict(config)):
        flag, theirs, ours = differ[0]
        raise ValueError(f"{what} a run {difference(flag, theirs, ours)}; {remedy}")
    # A sample is shipped; every other data set needs a folder.
    data, asked = result.summary.get("dataset"), SCRIPTS[job.experiment].data_of(config)
    if data != asked:
        folder = "leave out --data_dir" if "sample" in str(data) else "pass --data_dir=DIR"
        raise ValueError(
            f"{what} a run on {data}, not {asked}; {folder} to have {data}, or {remedy}"
        )
