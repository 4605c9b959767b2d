"""The timetable: events on the grid and on given steps, segments, numbers out of range."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxsparse.schedules import constant, cosine, cubic_sparsity, until
from jaxsparse.timetable import make_timetable
from jaxsparse.types import PlannedEvent


def cubic_density(stop_step, update_interval, start_step=0):
    s = cubic_sparsity(
        initial_sparsity=0.0,
        sparsity=0.9,
        start_step=start_step,
        stop_step=stop_step,
        update_interval=update_interval,
    )
    return lambda step: 1.0 - s(step)


# 1 - s of Zhu and Gupta 2017, eq. 1, in GraNet's form: s_f = .9, up to step 4000.
@pytest.mark.parametrize(
    ("start", "expected"),
    [
        (0, {1000: 0.4796875, 2000: 0.2125, 3000: 0.1140625, 4000: 0.1}),  # none at step 0
        (1500, {2000: 0.3666667, 3000: 0.1333333, 4000: 0.1}),  # i = 1, 2, 3 of T = 3
        (2000, {3000: 0.2125, 4000: 0.1}),  # at t0 itself the density is still 1: nothing to do
    ],
)
def test_gradual_events(start, expected):
    table = make_timetable(
        total_steps=10_000,
        update_interval=1000,
        start_step=start,
        density=cubic_density(4000, 1000, start),
    )
    assert {e.step: e.density for e in table.events} == pytest.approx(expected, abs=1e-6)
    assert all(e.drop_fraction == 0 for e in table.events)


# RigL's cosine with T_end 75, and an event each 25 steps: at 75 and after it there is none.
def test_rigl_events():
    table = make_timetable(
        total_steps=100, update_interval=25, drop_fraction=until(cosine(0.3, 0.0, 75), 75)
    )
    assert table.events == (
        PlannedEvent(25, None, Fraction(9, 40)),  # 0.225, exactly
        PlannedEvent(50, None, Fraction(3, 40)),  # 0.075
    )


def test_nothing_is_dropped_at_the_last_step():
    options = {"total_steps": 4, "update_interval": 2, "drop_fraction": constant(0.5)}
    assert [e.step for e in make_timetable(**options).events] == [2]
    pruned = make_timetable(**options, density=cubic_density(4, 2))
    half = Fraction(1, 2)
    assert [(e.step, e.drop_fraction) for e in pruned.events] == [(2, half), (4, 0)]


def test_events_on_given_steps_too():
    table = make_timetable(
        total_steps=10,
        update_interval=4,
        also_at=(9, 3, 4, 11, 0),
        start_step=3,
        drop_fraction=constant(0.5),
    )
    assert [e.step for e in table.events] == [3, 4, 8, 9]
    assert [table.is_due(step) for step in (0, 9, 10, 11)] == [False, True, False, False]


@given(
    total=st.integers(1, 300),
    interval=st.integers(1, 40),
    start=st.integers(0, 310),
    share=st.sampled_from([0.0, 0.3]),
)
def test_events_are_where_they_may_be(total, interval, start, share):
    table = make_timetable(
        total_steps=total,
        update_interval=interval,
        start_step=start,
        density=lambda step: 0.5 ** (1 + step / 300),
        drop_fraction=constant(share),
    )
    expected = [s for s in range(1, total + 1) if s % interval == 0 and s >= start]
    assert [e.step for e in table.events] == expected
    assert [s for s in range(-1, total + 2) if table.is_due(s)] == expected
    assert all(
        e.drop_fraction == Fraction(share if e.step < total else 0.0).limit_denominator(10)
        for e in table.events
    )
    # Segments cover every step once, and end exactly where an event is due.
    segments = list(table.segments())
    assert [s for a in segments for s in range(a.start + 1, a.stop + 1)] == list(
        range(1, total + 1)
    )
    assert [a.stop for a in segments if a.event] == expected
    later = list(table.segments(start=total // 2))
    assert [s for a in later for s in range(a.start + 1, a.stop + 1)] == [
        *range(total // 2 + 1, total + 1)
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"total_steps": 0}, "total_steps 0 must be a whole number of steps, at least 1"),
        ({"total_steps": 10.0}, "total_steps 10.0 must be a whole number"),
        ({"total_steps": 2**31}, r"total_steps 2147483648 must be below 2\*\*31"),
        ({"update_interval": 0}, "update_interval 0 must be a whole number of steps"),
        ({"update_interval": True}, "update_interval True must be a whole number of steps"),
        ({"start_step": -1}, "start_step -1 must be a whole number of steps, at least 0"),
        ({"start_step": 1.5}, "start_step 1.5 must be a whole number of steps, at least 0"),
        ({"total_steps": np.uint32(2**31)}, r"total_steps 2147483648 must be below 2\*\*31"),
        ({"density": constant(0.0)}, r"density 0.0 at step 2 must be in \(0, 1\]"),
        ({"density": constant(math.nan)}, "density nan at step 2"),
        ({"density": constant(1.1)}, "density 1.1 at step 2"),
        ({"drop_fraction": constant(-0.1)}, r"drop_fraction -0.1 at step 2 must be in \[0, 1\]"),
        ({"drop_fraction": constant(1.5)}, "drop_fraction 1.5 at step 2"),
        ({"drop_fraction": constant(math.nan)}, "drop_fraction nan at step 2"),
    ],
)
def test_numbers_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        make_timetable(**{"total_steps": 10, "update_interval": 2} | options)


@pytest.mark.parametrize("density", [0.0, 1.5, float("nan")])
def test_initial_density_out_of_range(density):
    with pytest.raises(ValueError, match=rf"initial_density {density} must be in \(0, 1\]"):
        make_timetable(total_steps=9, update_interval=3, initial_density=density)


def test_a_schedule_that_is_a_number():
    with pytest.raises(ValueError, match=r"drop_fraction 0.1 must be a function of the step"):
        make_timetable(total_steps=9, update_interval=3, drop_fraction=0.1)
