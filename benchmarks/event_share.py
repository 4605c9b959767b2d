"""The share of ResNet-50's training on ImageNet that masks and their updates cost.

    python -m benchmarks.event_share --batch_size=8

The programs are those of `experiments/imagenet.py` on one device, with generated images. A dense
step, a step with masks and a step with a mask update are timed in turn. The share of an event is
its extra time over that of the steps between two events of the published recipe. A larger batch
makes steps longer and leaves events as they are, so that the share falls with the batch: a share
at 8 images is above that at the published batch size.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax

from benchmarks import timing
from experiments import imagenet
from experiments.loop import peeked
from experiments.mesh import layout, start
from experiments.training.imagenet_recipes import RECIPES as PUBLISHED
from experiments.training.imagenet_recipes import published_options, recipe_name
from jaxsparse.text_table import text_table

METHODS = ("rigl", "granet_st")
NUM_TRAIN = 1_281_167


class Training:
    """Takes steps of one method, each from the state that the last one left."""

    def __init__(self, schedule: str, batch_size: int):
        config = imagenet.Config(
            schedule=schedule, sparsity=0.9, fake_data=True, batch_size=batch_size
        )
        mesh = layout.make_mesh()
        run, data = imagenet.run_of(config, mesh)
        self._batch, _ = peeked(data.train(0))
        self._state = start.created(run, mesh, fsdp=config.fsdp)
        self._steps = imagenet.by_kind(run, self._state, self._batch)

    def __call__(self, event: bool) -> float:
        """Takes a step, and returns its seconds."""
        began = time.perf_counter()
        self._state, _ = jax.block_until_ready(self._steps[event](self._state, self._batch))
        return time.perf_counter() - began


def published_interval(schedule: str) -> int:
    """Returns the steps between two events of the published recipe, at its own batch size."""
    recipe = PUBLISHED[recipe_name(schedule)]
    steps = round(recipe.epochs * NUM_TRAIN / recipe.batch_size)
    return published_options(schedule, steps)["update_interval"]


def spread(values: Sequence[float], digits: int) -> str:
    """Median and quartiles, such as "1.93 [1.91, 1.96]"."""
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{median:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def main() -> None:
    """Prints a line a method."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    trainings = {name: Training(name, args.batch_size) for name in ("dense", *METHODS)}
    runs: dict[tuple[str, bool], Callable[[bool], float]] = {
        (name, event): training
        for name, training in trainings.items()
        for event in (False, True)
        if not (event and name == "dense")
    }
    times: dict[tuple[str, bool], list[float]] = {key: [] for key in runs}
    for number in range(args.rounds + 1):
        for key in list(runs)[:: 1 if number % 2 == 0 else -1]:
            taken = runs[key](key[1])
            if number:  # the first round warms up
                times[key].append(taken)
    print(f"{timing.machine()}; ResNet-50, {args.batch_size} images a step, {args.rounds} rounds\n")
    dense = times["dense", False]
    rows: list[Sequence[Any]] = [
        ("method", "step, s", "over dense", "event's extra, s", "interval", "share of training, %"),
        ("dense", spread(dense, 3), "1", "-", "-", "-"),
    ]
    for name in METHODS:
        plain, interval = times[name, False], published_interval(name)
        extra = [a - b for a, b in zip(times[name, True], plain, strict=True)]
        share = [100 * a / (interval * b) for a, b in zip(extra, plain, strict=True)]
        over = [a / b for a, b in zip(plain, dense, strict=True)]
        rows.append(
            (name, spread(plain, 3), spread(over, 3), spread(extra, 3), interval, spread(share, 4))
        )
    print("\n".join(text_table([tuple(map(str, row)) for row in rows], align="<")))


if __name__ == "__main__":
    main()
