"""The choice of masked rows, by a budget and a quota, against the loop of the paper."""

import numpy as np
import pytest

from jaxsparse.structured.channel_costs import Ruled, cost_table
from jaxsparse.structured.mask_choice import check_target, choose_row_masks, is_mask_step

pytestmark = pytest.mark.variants  # our own code, which knows little of versions

FLOPS = {"a": 2 * 9 * 3 * 4, "b": 2 * 9 * 4 * 6, "c": 2 * 6 * 5, "other": 20}
TABLE = cost_table(
    FLOPS, [Ruled("a", None, "p"), Ruled("b", "p", "q"), Ruled("c", "q")], {"p": 4, "q": 6}
)
NORMS = {"p": np.array([0.9, 0.1, 0.8, 0.4]), "q": np.array([0.2, 0.7, 0.3, 0.6, 0.5, 1.0])}
NONE = {path: np.ones(len(norms), bool) for path, norms in NORMS.items()}


def choose(masks=NONE, norms=NORMS, **options):
    return choose_row_masks(norms, masks, TABLE, **{"target": 0.31, **options})


def rows(masks):
    """The masked rows by path."""
    return {path: np.flatnonzero(~mask).tolist() for path, mask in masks.items()}


def widths(masks):
    return {path: int(mask.sum()) for path, mask in masks.items()}


def test_the_shortest_rows_of_all_layers_a_quota_at_a_time():
    masks = choose(quota=4)
    assert rows(masks) == {"p": [1, 3], "q": [0, 2]}  # 0.1 0.2 0.3 0.4
    masks = choose(masks, quota=1)
    assert rows(masks) == {"p": [1, 3], "q": [0, 2, 4]}
    masks = choose(masks, quota=4)  # ends as soon as the budget is met
    assert rows(masks) == {"p": [1, 3], "q": [0, 2, 3, 4]}
    full = TABLE({})
    assert TABLE(widths(masks)) <= 0.31 * full < TABLE({"p": 2, "q": 3})


def test_masks_are_rebuilt_and_rows_recalled():
    masks = choose(quota=2)
    assert rows(masks) == {"p": [1], "q": [0]}
    grown = {**NORMS, "p": np.array([0.9, 2.0, 0.8, 0.4])}
    # The row that has grown comes back; its layer gets the mask that says so.
    recalled = choose(masks, grown, quota=1)
    assert rows(recalled) == {"p": [3], "q": [0, 2]}
    all_back = {**NORMS, "p": np.full(4, 9.0)}
    assert rows(choose(masks, all_back, quota=1))["p"] == []


def test_without_a_quota_once_the_budget_is_met():
    """All rows of another order are masked at once, as many as the budget asks for."""
    met = {"p": np.array([True, False, False, False]), "q": np.array([True] + [False] * 5)}
    assert TABLE(widths(met)) <= 0.31 * TABLE({})
    masks = choose(met, quota=1)
    assert rows(masks) == {"p": [1, 3], "q": [0, 2, 3, 4]}
    assert sum(map(len, rows(masks).values())) < 8


def test_layers_at_their_smallest_width_do_not_use_up_the_quota():
    """The official loop stalls here: the four shortest rows all belong to saturated layers."""
    norms = {"p": np.array([0.01, 0.02, 0.03, 0.04]), "q": np.arange(1.0, 7.0)}
    saturated = {"p": 4}
    masks = choose(norms=norms, min_widths=saturated, quota=4, target=0.5)
    assert rows(masks) == {"p": [], "q": [0, 1, 2, 3]}
    one = choose(norms=norms, quota=4)
    assert rows(one) == {"p": [0, 1, 2], "q": [0]}  # at least one channel stays


def test_ties_and_a_target_of_1():
    ties = {path: np.zeros(len(norms)) for path, norms in NORMS.items()}
    assert rows(choose(norms=ties, quota=5, target=0.2)) == {"p": [0, 1, 2], "q": [0, 1]}
    assert rows(choose(target=1.0)) == {"p": [], "q": []}


def test_the_steps_at_which_masks_are_chosen():
    """5 epochs of ResNet-50's 5,004 steps, then every 200."""
    steps = [n for n in range(26_000) if is_mask_step(n, start_step=25_020)]
    assert steps == [25_220, 25_420, 25_620, 25_820]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: choose(target=0.1),
            r"target 0.1 cannot be reached: .* leave 0.1402 of the cost \(51 of 364",
        ),
        (
            lambda: check_target(TABLE, TABLE.widths, target=0.4, min_widths={"p": 4}),
            r"target 0.4 cannot be reached",
        ),
        (lambda: choose(target=0.0), r"target 0.0 must be in \(0, 1\]"),
        (lambda: choose(quota=0), "quota 0 must be a whole number of rows, at least 1"),
        (lambda: choose(min_widths=0), r"min_widths of p 0 must be .* in \[1, 4\]"),
        (lambda: choose(min_widths={"q": 7}), r"min_widths of q 7 must be .* in \[1, 6\]"),
        (lambda: choose(min_widths={"r": 1}), "min_widths 'r' names no compactor"),
        (lambda: choose({"p": NONE["p"]}), "q is in one of norms and masks"),
        (lambda: choose({**NONE, "q": np.ones(5, bool)}), r"q has \(6,\) norms, and masks of"),
        (
            lambda: choose(norms={**NORMS, "p": NORMS["p"] * np.nan}),
            "p has a norm that is not finite",
        ),
    ],
)
def test_what_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
