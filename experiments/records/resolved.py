"""The settings a run used: defaults filled in, shares of training turned into steps."""

from typing import Any

from experiments.training.run import Run


def resolved(run: Run) -> dict[str, Any]:
    """Returns the settings of a run, in steps, for `summary.json`.

    Args:
      run: as it began.

    Returns:
      Some of these, by name:
        mask updates outside cycles: "update_interval", "first_update_step", "last_update_step";
        changes of density: "final_density_step", the last of them;
        cycles: "cycle_ends", "cycle_interval", "cycle_multiplier";
        DyReLU: "dyrelu_start_step" (it counts in full up to then, or not at all if "dyrelu_late"),
        "dyrelu_stop_step", "dyrelu_late", "dyrelu_blend", "dyrelu_reduction";
        weight sharing: "sharing_owners", the blocks of a stage that have kernels of their own.
    """
    found: dict[str, Any] = {}
    table, cycles = run.method.timetable, run.method.cycles
    own = [event.step for event in table.events if event.step > run.method.cycles_end]
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
