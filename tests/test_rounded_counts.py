"""Densities as integers: exact totals, largest remainders, minima and bounds."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxsparse.distributions import erk, uniform
from jaxsparse.rounded_counts import highest_sparsity, leaf_counts, total_count


@pytest.mark.parametrize(
    ("size", "sparsity", "expected"),
    [
        (120, 0.5, 60),
        (8, 0.8, 2),  # 8 - floor(6.4)
        (30, 0.1, 27),
        (10_000, 0.9, 1_000),  # int(10_000 * (1 - 0.9)) is 999
        (25_502_912, 0.9, 2_550_292),
        (7, 0.0, 7),
        (0, 0.5, 0),
    ],
)
def test_total_count(size, sparsity, expected):
    assert total_count(size, 1 - sparsity) == expected


def test_counts_go_to_the_largest_remainders():
    # ideal 2.4, 2.4, 1.2: six in all; both 2.4 are further from their floor than 1.2
    shapes = {"a": (4,), "b": (4,), "c": (2,)}
    assert leaf_counts(uniform(), shapes, 0.6) == {"a": 3, "b": 2, "c": 1}
    # ideal 11.43 and 28.57: forty in all
    assert leaf_counts(erk(), {"a": (4, 4), "b": (4, 16)}, 0.5) == {"a": 11, "b": 29}


def test_no_layer_is_left_without_a_weight():
    # ideal 0.02, 0.02 and 9.96 of 10
    shapes = {"a": (2,), "b": (2,), "c": (996,)}
    assert leaf_counts(uniform(), shapes, 0.01) == {"a": 1, "b": 1, "c": 8}
    assert leaf_counts(uniform(), shapes, 0.01, minimum=2) == {"a": 2, "b": 2, "c": 6}


def test_counts_that_pruning_starts_from_bound_the_new_ones():
    # Alone, density 3/5 would round "a" up from 2 to 3: see the test before the last.
    shapes = {"a": (4,), "b": (4,), "c": (2,)}
    counts = leaf_counts(uniform(), shapes, 0.6, at_most={"a": 2, "b": 4, "c": 2})
    assert counts == {"a": 2, "b": 3, "c": 1}


def test_counts_that_growth_starts_from_bound_the_new_ones():
    # The mirror: at density 3/5 "c" would be 1, see two tests above.
    shapes = {"a": (4,), "b": (4,), "c": (2,)}
    counts = leaf_counts(uniform(), shapes, 0.6, at_least={"a": 1, "b": 1, "c": 2})
    assert counts == {"a": 2, "b": 2, "c": 2}
    counts = leaf_counts(uniform(), shapes, 0.3, at_least={"a": 1, "b": 1, "c": 2})
    assert counts == {"a": 1, "b": 1, "c": 2}  # no fewer than there are, whatever the density


def test_without_a_floor_layers_may_be_empty_but_not_all():
    shapes = {"a": (2,), "b": (2,), "c": (996,)}
    assert leaf_counts(uniform(), shapes, 0.01, minimum=0) == {"a": 0, "b": 0, "c": 10}
    message = "density 1e-10 leaves 0 active weights for 3 layers, below 1; .* at most 0.999$"
    with pytest.raises(ValueError, match=message):
        leaf_counts(uniform(), shapes, 1e-10, minimum=0)
    assert leaf_counts(uniform(), {"a": (0, 3)}, 0.5, minimum=0) == {"a": 0}


@given(sizes=st.lists(st.integers(1, 10**7), min_size=1, max_size=8), minimum=st.integers(0, 3))
def test_the_sparsity_that_a_message_recommends_can_be_had(sizes, minimum):
    shapes = {f"layer{i}": (size,) for i, size in enumerate(sizes)}
    fewest = max(sum(min(minimum, size) for size in sizes), 1)
    if fewest / sum(sizes) < 1e-8:
        return
    recommended = 1 - float(highest_sparsity(fewest, sum(sizes)))
    counts = leaf_counts(uniform(), shapes, recommended, minimum=minimum)
    assert fewest <= sum(counts.values()) <= fewest + 1


def test_budget_below_one_weight_a_layer():
    # 32 weights at 0.05: 32 - floor(30.4) = 2 for three layers; one each is 29 of 32 = 0.90625
    shapes = {"a": (4, 4), "b": (2, 4), "c": (8,)}
    message = "density 0.05 leaves 2 active weights for 3 layers, .* at most 0.90625"
    with pytest.raises(ValueError, match=message):
        leaf_counts(erk(), shapes, 0.05)


@pytest.mark.parametrize("density", [-0.1, 1.1, math.nan])
def test_custom_distribution_out_of_range(density):
    with pytest.raises(ValueError, match=r"leaf a: density .* must be in \[0, 1\]"):
        leaf_counts(lambda shapes, _: {"a": density}, {"a": (4,)}, 0.5)


def test_custom_distribution_a_rounding_error_above_one():
    counts = leaf_counts(lambda shapes, _: {"a": 1.0 + 5e-10}, {"a": (100, 1000)}, 1.0)
    assert counts == {"a": 100_000}


def test_a_distribution_that_forgets_a_leaf():
    with pytest.raises(ValueError, match="the distribution gives leaf fc no density"):
        leaf_counts(lambda shapes, density: {"conv": 0.5}, {"conv": (4,), "fc": (4,)}, 0.5)
