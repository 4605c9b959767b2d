"""The flags of initial masks by scores: --schedule=snip and its like, --init_masks, --score_...."""

from collections.abc import Collection, Mapping
from typing import Any

from experiments.options.cli import nearest
from experiments.options.flags import DEFAULTS
from experiments.training.criteria import CRITERIA, Criterion, Scoring
from jaxsparse import Method
from jaxsparse.checks import check_whole
from jaxsparse.method import recipe_of
from jaxsparse.unit_counts import check_options

_OF_SCORES = ("score_per_class", "score_batch", "score_rounds")


def reads_images(schedule: str, init_masks: str | None) -> bool:
    """Whether masks are chosen by scores that need labelled images."""
    needs = CRITERIA.get(schedule if init_masks is None else init_masks)
    return needs is not None and needs.reads_images


def without_scoring(
    schedule: str, takes: Collection[str], options: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns the flags that are given, without those of scores.

    Args:
      schedule: value of --schedule.
      takes: the flags that it takes. If --scope is none of them, it is that of the scores.
      options: values of all flags; None if they are left out.

    Raises:
      ValueError: --init_masks is given to a schedule that has no use for it.
    """
    given = {name: value for name, value in options.items() if value is not None}
    asked = given.pop("init_masks", None)
    if asked is not None and schedule in ("dense", *CRITERIA):
        why = "has no sparsity" if schedule == "dense" else "chooses its own masks"
        raise ValueError(f"--init_masks={asked} is no option of {schedule}, which {why}")
    if asked is not None and "scope" not in takes:
        check_options(given.pop("scope", "global"), None, None)
    return {name: value for name, value in given.items() if name not in _OF_SCORES}


def scoring_of(schedule: str, method: Method, options: Mapping[str, Any]) -> Scoring | None:
    """Returns how scores choose the masks that a method starts with; None if they do not.

    Args:
      schedule: value of --schedule.
      method: made for it.
      options: values of all flags; None if they are left out.

    Raises:
      ValueError: a flag of scores without scores, one that they do not take or that is out of its
        range, or a method that starts dense.
    """
    given = {name: options[name] for name in _OF_SCORES if options.get(name) is not None}
    criterion = options.get("init_masks") or (schedule if schedule in CRITERIA else None)
    if criterion is None:
        for flag, value in given.items():
            names = ", ".join(CRITERIA)
            raise ValueError(f"--{flag}={value} needs --init_masks, or a --schedule of {names}")
        return None
    needs = CRITERIA[nearest(criterion, CRITERIA, kind="init_masks")]
    for flag, value in given.items():
        _check(flag, value, criterion, needs)
    if method.timetable.initial_density == 1.0:
        advice = "; pass --initial_sparsity" if schedule in ("gmp", "granet_st") else ""
        raise ValueError(
            f"--init_masks={criterion} needs a schedule that starts sparse, and {schedule} starts "
            f"dense{advice}"
        )
    return Scoring(
        criterion,
        1.0 - method.timetable.initial_density,
        _among_layers(method, criterion, options),
        given.get("score_per_class", DEFAULTS["score_per_class"]),
        given.get("score_batch"),
        given.get("score_rounds"),
    )


def _check(flag: str, value: Any, criterion: str, needs: Criterion) -> None:
    has_rounds = needs.num_rounds is not None
    if not (has_rounds if flag == "score_rounds" else needs.reads_images):
        raise ValueError(f"--{flag}={value} is no option of {criterion}")
    check_whole(flag, value, 1)


def _among_layers(method: Method, criterion: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of `masks_from_scores`, those of the method where it has them."""
    recipe, scope = recipe_of(method), options.get("scope") or DEFAULTS["scope"]
    found = {"scope": scope, "min_keep": recipe.min_keep, "pattern": recipe.pattern or None}
    if scope == "layer":
        return found | {"distribution": recipe.distribution}
    for flag in ("distribution", "dense_layers"):
        if (value := options.get(flag)) is not None:
            said = f"{criterion} compares scores over all layers"
            raise ValueError(f"--{flag}={value} needs --scope=layer: {said}")
    return found
