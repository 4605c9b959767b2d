"""Events as integers: exact targets by leaf and together, exact shares, limits of int32."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxsparse.distributions import erk, uniform
from jaxsparse.event_rows import HOLD, event_rows, row_at, take_fraction
from jaxsparse.rounded_counts import leaf_counts, total_count
from jaxsparse.timetable import MAX_DENOMINATOR, Timetable, make_timetable
from jaxsparse.types import PlannedEvent, Row

FLOOR = jax.jit(lambda count, p, q: take_fraction(count, (p, q), "floor"))
CEIL = jax.jit(lambda count, p, q: take_fraction(count, (p, q), "ceil"))


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


def test_more_weights_than_int32_counts_together():
    huge = {"a": (2**15, 2**15), "b": (2**15, 2**15)}
    with pytest.raises(ValueError, match="2147483648 weights are too many to count together"):
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
