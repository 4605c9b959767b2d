"""The two kinds of jobs of a sweep, runs of a script and rounds of tickets, as a table."""

import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from experiments import cifar, fashion_mnist, lottery, mnist
from experiments.options import cli
from experiments.sweeping.grid import Job
from experiments.tickets import rounds, scripts

SCRIPTS: Mapping[str, ModuleType] = {
    "fashion_mnist": fashion_mnist,
    "mnist": mnist,
    "cifar": cifar,
}


class Command(NamedTuple):
    """How a process is started.

    Attributes:
      script: its file.
      flags: by name.
      out: value of `--out`.
    """

    script: Path
    flags: Mapping[str, Any]
    out: Path


class Kind(NamedTuple):
    """The questions that a sweep asks of a job.

    Attributes:
      config_of: parses its flags as the script will; raises a ValueError for wrong ones.
      load: reads its data as the script will; raises an error if it is not there.
      asked: returns the flags that its result has, and the name of its data set.
      defaults: returns the defaults of all flags, for results older than a flag.
      folder: (job, folder of the sweep) to the folder of the run.
      command: (jobs of one process, folder of the sweep) to the process that trains them.
    """

    config_of: Callable[[Job], Any]
    load: Callable[[Job], Any]
    asked: Callable[[Job], tuple[dict[str, Any], str]]
    defaults: Callable[[Job], dict[str, Any]]
    folder: Callable[[Job, Path], Path]
    command: Callable[[Sequence[Job], Path], Command]


def kind_of(job: Job) -> Kind:
    """Returns the kind of a job."""
    return ROUND if job.round else RUN


def _words(job: Job) -> list[str]:
    return [f"--{name}={value}" for name, value in job.flags.items()]


def _run_config(job: Job) -> Any:
    script = SCRIPTS[job.experiment]
    config = cli.parse(script.Config, _words(job))
    cli.nearest(config.model, script.MODELS, kind="model")
    script.method_of(config)
    return config


def _run_asked(job: Job) -> tuple[dict[str, Any], str]:
    config = _run_config(job)
    return cli.as_dict(config), SCRIPTS[job.experiment].data_of(config)


def _run_command(jobs: Sequence[Job], out: Path) -> Command:
    first, *_ = jobs
    here = Path(__file__).parent
    if not first.vmapped:
        return Command(here.parent / f"{first.experiment}.py", first.flags, out / first.name)
    shared = [f"{name}={value}" for name, value in first.flags.items() if name != "seed"]
    flags = {
        "experiment": first.experiment,
        "seeds": ",".join(str(job.flags["seed"]) for job in jobs),
        "flags": shlex.join(shared),
    }
    return Command(here / "vmapped.py", flags, out / first.without_seed)


RUN = Kind(
    config_of=_run_config,
    load=lambda job: SCRIPTS[job.experiment].run_of(_run_config(job)),
    asked=_run_asked,
    defaults=lambda job: cli.as_dict(SCRIPTS[job.experiment].Config()),
    folder=lambda job, out: out / job.name,
    command=_run_command,
)
"""A run of a script, alone or with other seeds by `vmapped.py`."""


def _round_config(job: Job) -> Any:
    config = cli.parse(lottery.Config, _words(job))
    lottery.check(config)
    return config


def _round_asked(job: Job) -> tuple[dict[str, Any], str]:
    config = _round_config(job)
    base, planned = lottery.script_config(config), lottery.check(config)[job.round]
    return lottery.flags_of(config, base) | rounds.named(config.arm, planned), scripts.data_of(base)


ROUND = Kind(
    config_of=_round_config,
    load=lambda job: scripts.run_of(lottery.script_config(_round_config(job))),
    asked=_round_asked,
    defaults=lambda job: {},
    folder=lambda job, out: out / job.process / f"seed{job.flags['seed']}" / f"round{job.round:02}",
    command=lambda jobs, out: Command(
        Path(__file__).parents[1] / "lottery.py", jobs[0].flags, out / jobs[0].process
    ),
)
"""A round of lottery tickets; `lottery.py` trains all of a seed, one after the other."""
