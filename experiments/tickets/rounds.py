"""Iterative magnitude pruning of one seed: train, prune, rewind, round after round.

start/      the first k steps, only if --rewind_step is above 0
round00/    the dense network, from step k on
round01/    the ticket of round 1, and so on
"""

import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import jaxsparse
from experiments import loop
from experiments.options.cli import nearest
from experiments.records import alarms
from experiments.tickets import arms, stretch
from experiments.tickets.stretch import Stretch
from experiments.training.run import Run, RunState
from jaxsparse.counting import num_true
from jaxsparse.paths import prunable_leaves
from jaxsparse.patterns import PatternRules
from jaxsparse.survivors import SurvivorOptions, Survivors

ARMS = ("rewind", "learning_rate_rewinding", "fine_tuning")
RESEED = 103
"""The seed of round r is drawn from the run's key with this number and r."""


class Pruning(NamedTuple):
    """How tickets are found.

    Attributes:
      rate: share of the survivors that a round removes, in (0, 1).
      rounds: number of rounds.
      rewind_step: k, in [0, steps).
      arm: one of ARMS.
      reseed: whether every round has its own order of the data, augmentation and dropout.
      options: of `prune_survivors`, without the pattern.
      pattern: rules for whole groups that are removed together; None if there are none.
    """

    rate: float
    rounds: int
    rewind_step: int
    arm: str
    reseed: bool
    options: SurvivorOptions
    pattern: PatternRules | None = None

    @property
    def all_options(self) -> SurvivorOptions:
        """The options with the pattern."""
        return {**self.options, "pattern": self.pattern}


class Row(NamedTuple):
    """The outcome of a round.

    Attributes:
      round: 0 is the dense network.
      density: of the trained weights: those that are not 0, over all prunable ones.
      summary: of the round.
      masks: of the ticket.
    """

    round: int
    density: float
    summary: dict[str, Any]
    masks: Any


class Tickets(NamedTuple):
    """All rounds of a seed.

    Attributes:
      rows: the dense network first.
      early: the state after step k, dense.
      end: that of the last ticket.
    """

    rows: list[Row]
    early: RunState
    end: RunState


def check(pruning: Pruning, params: Any, steps: int) -> list[Survivors]:
    """Refuses what cannot work before anything is trained; returns what each round leaves.

    Raises:
      ValueError: names the flag.
    """
    nearest(pruning.arm, ARMS, kind="arm")
    if not 0 <= pruning.rewind_step < steps:
        raise ValueError(
            f"--rewind_step={pruning.rewind_step} must be in [0, {steps - 1}], below --steps"
        )
    return jaxsparse.survivor_counts(params, pruning.rate, pruning.rounds, **pruning.all_options)


def find(run: Run, pruning: Pruning, out: Path, config: dict[str, Any]) -> Tickets:
    """Trains the dense network and every ticket; goes on where an earlier call was cut off.

    Args:
      run: of the dense network, with its seed and its number of steps T.
      pruning: how.
      out: folder of this seed.
      config: flags, for the `config.json` of every round.

    Returns:
      The rounds. They end early, with a note, if a ticket has no path left from image to logit.

    Raises:
      ValueError: as `loop.train`; or a trained ticket is denser than planned.
    """
    early = _early(run, pruning.rewind_step, out / "start", config)
    rows_planned = check(pruning, early.params, run.steps)
    masks = early.masks
    dense = stretch.train(
        run, out / "round00", config | {"schedule": "dense"}, early, title="dense", round=0
    )
    rows, trained = [_row(0, dense, rows_planned[0], masks)], dense
    for planned in rows_planned[1:]:
        r = planned.round
        masks = jaxsparse.prune_survivors(
            trained.state.params, masks, pruning.rate, rounds=r, **pruning.all_options
        )
        begun, state = _ticket(run, pruning, r, early, dense.state, trained.state, masks)
        if alarms.find_paths(begun, state).is_cut:
            note = f"note: the ticket of round {r} has no path from an image to a logit; round "
            advice = f"{r - 1} is the last. --min_keep or --scope=layer keep layers alive"
            print(note + advice, file=sys.stderr, flush=True)
            break
        title = f"round {r} of {pruning.rounds}, density {planned.density:.3g}"
        flags = named(pruning.arm, planned)
        trained = stretch.train(
            begun, out / f"round{r:02}", config | flags, state, title=title, round=r
        )
        rows.append(_row(r, trained, planned, masks))
    return Tickets(rows, early, trained.state)


def named(arm: str, planned: Survivors) -> dict[str, Any]:
    """Returns the flags that tell a round from other runs: its arm, as a method, and sparsity."""
    return {"schedule": f"imp_{arm}", "sparsity": round(1 - planned.density, 4)}


def _early(run: Run, k: int, out: Path, config: dict[str, Any]) -> RunState:
    """The dense state after step k, which every round goes back to."""
    if not k:
        return loop.create_state(run)
    begun = run._replace(method=jaxsparse.dense(total_steps=k, prunable=run.method.prunable))
    flags = config | {"schedule": "dense", "steps": k}
    title = f"first {k} steps"
    end = stretch.train(begun, out, flags, loop.create_state(begun), title=title).state
    return end.replace(method=run.method)


def _ticket(
    run: Run,
    pruning: Pruning,
    r: int,
    early: RunState,
    dense: RunState,
    trained: RunState,
    masks: Any,
) -> tuple[Run, RunState]:
    """The run and the state of a round.

    Fine-tuning trains as many steps as the others, T - k, after the last step: from T to 2 T - k,
    where the schedule stays at its last learning rate.
    """
    steps = run.steps
    after = 2 * steps - pruning.rewind_step if pruning.arm == "fine_tuning" else steps
    begun = arms.static_run(run, masks, after, pruning.pattern)
    if pruning.reseed:
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(run.seed), RESEED), r)
        begun = begun._replace(seed=int(jax.random.bits(key, dtype=jnp.uint32)))
    if pruning.arm == "rewind":
        return begun, arms.ticket(begun, early, masks)
    changes = {"params": trained.params, "collections": trained.collections}
    if pruning.arm == "learning_rate_rewinding":
        return begun, arms.ticket(begun, early, masks, **changes)
    return begun, arms.ticket(begun, early, masks, dense.opt_state, step=dense.step, **changes)


def _row(r: int, ended: Stretch, planned: Survivors, masks: Any) -> Row:
    """The row of a round, after a check that the trained weights are as sparse as planned."""
    weights = prunable_leaves(ended.state.params, ended.state.method.prunable)
    num_left = sum(num_true(weights.values()))
    if num_left > planned.num_active:
        raise ValueError(
            f"round {r} ends with {num_left:,} weights that are not 0, {planned.num_active:,} were "
            f"planned"
        )
    return Row(r, num_left / planned.size, ended.summary, masks)
