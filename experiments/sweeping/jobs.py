"""Runs of a sweep: parses their flags, finds their results, trains them, keeps what comes out."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from experiments import cifar, fashion_mnist, lottery, mnist
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
from experiments.tickets import rounds, scripts

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
    words = [f"--{name}={value}" for name, value in job.flags.items()]
    if job.round:
        config = cli.parse(lottery.Config, words)
        lottery.check(config)
        return config
    script = SCRIPTS[job.experiment]
    config = cli.parse(script.Config, words)
    cli.nearest(config.model, script.MODELS, kind="model")
    script.method_of(config)
    return config


def check_data(job: Job) -> None:
    """Reads the data as the script will, which raises an error if it is not there."""
    config = config_of(job)
    if job.round:
        scripts.run_of(lottery.script_config(config))
    else:
        SCRIPTS[job.experiment].run_of(config)


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
      jobs: those of one process.
      out: the folder that holds those of the runs.
      cores: the cores that the process is kept to.

    Raises:
      ValueError: a run failed.
    """
    folders = [folder_of(job, out) for job in jobs]
    if not all((folder / "summary.json").exists() for folder in folders):
        for folder in folders:
            note_start(folder, commit())
        run_script(*_command(jobs, out), cores)
    return [result_of(folder, cores) for folder in folders]


def folder_of(job: Job, out: Path) -> Path:
    """Returns the folder of a run among those of a sweep."""
    if job.round:
        return out / job.process / f"seed{job.flags['seed']}" / f"round{job.round:02}"
    return out / job.name


def keep(job: Job, result: Result, out: Path, results: Path) -> None:
    """Writes the result of a run in the folder `out` to the folder `results`.

    Raises:
      ValueError: the run's folder holds a run with other flags or data.
      OSError: the result cannot be written.
    """
    _check_same(result, job, f"{folder_of(job, out)} holds", "pass another --out, or delete it")
    write_result(results / f"{job.name}.json", result)


def _command(jobs: Sequence[Job], out: Path) -> tuple[Path, dict[str, Any], Path]:
    """Returns the script, its flags, and the folder for `--out`."""
    first, *_ = jobs
    here = Path(__file__).parent
    experiments = here.parent
    if first.round:
        return experiments / "lottery.py", first.flags, out / first.process
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
    asked, data_asked = _asked(job)
    if differ := flags_that_differ(_newer(job) | result.config, asked):
        flag, theirs, ours = differ[0]
        raise ValueError(f"{what} a run {difference(flag, theirs, ours)}; {remedy}")
    # A sample is shipped; every other data set needs a folder.
    data = result.summary.get("dataset")
    if data != data_asked:
        folder = "leave out --data_dir" if "sample" in str(data) else "pass --data_dir=DIR"
        raise ValueError(
            f"{what} a run on {data}, not {data_asked}; {folder} to have {data}, or {remedy}"
        )


def _asked(job: Job) -> tuple[dict[str, Any], str]:
    """Returns the flags that a job's result has, and its data set."""
    config = config_of(job)
    if not job.round:
        return cli.as_dict(config), SCRIPTS[job.experiment].data_of(config)
    base, planned = lottery.script_config(config), lottery.check(config)[job.round]
    return lottery.flags_of(config, base) | rounds.named(config.arm, planned), scripts.data_of(base)


def _newer(job: Job) -> dict[str, Any]:
    """Returns the defaults of all flags, for those that are newer than a run."""
    return {} if job.round else cli.as_dict(type(config_of(job))())
