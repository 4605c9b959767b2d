"""The choice of the rows that ResRep masks: the shortest, a few more each time, to a budget."""

from collections.abc import Callable, Mapping
from typing import TypeAlias

import numpy as np

from jaxsparse.checks import check_in, check_whole
from jaxsparse.types import OptionError

Cost: TypeAlias = Callable[[Mapping[str, int]], float]
"""From the width of every compactor to the cost of the network, such as a `CostTable`. It must not
grow as a width shrinks."""


def is_mask_step(step: int, *, start_step: int, update_interval: int = 200) -> bool:
    """Returns whether masks are chosen anew before a step: one interval after the start, and so on.

    Args:
      step: completed steps.
      start_step: 5 epochs in the published runs.
      update_interval: at least 1.

    >>> [step for step in range(1000) if is_mask_step(step, start_step=150, update_interval=400)]
    [550, 950]
    """
    check_whole("update_interval", update_interval, 1, of="steps")
    return step > start_step and (step - start_step) % update_interval == 0


def check_target(
    cost: Cost,
    widths: Mapping[str, int],
    *,
    target: float,
    min_widths: int | Mapping[str, int] = 1,
) -> None:
    """Raises a ValueError if no widths reach a target; call it before training.

    Args:
      cost: of the network, see `Cost`.
      widths: the full width of every compactor.
      target: share of the full cost that may be left, in (0, 1].
      min_widths: fewest channels that a layer keeps, at least 1: one number or one by path (1 if
        missing).

    Raises:
      ValueError: the target is out of its range or below the smallest share that can be reached
        (names it); a smallest width is not in [1, width].

    >>> check_target(lambda widths: 100 + widths["q"], {"q": 100}, target=0.4)
    Traceback (most recent call last):
    jaxsparse.types.OptionError: target 0.4 cannot be reached: the smallest widths leave 0.505 of
    the cost (101 of 200); take a target above that
    """
    target = check_in("target", target, "(0, 1]")
    least, full = cost(_least(widths, min_widths)), cost(widths)
    if least > target * full:
        share = np.ceil(1e4 * least / full) / 1e4
        raise OptionError(
            "target",
            target,
            f"cannot be reached: the smallest widths leave {share:.4g} of the cost ({least:,} of "
            f"{full:,})",
            "take a target above that",
        )


def choose_row_masks(
    norms: Mapping[str, np.ndarray],
    masks: Mapping[str, np.ndarray],
    cost: Cost,
    *,
    target: float,
    min_widths: int | Mapping[str, int] = 1,
    quota: int = 4,
) -> dict[str, np.ndarray]:
    """Returns new masks: the shortest rows are masked, until the budget is met or the quota is up.

    The walk starts from full widths each time and goes through all rows of all layers by rising
    norm. It masks one row after another, unless their layer is at its smallest width. It ends as
    soon as cost(widths) <= target * cost(full widths), or when `quota` rows more are masked than
    are now. If the present masks meet the budget already, there is no quota. A row that has grown
    since may thus be recalled.

    Args:
      norms: float[rows] by path, from `row_norms`.
      masks: bool[rows] by path, the present masks, from `row_masks`.
      cost: of the network by widths, see `Cost`.
      target: share of the full cost that may be left, in (0, 1].
      min_widths: fewest channels that a layer keeps, as in `check_target`.
      quota: rows that one call masks in addition to the present number, at least 1.

    Returns:
      bool[rows] by path, for all compactors; False where a row is masked. Among equal norms the
      layer that comes first and the lower index are masked first.

    Raises:
      ValueError: as `check_target`; norms and masks that do not fit; or norms that are not finite.

    Differs from the official code in: a row that is passed over because its layer is at its
    smallest width does not use up the quota. There, with as many such rows as the quota, nothing
    more is ever masked. A layer whose rows are all recalled gets the mask that says so; there it
    keeps its old one.

    >>> norms = {"q": np.array([1.0, 0.2, 0.5, 0.1])}
    >>> masks = {"q": np.array([True, True, False, False])}
    >>> choose_row_masks(norms, masks, lambda widths: widths["q"], target=0.25, quota=1)
    {'q': array([ True, False, False, False])}
    """
    quota = check_whole("quota", quota, 1, of="rows")
    _check_norms(norms, masks)
    full = {path: len(row) for path, row in norms.items()}
    check_target(cost, full, target=target, min_widths=min_widths)
    budget, least = target * cost(full), _least(full, min_widths)
    present = {path: int(np.count_nonzero(masks[path])) for path in norms}
    limit = sum(full.values())
    if cost(present) > budget:
        limit = sum(full.values()) - sum(present.values()) + quota
    chosen = {path: np.ones(width, bool) for path, width in full.items()}
    widths, num_masked = dict(full), 0
    for path, row in _by_norm(norms):
        if num_masked >= limit or cost(widths) <= budget:
            break
        if widths[path] > least[path]:
            chosen[path][row] = False
            widths[path] -= 1
            num_masked += 1
    return chosen


def _by_norm(norms: Mapping[str, np.ndarray]) -> list[tuple[str, int]]:
    """All rows by rising norm."""
    rows = [(path, row) for path, found in norms.items() for row in range(len(found))]
    order = np.argsort(np.concatenate(list(norms.values())), kind="stable")
    return [rows[i] for i in order]


def _least(widths: Mapping[str, int], min_widths: int | Mapping[str, int]) -> dict[str, int]:
    """The smallest width of every compactor."""
    if isinstance(min_widths, Mapping):
        if others := [path for path in min_widths if path not in widths]:
            raise OptionError("min_widths", others[0], "names no compactor")
        given = {path: min_widths.get(path, 1) for path in widths}
    else:
        given = dict.fromkeys(widths, min_widths)
    return {
        path: check_whole(f"min_widths of {path}", given[path], 1, width, of="channels")
        for path, width in widths.items()
    }


def _check_norms(norms: Mapping[str, np.ndarray], masks: Mapping[str, np.ndarray]) -> None:
    if set(norms) != set(masks):
        path = min(set(norms).symmetric_difference(masks))
        raise ValueError(f"{path} is in one of norms and masks, and missing in the other")
    for path, row in norms.items():
        if np.shape(row) != np.shape(masks[path]):
            raise ValueError(
                f"{path} has {np.shape(row)} norms, and masks of shape {np.shape(masks[path])}"
            )
        if not np.isfinite(row).all():
            raise ValueError(f"{path} has a norm that is not finite; has the training diverged?")
