"""What a run made of its flags: of those left out, and of those that are shares of training."""

from typing import Any

from experiments.training.run import Run


def resolved(run: Run) -> dict[str, Any]:
    """Returns what is in force in a run, in steps, for `summary.json`.

    Args:
      run: as it began.

    Returns:
      Where there are mask updates outside cycles, "update_interval", "first_update_step" and
      "last_update_step" of them; where the density changes, "final_density_step", the last change.
      With cycles "cycle_ends", "cycle_interval" and "cycle_multiplier"; with DyReLU
      "dyrelu_start_step", to which it is whole (or absent, with "dyrelu_late"),
      "dyrelu_stop_step", "dyrelu_blend" and "dyrelu_reduction"; with weight sharing
      "sharing_owners", the blocks of a stage that have kernels of their own.
    """
    found: dict[str, Any] = {}
    table, recipe = run.method.timetable, run.method.recipe
    cycles = None if recipe is None else recipe.cycles
    own = [event.step for event in table.events if cycles is None or event.step > cycles.stop_step]
    if own:
        found["update_interval"] = table.update_interval
        found |= {"first_update_step": own[0], "last_update_step": own[-1]}
    if changes := [event.step for event in table.events if event.density is not None]:
        found["final_density_step"] = changes[-1]
    if cycles is not None:
        found |= {"cycle_ends": list(cycles.ends), "cycle_interval": cycles.interval}
        found["cycle_multiplier"] = cycles.multiplier
    if run.phase is not None:
        found |= {f"dyrelu_{name}_step": getattr(run.phase, name) for name in ("start", "stop")}
        found["dyrelu_late"] = run.phase.late
        options: Any = getattr(run.model, "dyrelu", None)
        found |= {f"dyrelu_{name}": value for name, value in options._asdict().items()}
    if (owners := getattr(run.model, "num_owners", None)) is not None:
        found["sharing_owners"] = owners
    return found
