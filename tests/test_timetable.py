"""The integer timetable: events on the grid, exact targets, exact shares, segments."""

import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxsparse.distributions import erk, leaf_counts, total_count, uniform
from jaxsparse.schedules import constant, cosine, cubic_sparsity, until
from jaxsparse.timetable import (
    HOLD,
    MAX_DENOMINATOR,
    Timetable,
    event_rows,
    make_timetable,
    row_at,
    take_fraction,
)
from jaxsparse.types import PlannedEvent, Row

FLOOR = jax.jit(lambda count, p, q: take_fraction(count, (p, q), "floor"))
CEIL = jax.jit(lambda count, p, q: take_fraction(count, (p, q), "ceil"))


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
        ({"start_step": -1}, "start_step -1 must be at least 0"),
        ({"start_step": 1.5}, "start_step 1.5 must be at least 0, and a whole number"),
        ({"total_steps": np.uint32(2**31)}, r"total_steps 2147483648 must be below 2\*\*31"),
        ({"density": constant(0.0)}, r"density 0.0 at step 2 is not in \(0, 1\]"),
        ({"density": constant(math.nan)}, "density nan at step 2"),
        ({"density": constant(1.1)}, "density 1.1 at step 2"),
        ({"drop_fraction": constant(-0.1)}, r"drop_fraction -0.1 at step 2 is not in \[0, 1\]"),
        ({"drop_fraction": constant(1.5)}, "drop_fraction 1.5 at step 2"),
        ({"drop_fraction": constant(math.nan)}, "drop_fraction nan at step 2"),
    ],
)
def test_numbers_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        make_timetable(**{"total_steps": 10, "update_interval": 2} | options)


EVENTS = Timetable(
    100,
    (
        PlannedEvent(10, 0.5, Fraction(0)),
        PlannedEvent(20, None, Fraction(1, 3)),
        PlannedEvent(30, 0.25, Fraction(1, 4)),
    ),
)
SHAPES = {"a": (4, 4), "b": (4, 16)}


def test_rows_of_a_global_target():
    rows = event_rows(EVENTS, SHAPES, scope="global", distribution=erk(), min_keep=0)
    np.testing.assert_array_equal(rows.target, np.array([40, HOLD, 20], np.int32))
    np.testing.assert_array_equal(rows.drop, np.array([[0, 1, 1], [1, 3, 4]], np.int32))


def test_rows_of_layer_targets():
    rows = event_rows(EVENTS, SHAPES, scope="layer", distribution=erk(), min_keep=1)
    # ERK: 11.43 and 28.57 of 40, half of it for 20: 5.71 and 14.29
    np.testing.assert_array_equal(rows.target["a"], np.array([11, HOLD, 6], np.int32))
    np.testing.assert_array_equal(rows.target["b"], np.array([29, HOLD, 14], np.int32))


@pytest.mark.parametrize(
    ("step", "row"), [(1, 0), (10, 0), (19, 0), (20, 1), (29, 1), (30, 2), (2**31 - 1, 2)]
)
def test_row_at_a_traced_step(step, row):
    rows = event_rows(EVENTS, SHAPES, scope="global", distribution=erk(), min_keep=0)
    active = {"a": jnp.int32(11), "b": jnp.int32(31)}
    at = jax.jit(lambda t: row_at(EVENTS, rows, t, active)[:2])(step)
    at = Row(*at)
    assert at.target.dtype == jnp.int32
    assert int(at.target) == [40, 42, 20][row]  # held: as many as there are
    assert tuple(map(int, at.drop)) == [(0, 1), (1, 3), (1, 4)][row]


@given(sizes=st.lists(st.integers(1, 60), min_size=1, max_size=6), sparsity=st.floats(0.1, 0.8))
def test_layer_targets_fall_and_have_the_exact_total(sizes, sparsity):
    # Pruning adds no weight: a leaf that rounded up while the total fell would miss the total.
    shapes = {f"layer{i}": (size,) for i, size in enumerate(sizes)}
    table = make_timetable(
        total_steps=20, update_interval=1, density=lambda step: 1.0 - sparsity * step / 20
    )
    if total_count(sum(sizes), 1.0 - sparsity) < len(sizes):
        return
    rows = event_rows(table, shapes, scope="layer", distribution=uniform(), min_keep=1)
    targets = np.stack([rows.target[path] for path in shapes])
    assert (np.diff(targets, axis=1) <= 0).all()
    assert targets.sum(0).tolist() == [total_count(sum(sizes), e.density) for e in table.events]


