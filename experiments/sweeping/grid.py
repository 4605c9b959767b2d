"""Grids of runs and of lottery tickets, and the single runs of a grid."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple


class Job(NamedTuple):
    """One run of a grid.

    Attributes:
      experiment: name of the script that makes it, such as "fashion_mnist".
      name: of its folder and of its result.
      flags: of the script, by name.
      vmapped: whether it is trained together with other seeds, by `vmapped.py`.
      round: of lottery tickets, all of which `lottery.py` trains one after the other; 0 for any
        other run.
    """

    experiment: str
    name: str
    flags: dict[str, Any]
    vmapped: bool = False
    round: int = 0

    @property
    def process(self) -> str:
        """Name of the process that makes it, which all jobs that it makes have in common."""
        if self.round:
            return "-".join(str(self.flags[flag]) for flag in ("model", "arm", "seed"))
        return self.without_seed if self.vmapped else self.name

    @property
    def without_seed(self) -> str:
        """The part of the name that the runs of all seeds share."""
        return self.name.removesuffix(f"-seed{self.flags['seed']}")


class Grid(NamedTuple):
    """Methods x sparsities x seeds of one model; a dense network has no sparsity and runs once.

    Attributes:
      experiment: name of the script, such as "fashion_mnist".
      model: value of `--model`.
      schedules: values of `--schedule`.
      sparsities: values of `--sparsity`.
      seeds: number of seeds, which count from 0.
      flags: all other flags, by name.
      variant: a part of the runs' names, which tells them from those of a grid with the same
        methods.
    """

    experiment: str
    model: str
    schedules: tuple[str, ...]
    sparsities: tuple[float, ...]
    seeds: int
    flags: Mapping[str, Any] = {}
    variant: str = ""

    def jobs(self) -> Iterator[Job]:
        """Yields the runs seed by seed: a grid cut short is a whole grid of fewer seeds."""
        for seed in range(self.seeds):
            for schedule in self.schedules:
                for sparsity in (None,) if schedule == "dense" else self.sparsities:
                    yield self._job(schedule, sparsity, seed)

    def _job(self, schedule: str, sparsity: float | None, seed: int) -> Job:
        flags = {"model": self.model, "schedule": schedule, "seed": seed, **self.flags}
        parts = [self.model, schedule]
        if sparsity is not None:
            flags["sparsity"] = sparsity
            parts.append(f"{sparsity:g}")
        parts += [self.variant, f"seed{seed}"]
        return Job(self.experiment, "-".join(part for part in parts if part), flags)


class Tickets(NamedTuple):
    """Lottery tickets: arms x rounds x seeds of one model; the rounds of a seed are one process.

    Attributes:
      model: value of `--model`.
      arms: values of `--arm`.
      rounds: the rounds whose results are kept; the last one says how many there are.
      seeds: number of seeds, which count from 0.
      flags: all other flags of `lottery.py`, by name.
    """

    model: str
    arms: tuple[str, ...]
    rounds: tuple[int, ...]
    seeds: int
    flags: Mapping[str, Any] = {}

    def jobs(self) -> Iterator[Job]:
        """Yields the rounds, seed by seed."""
        for seed in range(self.seeds):
            for arm in self.arms:
                given = {"model": self.model, "arm": arm, "seed": seed, "rounds": self.rounds[-1]}
                for number in self.rounds:
                    name = f"{self.model}-imp_{arm}-round{number}-seed{seed}"
                    yield Job("lottery", name, {**given, **self.flags}, round=number)


def interleaved(grids: tuple[Grid | Tickets, ...]) -> list[Job]:
    """Returns the runs of all grids, those of seed 0 first."""
    jobs = [job for grid in grids for job in grid.jobs()]
    return sorted(jobs, key=lambda job: job.flags["seed"])
