"""Cycles of density on any method: when, how many, which weights, and what is refused."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import jaxsparse
from jaxsparse.distributions import total_count
from jaxsparse.scores import random
from jaxsparse.types import Event

SHAPES = {
    "a": {"kernel": jax.ShapeDtypeStruct((20, 30), jnp.float32)},
    "b": {"kernel": jax.ShapeDtypeStruct((30, 10), jnp.float32)},
    "c": {"kernel": jax.ShapeDtypeStruct((5, 5), jnp.float32)},
}
SIZE = 925
TX = jaxsparse.masked(optax.sgd(0.1, momentum=0.9))


def rows_by_step(method):
    return {row.step: row for row in method.plan(SHAPES).rows}


# EAST: with 250 epochs of 352 steps the official code keeps what its last update in a cycle
# left: 1.585, 1.09, 1.03 and 1.003 times the budget.
@pytest.mark.parametrize(
    ("interval", "last", "left"),
    [
        (1000, 35_000, 1.003),
        (1500, 34_500, 1.031),
        (2000, 34_000, 1.090),
        (4000, 32_000, 1.585),
        (3999, 31_992, 1.587),
        (97, 35_114, 1.0005),
    ],
)
def test_a_cycle_ends_exactly_at_the_target_whatever_the_interval(interval, last, left):
    method = jaxsparse.east(sparsity=0.9, total_steps=88_000, cycle_interval=interval)
    steps = {event.step: event.density for event in method.timetable.events}
    first = [step for step in steps if step <= 35_200]
    assert set(first) == {*range(interval, 35_200, interval), 17_600, 35_200}
    assert first[-2] == last
    assert steps[last] == pytest.approx(0.1 * left, abs=1e-4)
    rows = rows_by_step(method)
    for step in (0, 17_600, 35_200):
        assert rows[step].num_active == 93  # 925 - floor(.9 * 925)
        assert rows[step].layers == rows[0].layers
    assert {row.num_active for step, row in rows.items() if step > 35_200} == {93}
    assert {row.drop_fraction for step, row in rows.items() if step <= 35_200} == {0.0}


@given(
    interval=st.integers(1, 12),
    num=st.integers(1, 3),
    steps=st.integers(24, 33),
    growth=st.sampled_from([1.0, 1.5, 2.0]),
    multiplier=st.floats(1.01, 20.0),
    shape=st.sampled_from(["cosine", "triangular"]),
    sparsity=st.sampled_from([0.5, 0.9, 0.99]),
)
def test_never_below_the_target_nor_above_the_multiple(
    interval, num, steps, growth, multiplier, shape, sparsity
):
    method = jaxsparse.with_cycles(
        jaxsparse.rigl_itop(sparsity=sparsity, total_steps=400, update_interval=50),
        num_cycles=num,
        cycle_steps=steps,
        growth=growth,
        multiplier=multiplier,
        shape=shape,
        cycle_interval=interval,
    )
    rows = method.plan(SHAPES).rows
    target, stop = rows[0].num_active, method.cycles_end
    most = min(multiplier * (1 - sparsity), 1.0)
    for row in rows:
        assert target <= row.num_active <= total_count(SIZE, most)
        if row.step >= stop:
            assert row.layers == rows[0].layers
    assert max(row.num_active for row in rows) > target or multiplier < 1.2


def draw(seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), SHAPES)


def run_event(method, step, masks, seed) -> tuple[dict, dict, dict, Event, tuple]:
    """An event on drawn weights, momentum and gradients, within masks: all before and after."""
    params, grads = jaxsparse.apply_masks(draw(seed), masks), draw(seed + 1)
    trace = jaxsparse.apply_masks(draw(seed + 2), masks)
    slots = optax.tree.set(TX.init(params), trace=trace)
    event = method.update(params, grads, masks, step, key=jax.random.key(seed))
    after, slots = jaxsparse.apply_event(TX, event, params, slots)
    return params, grads, trace, event, (after, optax.tree.get(slots, "trace"))


def leaves(tree):
    return [np.asarray(x) for x in jax.tree.leaves(tree)]


EAST = jaxsparse.east(
    sparsity=0.9, total_steps=100, update_interval=10, cycle_steps=20, cycle_interval=5
)


def test_a_rising_density_grows_the_largest_gradients_from_zero(key):
    masks = EAST.init(key, draw(0))
    params, grads, trace, event, after = run_event(EAST, 10, masks, seed=1)
    assert jaxsparse.num_active(event.masks) == 278  # 925 - floor(.7 * 925)
    for old, new, g in zip(leaves(masks), leaves(event.masks), leaves(grads), strict=True):
        assert (old <= new).all()
        num_grown = new.sum() - old.sum()
        best = np.argsort(-np.where(old, -np.inf, np.abs(g)), axis=None)[:num_grown]
        np.testing.assert_array_equal(np.sort(np.flatnonzero(new & ~old)), np.sort(best))
    chex.assert_trees_all_equal(event.kept, masks)
    chex.assert_trees_all_equal(after, (params, trace))  # what is new is 0, and so are its slots
    rows = rows_by_step(EAST)
    assert [int(mask.sum()) for mask in leaves(event.masks)] == list(rows[10].layers.values())


def test_a_falling_density_keeps_the_largest_weights_as_they_are(key):
    masks = EAST.update(draw(0), draw(0), EAST.init(key, draw(0)), 10).masks
    params, _, trace, event, after = run_event(EAST, 15, masks, seed=1)
    assert jaxsparse.num_active(event.masks) == 185  # 925 - floor(.8 * 925)
    for old, new, w in zip(leaves(masks), leaves(event.masks), leaves(params), strict=True):
        assert (new <= old).all()
        best = np.argsort(-np.where(old, np.abs(w), -1.0), axis=None)[: new.sum()]
        np.testing.assert_array_equal(np.sort(np.flatnonzero(new)), np.sort(best))
    chex.assert_trees_all_equal(event.kept, event.masks)
    survivors = [jaxsparse.apply_masks(tree, event.masks) for tree in (params, trace)]
    chex.assert_trees_all_equal(after, tuple(survivors))


def test_what_grew_last_goes_before_what_has_trained(key):
    masks = EAST.init(key, draw(0))
    grown = EAST.update(jaxsparse.apply_masks(draw(0), masks), draw(1), masks, 10).masks
    again = EAST.update(jaxsparse.apply_masks(draw(0), masks), draw(1), grown, 20).masks
    chex.assert_trees_all_equal(again, masks)  # the new ones are all 0 still


def test_after_the_last_cycle_events_are_the_methods_own(key):
    itop = jaxsparse.rigl_itop(sparsity=0.9, total_steps=100, update_interval=10)
    masks, params, grads = EAST.init(key, draw(0)), draw(0), draw(1)
    chex.assert_trees_all_equal(masks, itop.init(key, params))
    params = jaxsparse.apply_masks(params, masks)
    # At 40 the second cycle ends, and up to 49 the last event is that one's: nothing to do.
    for step in (40, 49):
        chex.assert_trees_all_equal(EAST.update(params, grads, masks, step).masks, masks)
    for step in (50, 51, 90, 100):
        event = EAST.update(params, grads, masks, step)
        chex.assert_trees_all_equal(event, itop.update(params, grads, masks, step))
        assert event.metrics.num_grown.any()


# In every leaf ceil(r n) go and as many come. Here r is .25 at most: one of 2, one of 1.
def test_exchanges_keep_the_count_of_every_leaf_down_to_one_weight(key):
    method = jaxsparse.east(
        sparsity=1 - 5 / SIZE, total_steps=100, update_interval=10, cycle_steps=20, cycle_interval=5
    )
    masks, moved = method.init(key, draw(0)), np.zeros(3, int)
    assert [int(mask.sum()) for mask in leaves(masks)] == [2, 2, 1]
    for step in (50, 60, 70, 80, 90):
        params = jaxsparse.apply_masks(draw(step), masks)
        event = method.update(params, draw(step + 1), masks, step)
        assert event.metrics.num_active.tolist() == [2, 2, 1]
        moved += np.asarray(event.metrics.num_grown)
        assert (event.metrics.num_grown <= 1).all()
        masks = event.masks
    assert (moved >= 3).all()  # by chance one that is dropped is the best candidate


@pytest.mark.parametrize("options", [{"multiplier": 1.0}, {"num_cycles": 0}, {"multiplier": 1}])
def test_cycles_that_go_nowhere_leave_the_method_as_it_is(options):
    for make in (jaxsparse.rigl, jaxsparse.gmp):
        method = make(sparsity=0.9, total_steps=4000)
        assert jaxsparse.with_cycles(method, **options) is method
    given_masks = jaxsparse.static(masks={"kernel": jnp.ones((2, 2), bool)}, total_steps=1000)
    assert jaxsparse.with_cycles(given_masks, **options) is given_masks


RUN = {"sparsity": 0.9, "total_steps": 100}
CYCLES = {"num_cycles": 2, "cycle_steps": 20, "cycle_interval": 5}


@pytest.mark.parametrize(
    ("make", "own"),
    [
        (lambda: jaxsparse.static(**RUN), []),
        (lambda: jaxsparse.set_(**RUN, update_interval=25), [50]),
        (lambda: jaxsparse.snfs(**RUN, update_interval=25), [50]),
        (lambda: jaxsparse.set_itop(**RUN, update_interval=25), [50, 75]),
        (lambda: jaxsparse.gmp(**RUN, update_interval=15, stop_step=60), [45, 60]),
        (
            lambda: jaxsparse.gmp(**RUN, update_interval=15, stop_step=60, scope="layer"),
            [45, 60],
        ),
        (lambda: jaxsparse.granet_st(**RUN, update_interval=25), [50, 75]),
        (lambda: jaxsparse.granet(**RUN, update_interval=25, scope="layer"), [50, 75]),
    ],
    ids=["static", "set", "snfs", "set_itop", "gmp", "gmp layer", "granet_st", "granet layer"],
)
def test_every_method_takes_cycles(make, own):
    method = make()
    cycled = jaxsparse.with_cycles(method, **CYCLES)
    assert cycled.name == f"{method.name} cycles"
    after = [event for event in cycled.timetable.events if event.step > 40]
    assert after == [event for event in method.timetable.events if event.step > 40]
    assert [event.step for event in after] == own
    assert cycled.dense_gradient == {"never": "events"}.get(
        method.dense_gradient, method.dense_gradient
    )
    # At the end of a cycle as many as the method has there, and nowhere in it fewer.
    before, rows = rows_by_step(method), rows_by_step(cycled)
    now = lambda rows, step: next(rows[s] for s in sorted(rows, reverse=True) if s <= step)
    for step in range(101):
        ours, theirs = now(rows, step).num_active, now(before, step).num_active
        assert ours == theirs if step in (0, 20, *range(40, 101)) else ours >= min(theirs, 278)
    assert now(rows, 30).num_active > now(rows, 40).num_active


def test_a_gradual_method_is_multiplied_as_it_goes():
    method = jaxsparse.with_cycles(
        jaxsparse.gmp(**RUN, update_interval=10, stop_step=20), cycle_steps=20, cycle_interval=5
    )
    # Own: 1, from 10 on 1 - .9 (1 - 1/8) = .2125, from 20 on .1; times 2, 3, 2, 1 and so again.
    steps = {event.step: event.density for event in method.timetable.events}
    assert steps == pytest.approx(
        {10: 0.6375, 15: 0.425, 20: 0.1, 25: 0.2, 30: 0.3, 35: 0.2, 40: 0.1}
    )


def test_random_growth_in_cycles_needs_no_gradient_and_a_key(key):
    method = jaxsparse.with_cycles(jaxsparse.static(**RUN), **CYCLES, grow=random)
    assert method.dense_gradient == "never"
    masks = method.init(key, draw(0))
    events = [method.update(draw(0), draw(n), masks, 10, key=jax.random.key(n)) for n in (1, 1, 2)]
    chex.assert_trees_all_equal(events[0].masks, events[1].masks)
    assert (leaves(events[0].masks)[0] != leaves(events[2].masks)[0]).any()
    with pytest.raises(ValueError, match="needs a key"):
        method.update(draw(0), draw(1), masks, 10)


def test_set_grows_by_gradient_in_cycles_and_at_random_after_them(key):
    method = jaxsparse.with_cycles(jaxsparse.set_(**RUN, update_interval=10), **CYCLES)
    masks = method.init(key, draw(0))
    event = lambda step, seed: (
        method.update(draw(0), draw(1), masks, step, key=jax.random.key(seed)).masks
    )
    chex.assert_trees_all_equal(event(10, 0), event(10, 1))
    assert (leaves(event(50, 0))[0] != leaves(event(50, 1))[0]).any()


def test_cycles_up_to_the_last_step_end_with_pruning_alone(key):
    method = jaxsparse.with_cycles(
        jaxsparse.rigl(**RUN, update_interval=10), cycle_steps=50, cycle_interval=30
    )
    # 60 and 90 are as far from the ends of their cycle: at 90 nothing changes.
    assert [e.step for e in method.timetable.events] == [30, 50, 60, 100]
    masks = jaxsparse.dense_masks(SHAPES)
    event = method.update(draw(0), draw(1), masks, 100)
    assert event.metrics.num_active.sum() == 93
    assert not event.metrics.num_grown.any() and not event.metrics.num_restarted.any()


def test_layers_may_be_empty_at_both_ends_of_a_cycle(key):
    sparse = {"sparsity": 1 - 2 / SIZE, "total_steps": 100, "update_interval": 10}
    with pytest.raises(ValueError, match="2 active weights for 3 layers, below 1 a layer; .* 0.99"):
        jaxsparse.east(**sparse, **CYCLES).plan(SHAPES)
    method = jaxsparse.east(**sparse, **CYCLES, min_keep=0)
    masks = method.init(key, draw(0))
    assert [int(mask.sum()) for mask in leaves(masks)] == [1, 1, 0]
    # Of 6, 4 and 2 weights the shares are .5, .4 and .1.
    for step, counts in [(10, [3, 2, 1]), (15, [2, 2, 0]), (20, [1, 1, 0]), (50, [1, 1, 0])]:
        event = method.update(jaxsparse.apply_masks(draw(0), masks), draw(1), masks, step)
        masks = event.masks
        assert event.metrics.num_active.tolist() == counts
        assert int(event.metrics.num_empty) == counts.count(0)


def test_patterns_and_cycles_in_either_order(key):
    rigl = jaxsparse.rigl(sparsity=0.8, total_steps=100, update_interval=10)
    blocks = [("b", jaxsparse.block((3, 2))), ("c", None), ("a", jaxsparse.block((4, 5)))]
    one = jaxsparse.with_pattern(jaxsparse.with_cycles(rigl, **CYCLES), blocks)
    other = jaxsparse.with_cycles(jaxsparse.with_pattern(rigl, blocks), **CYCLES)
    assert (one.name, other.name) == ("rigl cycles 3x2+4x5", "rigl 3x2+4x5 cycles")
    assert one.plan(SHAPES).rows == other.plan(SHAPES).rows
    masks = one.init(key, draw(0))
    grown = one.update(draw(0), draw(1), masks, 10).masks
    jaxsparse.check_pattern(grown, blocks)
    assert jaxsparse.num_active(grown) > 2 * jaxsparse.num_active(masks)
    chex.assert_trees_all_equal(grown, other.update(draw(0), draw(1), masks, 10).masks)


def test_n_of_m_takes_no_cycles():
    rigl = jaxsparse.rigl(sparsity=0.5, total_steps=100, update_interval=10)
    rules = [("a", jaxsparse.n_of_m(2, 4)), ("", None)]
    method = jaxsparse.with_cycles(jaxsparse.with_pattern(rigl, rules), **CYCLES)
    with pytest.raises(
        ValueError, match="a/kernel is 2:4, which fixes .* such as rigl without cyc"
    ):
        method.plan(SHAPES)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"cycle_steps": 60},
            "2 cycles, of which the first has 60 steps, end at step 120, after t",
        ),
        ({"cycle_steps": 40, "growth": 2.0}, "end at step 120, after total_steps 100"),
        ({"cycle_interval": 25}, "25 has no multiple between the steps 0 and 20, .* at most 10"),
        ({"cycle_interval": 20}, "cycle_interval 20 has no multiple between"),
        ({"cycle_interval": 0}, "cycle_interval 0 must be a whole number of steps, at least 1"),
        ({"multiplier": 0.5}, "multiplier 0.5 must be a finite number of at least 1"),
        ({"num_cycles": -1}, "num_cycles -1 must be a whole number, at least 0"),
        ({"shape": "square"}, "shape 'square' must be 'cosine' or 'triangular'"),
        ({"growth": -1.0}, "growth -1.0 must be a finite number above 0"),
    ],
)
def test_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        jaxsparse.with_cycles(jaxsparse.static(**RUN), **CYCLES | options)


def test_methods_that_take_no_cycles():
    with pytest.raises(ValueError, match="method 'rigl' must be a method such as"):
        jaxsparse.with_cycles("rigl")
    with pytest.raises(ValueError, match="method static must be one that compose made"):
        jaxsparse.with_cycles(jaxsparse.static(**RUN)._replace(recipe=None), **CYCLES)
    with pytest.raises(ValueError, match="method east has cycles already"):
        jaxsparse.with_cycles(EAST, **CYCLES)