@given(
    sizes=st.lists(st.integers(1, 60), min_size=1, max_size=6),
    swings=st.lists(st.floats(0.3, 1.0), min_size=1, max_size=30),
    min_keep=st.sampled_from([None, 0, 2]),
)
def test_layer_targets_rise_and_fall_together(sizes, swings, min_keep):
    shapes = {f"layer{i}": (size,) for i, size in enumerate(sizes)}
    swings = [*swings, 0.3, swings[0], 0.3]
    events = tuple(PlannedEvent(i + 1, d, Fraction(0)) for i, d in enumerate(swings))
    if total_count(sum(sizes), 0.3) < sum(min(size, 2) for size in sizes):
        return
    table = Timetable(100, events, 0.3)
    rows = event_rows(table, shapes, scope="layer", distribution=erk(), min_keep=min_keep)
    targets = np.stack([rows.target[path] for path in shapes])
    assert targets.sum(0).tolist() == [total_count(sum(sizes), d) for d in swings]
    for i in range(1, len(swings)):
        moves = np.diff(targets[:, i - 1 : i + 1])
        assert (moves >= 0).all() if swings[i] > swings[i - 1] else (moves <= 0).all()
    start = leaf_counts(erk(), shapes, 0.3, minimum=1 if min_keep is None else min_keep)
    for i in (-3, -1):  # back at the lowest density: what it was at the start
        assert dict(zip(shapes, targets[:, i].tolist(), strict=True)) == start


def test_floors():
    shapes = {"a": (4, 4), "b": (100, 100)}
    table = Timetable(100, (PlannedEvent(10, 3.5e-4, Fraction(0)),))
    rows = lambda scope, min_keep: event_rows(
        table, shapes, scope=scope, distribution=uniform(), min_keep=min_keep
    )
    # .0056 and 3.5 of 16 and 10,000 are 4 in all.
    for min_keep, a in [(None, 1), (0, 0), (1, 1), (2, 2)]:
        target = rows("layer", min_keep).target
        assert {path: int(counts[0]) for path, counts in target.items()} == {"a": a, "b": 4 - a}
    assert [rows("global", k).min_keep for k in (None, 0, 2)] == [0, 0, 2]
    with pytest.raises(ValueError, match="below 3 a layer; the sparsity can be at most 0.99940095"):
        rows("layer", 3)


@pytest.mark.parametrize(
    ("scope", "min_keep", "density", "message"),
    [
        ("global", 0, 1e-9, "the target of 0 active weights of 80 at step 10 is below 1"),
        (
            "global",
            3,
            0.05,
            "the target of 4 .* at step 10 is below 3 for each of 2 layers; the sparsity can be at "
            "most 0.925",
        ),
        ("layer", 0, 1e-9, "density 1e-09 leaves 0 active weights for 2 layers, below 1; "),
        ("layer", 1, 1e-9, "density 1e-09 leaves 0 active weights for 2 layers, below 1 a layer"),
    ],
)
def test_targets_too_low(scope, min_keep, density, message):
    table = Timetable(100, (PlannedEvent(10, density, Fraction(0)),))
    with pytest.raises(ValueError, match=message):
        event_rows(table, SHAPES, scope=scope, distribution=erk(), min_keep=min_keep)


@pytest.mark.parametrize("density", [0.0, 1.5, float("nan")])
def test_initial_density_out_of_range(density):
    with pytest.raises(ValueError, match=rf"initial_density {density} must be in \(0, 1\]"):
        make_timetable(total_steps=9, update_interval=3, initial_density=density)


def test_a_schedule_that_is_a_number():
    with pytest.raises(ValueError, match=r"drop_fraction 0.1 must be a function of the step"):
        make_timetable(total_steps=9, update_interval=3, drop_fraction=0.1)


def test_more_weights_than_int32_counts_together():
    huge = {"a": (2**15, 2**15), "b": (2**15, 2**15)}
    with pytest.raises(ValueError, match="2147483648 weights are too many for scope='global'"):
        event_rows(EVENTS, huge, scope="global", distribution=erk(), min_keep=0)
    rows = event_rows(EVENTS, huge, scope="layer", distribution=uniform(), min_keep=1)
    assert rows.target["a"].tolist() == [2**29, HOLD, 2**28]


@given(
    count=st.integers(0, 2**31 - 1) | st.integers(2**31 - 50_000, 2**31 - 1),
    p=st.integers(0, MAX_DENOMINATOR),
    q=st.integers(1, MAX_DENOMINATOR) | st.just(MAX_DENOMINATOR),
)
def test_take_fraction_is_exact(count, p, q):
    p = min(p, q)
    arguments = (np.int32(count), np.int32(p), np.int32(q))
    assert int(FLOOR(*arguments)) == count * p // q
    assert int(CEIL(*arguments)) == -(-count * p // q)


@pytest.mark.parametrize("q", [1, MAX_DENOMINATOR - 1, MAX_DENOMINATOR])
def test_take_fraction_at_the_ends(q):
    # The largest products: count = a q + (q - 1), p next to q.
    count, p = 2**31 // q * q - 1, max(q - 1, 0)
    assert int(FLOOR(np.int32(count), np.int32(p), np.int32(q))) == count * p // q
    assert int(CEIL(np.int32(count), np.int32(q), np.int32(q))) == count
    most = np.int32(2**31 - 1)
    for take in (FLOOR, CEIL):
        assert int(take(most, np.int32(q), np.int32(q))) == most
        assert int(take(most, np.int32(0), np.int32(q))) == 0
    assert FLOOR(most, np.int32(q), np.int32(q)).dtype == jnp.int32
