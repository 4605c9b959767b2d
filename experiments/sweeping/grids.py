"""The grids of runs behind the tables of README.md, by name."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple


class Job(NamedTuple):
    """One run of a grid.

    Attributes:
      experiment: the script that makes it, such as "fashion_mnist".
      name: of its folder and of its result.
      flags: of the script.
      vmapped: whether it is trained together with other seeds, by `vmapped.py`.
    """

    experiment: str
    name: str
    flags: dict[str, Any]
    vmapped: bool = False

    @property
    def without_seed(self) -> str:
        """What the names of all seeds begin with."""
        return self.name.removesuffix(f"-seed{self.flags['seed']}")


class Grid(NamedTuple):
    """Methods x sparsities x seeds of one model; a dense network has no sparsity and runs once.

    Attributes:
      experiment: the script, such as "fashion_mnist".
      model: `--model`.
      schedules: `--schedule`.
      sparsities: `--sparsity`.
      seeds: how many, from 0.
      flags: all others.
      variant: tells the runs of one grid from those of another with the same methods.
    """

    experiment: str
    model: str
    schedules: tuple[str, ...]
    sparsities: tuple[float, ...]
    seeds: int
    flags: Mapping[str, Any] = {}
    variant: str = ""

    def jobs(self) -> Iterator[Job]:
        """Yields the runs seed by seed, so that a grid cut short is a whole one of fewer seeds."""
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


_ALL = ("dense", "static", "set", "rigl", "snfs", "gmp", "granet", "granet_st")

_THREE_EPOCHS = {"epochs": 3, "eval_every": 351, "checkpoint_every": 351}
_INNER = {"pattern_layers": "^(?!conv1/|fc/)"}
_SHORT = {"steps": 4000, "eval_every": 400, "checkpoint_every": 2000}
_EXTREME = (0.999, 0.9999, 0.9995, 0.99, 0.995)  # those of the most interest first


def _extreme(
    schedules: tuple[str, ...],
    sparsities: tuple[float, ...],
    *,
    seeds: int = 3,
    variant: str = "",
    **flags: Any,
) -> tuple[Grid, ...]:
    """A part of the study of extreme sparsity: all methods with the recipe of EAST."""
    of_all = {"recipe": "east", "epochs": 10, "eval_every": 351, "checkpoint_every": 1755}
    options = {**of_all, "execution": "sparse", **flags}
    return (Grid("cifar", "resnet34_narrow", schedules, sparsities, seeds, options, variant),)


GRIDS: dict[str, tuple[Grid, ...]] = {
    # About 19 and 9.5 epochs of 54,000 images.
    "fashion_mnist": (
        Grid(
            "fashion_mnist",
            "lenet_300_100",
            _ALL,
            (0.9, 0.95, 0.98, 0.99),
            seeds=5,
            flags={"steps": 8000, "eval_every": 400, "checkpoint_every": 2000},
        ),
        Grid(
            "fashion_mnist",
            "lenet5",
            _ALL,
            (0.95, 0.98),
            seeds=3,
            flags={"steps": 4000, "eval_every": 200, "checkpoint_every": 1000},
        ),
    ),
    # The full recipe has 160 epochs; an epoch of ResNet-8 takes a core some two minutes.
    "cifar10": (
        Grid(
            "cifar",
            "resnet8",
            ("dense", "rigl", "granet_st"),
            (0.9, 0.95),
            seeds=3,
            flags={"epochs": 6, "eval_every": 351, "checkpoint_every": 351},
        ),
    ),
    # Of the main grid (100 steps for RigL and SET, 142 for GraNet) both shorter and longer ones.
    "intervals": tuple(
        Grid(
            "fashion_mnist",
            "lenet_300_100",
            ("set", "rigl", "granet", "granet_st"),
            (0.98,),
            seeds=3,
            flags={"steps": 8000, "eval_every": 400, "update_interval": interval},
            variant=f"every{interval}",
        )
        for interval in (71, 568)
    ),
    # RigL with a structure beside RigL without, at the density of the structure: 2:4 fixes that of
    # every layer, hence uniform; blocks of 4 x 4 do not divide the classifier's 10 outputs.
    "patterns": tuple(
        Grid("fashion_mnist", "lenet_300_100", ("rigl",), (sparsity,), 3, _SHORT | flags, variant)
        for sparsity, flags, variant in (
            (0.5, {"distribution": "uniform"}, ""),
            (0.5, {"distribution": "uniform", "pattern": "2:4"}, "2of4"),
            (0.9, {}, ""),
            (0.9, {"pattern": "4x4", "pattern_layers": "Dense_[01]/"}, "4x4"),
        )
    ),
    # The same on a network of convolutions, of which the first has 3 input channels.
    "patterns_resnet8": tuple(
        Grid("cifar", "resnet8", ("rigl",), (sparsity,), 1, _THREE_EPOCHS | flags, variant)
        for sparsity, flags, variant in (
            (0.5, {"distribution": "uniform"}, ""),
            (0.5, {"distribution": "uniform", "pattern": "2:4", **_INNER}, "2of4"),
            (0.9, {}, ""),
            (0.9, {"pattern": "4x4", **_INNER}, "4x4"),
        )
    ),
    # EAST, without each of its parts, and what it is to be compared with. 3,510 steps: an epoch by
    # active weights takes one core 8 s, where dense kernels take a minute. GraNet-ST, which begins
    # with half of the weights, takes four times as long.
    "extreme": (
        *_extreme(("east", "rigl", "set"), _EXTREME),
        *_extreme(("static",), (0.999, 0.99, 0.995)),  # beyond, masks that cut the network
        *_extreme(("east",), _EXTREME, variant="no_cycles", cycles=0),
        *_extreme(("east",), _EXTREME, variant="no_dyrelu", dyrelu=False),
        *_extreme(("east",), _EXTREME, variant="no_sharing", weight_sharing=False),
        *_extreme(("granet_st",), (0.999, 0.9999, 0.99, 0.995)),
        # EAST without all of its parts: a look.
        *_extreme(("rigl_itop",), (0.999, 0.9999, 0.9995, 0.99), seeds=1),
    ),
}


def interleaved(grids: tuple[Grid, ...]) -> list[Job]:
    """Returns the runs of all grids, those of seed 0 first."""
    jobs = [job for grid in grids for job in grid.jobs()]
    return sorted(jobs, key=lambda job: job.flags["seed"])
