"""Schedules against the numbers of the papers (Zhu and Gupta, RigL, GraNet, ITOP, EAST)."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxsparse.schedules import constant, cosine, cubic_sparsity, cycle_ends, cyclic, until


def cubic(**options):
    window = {"start_step": 0, "stop_step": 4, "update_interval": 1}
    return cubic_sparsity(**{"initial_sparsity": 0.0, "sparsity": 0.9} | window | options)


# Zhu and Gupta 2017, eq. 1, with T = 4 and s_f = 0.9.
@pytest.mark.parametrize(
    ("initial", "expected"),
    [
        (0.0, [0.0, 0.5203125, 0.7875, 0.8859375, 0.9]),
        (0.5, [0.5, 0.7312500, 0.8500, 0.8937500, 0.9]),
    ],
)
def test_cubic(initial, expected):
    s = cubic(initial_sparsity=initial)
    assert [s(i) for i in range(5)] == pytest.approx(expected, abs=1e-12)
    assert s(4) == s(5) == s(1000) == 0.9  # not only nearly: the counts of the end are exact


def test_cubic_is_monotone():
    s = cubic(initial_sparsity=0.3, start_step=50, stop_step=800, update_interval=7)
    values = [s(step) for step in range(1000)]
    assert all(a <= b for a, b in itertools.pairwise(values))
    assert values[0] == values[55] == pytest.approx(0.3)
    assert values[56] > 0.3


# GraNet's code puts the number i of the event for the step: floors on both sides; between events
# nothing changes.
@pytest.mark.parametrize(
    ("start", "steps"),
    [
        (0, {0: 0.0, 999: 0.0, 1000: 0.5203125, 1999: 0.5203125, 2000: 0.7875, 4000: 0.9}),
        # t0 1500: floor gives 1, so the event at 2000 has i = 1 of T = 3: .9 (1 - (2/3)^3)
        (1500, {1999: 0.0, 2000: 0.6333333, 3000: 0.8666667, 4000: 0.9}),
        (2000, {2000: 0.0, 3000: 0.7875, 4000: 0.9}),  # the event at t0 itself still has s_i
    ],
)
def test_cubic_counts_events(start, steps):
    s = cubic(start_step=start, stop_step=4000, update_interval=1000)
    assert {step: s(step) for step in steps} == pytest.approx(steps, abs=1e-6)


def test_cubic_without_its_last_event():
    s = cubic(legacy_end=True)
    assert [s(i) for i in (3, 4, 9)] == pytest.approx([0.8859375] * 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"update_interval": 5},
            "sparsity 0.9 is never reached: update_interval 5 leaves no event between start_step 0 "
            "and stop_step 4; take an interval of at most 4 steps",
        ),
        ({"update_interval": 3, "legacy_end": True}, "interval of at most 2 steps"),
        ({"start_step": 1000, "stop_step": 1999, "update_interval": 1000}, "at most 999 steps"),
    ],
)
def test_cubic_that_cannot_arrive(options, message):
    with pytest.raises(ValueError, match=message):
        cubic(**options)


def test_cubic_that_is_there_already_needs_no_event():
    s = cubic(initial_sparsity=0.9, update_interval=5)
    assert [s(step) for step in (0, 5, 100)] == [0.9, 0.9, 0.9]


# The cosine from a first to a last value of GraNet (Liu et al. 2021), and of RigL, where it is
# alpha / 2 (1 + cos(pi t / T_end)) (Evci et al. 2020, section 3).
@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (
            cosine(0.5, 0.005, 100),
            {0: 0.5, 25: 0.427509, 50: 0.2525, 75: 0.077491, 100: 0.005, 101: 0.005},
        ),
        (cosine(0.3, 0.0, 75), {0: 0.3, 25: 0.225, 37.5: 0.15, 50: 0.075, 75: 0.0, 80: 0.0}),
        (until(cosine(0.3, 0.0, 75), 50), {25: 0.225, 49: 0.080506, 50: 0.0}),
        (constant(0.3), {0: 0.3, 1000: 0.3}),
    ],
    ids=["GraNet", "RigL", "until", "constant"],
)
def test_drop_fractions(schedule, expected):
    assert {step: schedule(step) for step in expected} == pytest.approx(expected, abs=1e-6)


# EAST's cycles. Cosine: 1 + (1 - cos 2 pi p) at p = 0, 1/8, 1/4, 3/8, 1/2.
@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ("cosine", [1.0, 1.2928932, 2.0, 2.7071068, 3.0]),
        ("triangular", [1.0, 1.5, 2.0, 2.5, 3.0]),
    ],
)
def test_a_cycle(shape, expected):
    f = cyclic(num_cycles=2, cycle_steps=8, multiplier=3.0, shape=shape)
    up = [f(step) for step in range(5)]
    assert up == pytest.approx(expected, abs=1e-7)
    assert [up[0], up[4]] == [1.0, 3.0]  # not only nearly
    assert [f(step) for step in range(4, 9)] == up[::-1]
    assert [f(step) for step in range(8, 17)] == [f(step) for step in range(9)]
    assert [f(step) for step in (16, 17, 10**6)] == [1.0] * 3


@pytest.mark.parametrize(
    ("growth", "ends"), [(1.0, (50, 100, 150)), (2.0, (50, 150, 350)), (0.5, (50, 75, 87))]
)
def test_lengths_of_cycles(growth, ends):
    lengths = {"num_cycles": 3, "cycle_steps": 50, "growth": growth}
    assert cycle_ends(**lengths) == ends  # half of 25 is rounded to an even 12
    f = cyclic(**lengths)
    for start, stop in itertools.pairwise((0, *ends)):
        assert f(start) == f(stop) == 1.0
        assert f((start + stop) // 2) == pytest.approx(3.0, abs=0.04)
    assert [step for step in range(400) if f(step) == 1.0] == [0, *ends, *range(ends[-1] + 1, 400)]


@given(
    num=st.integers(0, 4),
    steps=st.integers(1, 50),
    growth=st.floats(0.1, 4.0),
    multiplier=st.floats(1.0, 100.0),
    shape=st.sampled_from(["cosine", "triangular"]),
)
def test_the_factor_is_between_1_and_the_multiplier(num, steps, growth, multiplier, shape):
    lengths = {"num_cycles": num, "cycle_steps": steps, "growth": growth}
    f = cyclic(**lengths, multiplier=multiplier, shape=shape)
    ends = cycle_ends(**lengths)
    assert len(ends) == num and list(ends) == sorted(set(ends))
    assert {f(step) for step in (-1, 0, *ends, 10**6)} == {1.0}
    values = [f(step) for step in range((ends or (0,))[-1] + 1)]
    assert 1.0 <= min(values) <= max(values) <= multiplier * (1 + 1e-15)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_cycles": -1}, "num_cycles -1 must be a whole number, at least 0"),
        ({"num_cycles": 1.5}, "num_cycles 1.5 must be a whole number"),
        ({"cycle_steps": 0}, "cycle_steps 0 must be a whole number, at least 1"),
        ({"growth": 0.0}, "growth 0.0 must be in \\(0, inf\\)"),
        ({"growth": float("inf")}, "growth inf must be in \\(0, inf\\)"),
        ({"multiplier": 0.9}, "multiplier 0.9 must be in \\[1, inf\\)"),
        ({"multiplier": float("nan")}, "multiplier nan must be in \\[1, inf\\)"),
        ({"shape": "sine"}, "shape 'sine' must be 'cosine' or 'triangular'"),
    ],
)
def test_cycles_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        cyclic(**{"num_cycles": 2, "cycle_steps": 10} | options)


def test_lengths_that_grow_beyond_all_numbers():
    assert cycle_ends(num_cycles=3, cycle_steps=10, growth=1e300)[1:] == (2**31 + 10, 2**32 + 10)
