"""One run of a sweep: what its flags mean, whether its result is there, and how to get it."""

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from experiments import cifar, cli, fashion_mnist
from experiments.grids import Job
from experiments.results import (
    Result,
    commit,
    flags_that_differ,
    note_start,
    read_result,
    result_of,
    write_result,
)
from experiments.workers import run_script

SCRIPTS: Mapping[str, ModuleType] = {"fashion_mnist": fashion_mnist, "cifar": cifar}


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
    """Reads the data as the script will; raises what it does where there is none."""
    SCRIPTS[job.experiment].run_of(config_of(job))


def is_finished(job: Job, results: Path) -> bool:
    """Whether the result of a run is there.

    Raises:
      ValueError: it is that of a run with other flags or data, or cannot be read.
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


def finish(job: Job, out: Path, results: Path, cores: frozenset[int]) -> Result:
    """Runs a job to its end, from where its folder has got to, and writes its result.

    Args:
      job: what to run.
      out: folder above the run's own.
      results: folder for the result.
      cores: that the run is kept to.

    Raises:
      ValueError: the run failed, or its folder holds one with other flags or data.
      OSError: the result cannot be written.
    """
    folder = out / job.name
    if not (folder / "summary.json").exists():
        note_start(folder, commit())
        script = Path(__file__).parent / f"{job.experiment}.py"
        run_script(script, job.flags, folder, cores)
    result = result_of(folder, cores)
    _check_same(result, job, f"{folder} holds", "pass another --out, or delete the folder")
    write_result(results / f"{job.name}.json", result)
    return result


def _check_same(result: Result, job: Job, what: str, remedy: str) -> None:
    config = config_of(job)
    newer = cli.as_dict(type(config)())  # a run from before a flag did what its default does
    if differ := flags_that_differ(newer | result.config, cli.as_dict(config)):
        flag, theirs, ours = differ[0]
        raise ValueError(f"{what} a run with --{flag}={theirs}, not {ours}; {remedy}")
    data, asked = result.summary.get("dataset"), SCRIPTS[job.experiment].data_of(config)
    if data != asked:
        raise ValueError(f"{what} a run on {data}, not {asked}; {remedy}")
