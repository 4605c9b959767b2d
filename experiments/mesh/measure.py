"""The cost of a run on the devices at hand: memory, and time by a step that is measured."""

import functools
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax

from experiments.records import report
from experiments.training.run import Run

_TIMED = 2  # steps, after one that is not


def describe_cost(
    run: Run, image: Any, state: Any, steps: Mapping[bool, Callable[..., Any]], batch: Any
) -> str:
    """Returns what --dry_run prints: plan and FLOPs, memory of a device, time of a step and of all.

    Args:
      run: what would be trained.
      image: the shape of an image, with a batch axis.
      state: to start with, on the mesh; it is donated.
      steps: the compiled ones, by whether there is a mask update: (state, batch) to the next state
        and the loss.
      batch: one, on the mesh.
    """
    memory, needs = memory_of(state), needs_of(steps)
    seconds = measured(steps[False], state, batch)
    total, rate = seconds * run.steps, run.batch_size / seconds
    lines = [
        f"devices         {jax.device_count()} x {jax.devices()[0].device_kind}, "
        f"{jax.process_count()} process{'es' * (jax.process_count() > 1)}",
        f"state           {memory / 2**20:,.1f} MiB of a device: params, masks, optimizer",
        *(f"{what:<15} {size / 2**20:,.1f} MiB of a device in all" for what, size in needs.items()),
        f"step            {seconds:.3g} s as measured, {rate:,.1f} images a second",
        f"training        {run.steps:,} steps, {duration(total)} without input, events and "
        f"evaluations",
    ]
    return report.describe_plan(run, image).rstrip("\n") + "\n\n" + "\n".join(lines)


def needs_of(steps: Mapping[bool, Callable[..., Any]]) -> dict[str, int]:
    """Returns the bytes of a device that each compiled step needs, with temporaries, by its name.

    Steps of micro-batches are several programs, and are left out.
    """
    found = {}
    for event, step in steps.items():
        if isinstance(step, functools.partial):
            program: Any = step.func
            stats = program.memory_analysis()
            kept = stats.output_size_in_bytes - stats.alias_size_in_bytes
            size = stats.argument_size_in_bytes + kept + stats.temp_size_in_bytes
            found["mask update" if event else "step"] = size
    return found


def measured(step: Callable[..., Any], state: Any, batch: Any) -> float:
    """Returns the seconds of a training step without a mask update."""
    state, _ = jax.block_until_ready(step(state, batch))
    start = time.perf_counter()
    for _ in range(_TIMED):
        state, _ = jax.block_until_ready(step(state, batch))
    return (time.perf_counter() - start) / _TIMED


def memory_of(tree: Any) -> int:
    """Returns the bytes of a tree on the device of this process that has most of it."""
    held: dict[Any, int] = {}
    for x in jax.tree.leaves(tree):
        for shard in x.addressable_shards:
            held[shard.device] = held.get(shard.device, 0) + shard.data.nbytes
    return max(held.values(), default=0)


def duration(seconds: float) -> str:
    """Returns a time as people say it.

    >>> duration(75), duration(7500), duration(400_000)
    ('1.2 minutes', '2.1 hours', '4.6 days')
    """
    for unit, length in (("days", 86_400), ("hours", 3600), ("minutes", 60)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} seconds"
