"""The stages of a seed, each in a folder of its own: the base, and the arms that go on from it.

seed0/base/         the dense network, B steps
seed0/resrep-0.5/   an arm: A more steps, and the narrower network
seed0/gradual-0.5/  likewise; its earlier stretches are gradual-0.5-part1 and so on

A stage that has ended is read; one that was cut off goes on from its last checkpoint, to the same
bits. Plans and clusters are found anew from the base, which gives the same ones again.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from experiments import loop
from experiments.records.progress import Progress
from experiments.records.run_folder import check_flags
from experiments.structured import narrow_files, outcome, speed
from experiments.structured.arms import Arm
from experiments.structured.setting import Begun, Reached, Setting, multiply_adds
from experiments.tickets import stretch as stretches


def train_base(setting: Setting, out: Path, config: Mapping[str, Any]) -> Reached:
    """Trains the dense network of a seed, or reads it.

    Args:
      setting: of the study.
      out: folder of the stage.
      config: its flags.

    Raises:
      ValueError: as `loop.train`, but for a stage that has ended; or one with other flags.
      OSError: the folder cannot be read or written.
    """
    is_finished(out, config)  # refuses other flags
    state = loop.create_state(setting.base)
    ended = stretches.train(setting.base, out, dict(config), state, title="base")
    return Reached(setting.model, ended.state, ended.summary["test_accuracy"])


def train_arm(
    setting: Setting, arm: Arm, base: Reached, out: Path, config: Mapping[str, Any]
) -> None:
    """Trains an arm, or goes on with it; does nothing if it has ended.

    Args:
      setting: of the study.
      arm: how.
      base: the trained dense network.
      out: folder of the arm.
      config: its flags.

    Raises:
      ValueError: as `train_base`.
      OSError: a folder cannot be read or written.
    """
    if is_finished(out, config):
        return
    reached, parts, flops = base, arm.stretches(setting), 0
    for number, part in enumerate(parts, start=1):
        is_last = number == len(parts)
        folder = out if is_last else out.with_name(f"{out.name}-part{number}")
        flags = {**config, "part": None if is_last else number}
        if not is_last:
            flags["sparsity"] = 1 - part.target
        is_finished(folder, flags)
        begun = arm.begin(setting, reached, part)
        of_part = setting if is_last else setting._replace(timed_steps=0)
        flops += multiply_adds(begun.model, setting.image) * (part.last - reached.step)
        ended = stretches.train(
            begun.run,
            folder,
            flags,
            begun.state,
            title=folder.name,
            ending=_ending(of_part, begun, base, folder),
            **outcome.training_flops(setting, base.step, part.last, flops),
        )
        reached = Reached(begun.model, ended.state)


def is_finished(out: Path, config: Mapping[str, Any]) -> bool:
    """Whether a stage has ended.

    Raises:
      ValueError: it has, with other flags.
    """
    if not (out / "summary.json").exists():
        return False
    check_flags(out, config)
    return True


def _ending(
    setting: Setting, begun: Begun, base: Reached, folder: Path
) -> Callable[[Progress], dict[str, Any]]:
    """Returns what makes the narrower network, writes it, and says what it is."""

    def ended(reached: Progress) -> dict[str, Any]:
        narrow = begun.narrow(Reached(begun.model, reached.state))
        narrow_files.write(folder, setting.name, narrow.model, narrow.variables)
        return {
            **outcome.sizes(setting, narrow),
            "base_test_accuracy": base.test_accuracy,
            **outcome.merged_accuracy(setting, reached, narrow),
            **narrow.notes,
            **speed.step_seconds(setting, base.state.variables, narrow),
        }

    return ended
