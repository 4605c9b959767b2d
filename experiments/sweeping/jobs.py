"""Runs of a sweep: finds their results, trains them, keeps what comes out."""

from collections.abc import Sequence
from pathlib import Path

from experiments.records.run_folder import difference
from experiments.sweeping.grid import Job
from experiments.sweeping.kinds import kind_of
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
    folders = [kind_of(job).folder(job, out) for job in jobs]
    if not all((folder / "summary.json").exists() for folder in folders):
        for folder in folders:
            note_start(folder, commit())
        run_script(*kind_of(jobs[0]).command(jobs, out), cores)
    return [result_of(folder, cores) for folder in folders]


def keep(job: Job, result: Result, out: Path, results: Path) -> None:
    """Writes the result of a run in the folder `out` to the folder `results`.

    Raises:
      ValueError: the run's folder holds a run with other flags or data.
      OSError: the result cannot be written.
    """
    _check_same(
        result, job, f"{kind_of(job).folder(job, out)} holds", "pass another --out, or delete it"
    )
    write_result(results / f"{job.name}.json", result)


def _check_same(result: Result, job: Job, what: str, remedy: str) -> None:
    """Checks that a result is that of a job.

    Raises:
      ValueError: it is not; the line is `what`, the first difference, and what to do.
    """
    if bool(result.config.get("vmapped")) != job.vmapped:
        theirs, ours = ("without", "with") if job.vmapped else ("with", "without")
        raise ValueError(f"{what} a run {theirs} --vmap_seeds, not {ours} it; {remedy}")
    kind = kind_of(job)
    asked, data_asked = kind.asked(job)
    if differ := flags_that_differ(kind.defaults(job) | result.config, asked):
        flag, theirs, ours = differ[0]
        raise ValueError(f"{what} a run {difference(flag, theirs, ours)}; {remedy}")
    # A sample is shipped; every other data set needs a folder.
    data = result.summary.get("dataset")
    if data != data_asked:
        folder = "leave out --data_dir" if "sample" in str(data) else "pass --data_dir=DIR"
        raise ValueError(
            f"{what} a run on {data}, not {data_asked}; {folder} to have {data}, or {remedy}"
        )
