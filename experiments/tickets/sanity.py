"""The sanity protocol of lottery tickets: is a ticket's own initialisation worth anything?

A ticket wins only if, under a recipe that is good enough for the dense network,

1. it reaches the dense network's accuracy, and
2. it clearly beats the same mask with a random re-initialisation.

Both are reported at a small and at the tuned learning rate, with seeds, since they often disagree.
The other arms say what else could explain a ticket: a mask shuffled within its layers keeps only
the density of each layer, and the small dense network only the number of parameters.

Reference: Ma et al., "Sanity Checks for Lottery Tickets: Does Your Winning Ticket Really Win the
Jackpot?", NeurIPS 2021.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments import loop
from experiments.comparing.seeds import Stats, stats
from experiments.tickets import arms, report, rounds, stretch
from experiments.tickets.rounds import Pruning
from experiments.training.run import Run

ERRORS = 2.0
"""A mean difference of more standard errors than this counts as one."""


def train_arms(
    run: Run, pruning: Pruning, out: Path, config: dict[str, Any]
) -> dict[str, dict[str, Any]]:
    """Finds the ticket of a seed, trains the other arms, and returns the summary of each.

    The arms "reinit" and "small_dense" start at step 0, whatever --rewind_step is; "shuffle" starts
    where the ticket does.
    """
    found = rounds.find(run, pruning, out, config)
    last, masks = found.rows[-1], found.rows[-1].masks
    num_params = arms.num_params(found.end)
    sparse = arms.static_run(run, masks, run.steps, pruning.pattern)
    mixed = arms.shuffled(sparse, masks, pruning.pattern)
    shuffle = arms.static_run(run, mixed, run.steps, pruning.pattern)
    small, size = arms.narrow(run, num_params)
    flags = config | {"sparsity": round(1 - last.density, 6), "schedule": "static"}
    summaries = {
        "dense": (found.rows[0].summary, arms.num_params(found.early)),
        "ticket": (last.summary, num_params),
    }
    for name, begun, state, count in [
        ("reinit", sparse, arms.ticket(sparse, arms.reinitialised(run), masks), num_params),
        ("shuffle", shuffle, arms.ticket(shuffle, found.early, mixed), num_params),
        ("small_dense", small, loop.create_state(small), size),
    ]:
        own = flags | ({"schedule": "dense"} if name == "small_dense" else {}) | {"arm": name}
        ended = stretch.train(begun, out / name, own, state, title=name)
        summaries[name] = (ended.summary, count)
    return {name: summary | {"num_params": size} for name, (summary, size) in summaries.items()}


def over_seeds(seeds: Sequence[Mapping[str, Mapping[str, Any]]]) -> dict[str, Any]:
    """Returns the arms over seeds, and the two conditions.

    Args:
      seeds: what `train_arms` returned for each seed.
    """
    names = list(seeds[0])
    both = {
        "reaches_dense": difference(seeds, "ticket", "dense"),
        "beats_reinit": difference(seeds, "ticket", "reinit"),
    }
    return {
        "arms": {
            name: {"num_params": seeds[0][name]["num_params"]}
            | report.metrics([seed[name] for seed in seeds])
            for name in names
        },
        "conditions": {
            "reaches_dense": condition(both["reaches_dense"], least=-ERRORS),
            "beats_reinit": condition(both["beats_reinit"], least=ERRORS),
        },
    }


def difference(seeds: Sequence[Mapping[str, Mapping[str, Any]]], arm: str, other: str) -> Stats:
    """Returns the difference of two arms' test accuracy at the end, paired by seed."""
    return stats([seed[arm]["test_accuracy"] - seed[other]["test_accuracy"] for seed in seeds])


def condition(found: Stats, *, least: float) -> dict[str, Any]:
    """Returns whether a mean difference is at least so many standard errors; None for one seed.

    >>> condition(Stats(-0.001, 0.002, 4), least=-2.0)["holds"]
    True
    >>> condition(Stats(0.001, 0.002, 4), least=2.0)["holds"]
    False
    >>> condition(Stats(0.001, math.nan, 1), least=2.0)["holds"] is None
    True
    """
    error = found.standard_error
    holds = None if math.isnan(error) else found.mean >= least * error
    return {"difference": found._asdict(), "holds": holds}


def describe(by_rate: Mapping[float, Mapping[str, Any]]) -> str:
    """Returns the tables of arms and both conditions at each learning rate."""
    lines = []
    for rate, found in by_rate.items():
        lines += [f"learning rate {rate:g}", report.describe_arms(found["arms"])]
        for name, said in (
            ("reaches_dense", "1. the ticket reaches the dense network"),
            ("beats_reinit", "2. the ticket beats its mask re-initialised"),
        ):
            condition = found["conditions"][name]
            verdict = {True: "yes", False: "no", None: "one seed says nothing"}[condition["holds"]]
            shown = report.describe_difference(Stats(**condition["difference"]))
            lines.append(f"{said}: {verdict}, {shown}")
        lines.append("")
    lines.append("accuracy in %: mean ± sd (seeds); differences: mean ± standard error, of test")
    return "\n".join(lines)
