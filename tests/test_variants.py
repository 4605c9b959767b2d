"""Methods that start from given masks: the plan is what training does, with patterns and cycles."""

import itertools

import chex
import jax
import jax.numpy as jnp
import optax
import pytest

import jaxsparse
from tests.trees import fill, shape

PARAMS = fill({"a": {"kernel": shape(16, 8), "bias": shape(8)}, "b": {"kernel": shape(8, 24)}}, 0)
BLOCK = jaxsparse.block((4, 4))  # 8 + 12 blocks of 16 weights
RUN = {"total_steps": 24, "update_interval": 4}
GRANET_ST = jaxsparse.granet_st(sparsity=0.8, stop_step=12, **RUN)
CYCLES = {"num_cycles": 1, "cycle_steps": 9, "cycle_interval": 3}


def magnitude_masks(sparsity, **options):
    return jaxsparse.magnitude_masks(PARAMS, sparsity, **options)


def train(method, params=PARAMS, tx=None):
    """The masks at the start and after every event, in order."""
    optimizer = jaxsparse.sparse_optimizer(method, optax.sgd(0.1) if tx is None else tx)
    params, state = optimizer.init(params, key=jax.random.key(1))
    found = [state.masks]
    step = jax.jit(optimizer.update, static_argnames="event")
    for n in range(1, method.timetable.total_steps + 1):
        params, state = step(fill(PARAMS, n), state, params, event=method.is_due(n))
        if method.is_due(n):
            found.append(state.masks)
    optimizer.check(params, state)
    return found


def by_layer(masks):
    return {f"{name}/kernel": int(masks[name]["kernel"].sum()) for name in ("a", "b")}


def assert_executed_as_planned(method, *, exact_layers):
    rows = method.plan(PARAMS).rows
    for row, masks in zip(rows, train(method), strict=True):
        found = by_layer(masks)
        assert sum(found.values()) == row.num_active
        assert not exact_layers or found == row.layers
    return rows


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_granet_st_starts_from_the_largest_weights_in_blocks(scope):
    masks = magnitude_masks(0.5, pattern=BLOCK)
    granet = jaxsparse.granet_st(sparsity=0.8, stop_step=12, scope=scope, **RUN)
    method = jaxsparse.with_pattern(jaxsparse.starting_from(granet, masks), BLOCK)
    rows = assert_executed_as_planned(method, exact_layers=scope == "layer")
    found = train(method)
    chex.assert_trees_all_equal(found[0], masks)
    for masks in found:
        jaxsparse.check_pattern(masks, BLOCK)
    # Half of 20 blocks, then a density of 0.2 + 0.3 (1 - i/3)^3 of them.
    assert [row.num_active // 16 for row in rows] == [10, 6, 5, 4, 4, 4]


@pytest.mark.parametrize("method", ["granet_st", "east"])
def test_cycles_that_start_from_given_masks(method):
    masks = magnitude_masks(0.6, scope="layer", distribution=jaxsparse.uniform())
    if method == "granet_st":
        made = jaxsparse.with_cycles(GRANET_ST, **CYCLES)
    else:
        made = jaxsparse.east(sparsity=0.8, **RUN, **CYCLES)
    made = jaxsparse.starting_from(made, masks)
    rows = assert_executed_as_planned(made, exact_layers=method == "east")
    assert rows[0].layers == by_layer(masks) == {"a/kernel": 51, "b/kernel": 77}
    end = next(row for row in rows if row.step == 9)
    # GraNet-ST's own density at step 8 is 0.2 + 0.3 / 27, of 320 weights; EAST's is 0.2.
    assert end.num_active == {"granet_st": 68, "east": 64}[method]


def test_an_exchange_keeps_the_counts_of_given_masks():
    masks = magnitude_masks(0.6, scope="layer", distribution=jaxsparse.uniform())
    method = jaxsparse.starting_from(jaxsparse.rigl(sparsity=0.9, **RUN), masks)
    rows = assert_executed_as_planned(method, exact_layers=True)
    assert all(row.layers == by_layer(masks) for row in rows)


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_pruning_adds_nothing_to_masks_below_its_target(scope):
    """With a: 8 of 128 and b: 192 of 192 at the start, a layer's target of 40 leaves "a" at 8."""
    masks = jaxsparse.dense_masks(PARAMS)
    masks["a"]["kernel"] = jnp.arange(128).reshape(16, 8) < 8
    method = jaxsparse.gmp(sparsity=0.5, scope=scope, stop_step=12, **RUN)
    method = jaxsparse.starting_from(method, masks)
    rows = assert_executed_as_planned(method, exact_layers=scope == "layer")
    assert rows[-1].num_active < 200
    if scope == "layer":
        assert all(row.layers["a/kernel"] == 8 for row in rows)
    else:
        assert rows[-1].num_active == 160
    fewer = jaxsparse.starting_from(method, magnitude_masks(0.75, scope="layer"))
    rows = assert_executed_as_planned(fewer, exact_layers=scope == "layer")
    assert {row.num_active for row in rows} == {80}


def test_the_order_of_composition_does_not_matter():
    masks = magnitude_masks(0.5, pattern=BLOCK)
    changes = (
        lambda method: jaxsparse.starting_from(method, masks),
        lambda method: jaxsparse.with_pattern(method, BLOCK),
    )
    one, other = (changes[i](changes[1 - i](GRANET_ST)) for i in range(2))
    assert one == other and hash(one) == hash(other)
    cyclic = lambda method: jaxsparse.with_cycles(method, **CYCLES)
    one, *others = (
        first(second(third(GRANET_ST)))._replace(name="")
        for first, second, third in itertools.permutations((*changes, cyclic))
    )
    assert all(other == one for other in others)
    assert one.update == cyclic(changes[1](GRANET_ST)).update  # compiled once for all masks


def test_static_with_given_masks_takes_a_pattern_and_cycles():
    masks = magnitude_masks(0.5, pattern=BLOCK)
    method = jaxsparse.static(masks=masks, total_steps=24)
    patterned = jaxsparse.with_pattern(method, BLOCK)
    assert [row.num_active for row in patterned.plan(PARAMS).rows] == [160]
    cyclic = jaxsparse.with_cycles(patterned, **CYCLES)
    rows = assert_executed_as_planned(cyclic, exact_layers=True)
    assert [row.num_active for row in rows] == [160, 320, 160]


def test_masks_without_the_pattern_are_refused(key):
    masks = magnitude_masks(0.5)
    method = jaxsparse.with_pattern(jaxsparse.starting_from(GRANET_ST, masks), BLOCK)
    optimizer = jaxsparse.sparse_optimizer(method, optax.sgd(0.1))
    for call in (
        lambda: method.init(key, PARAMS),
        lambda: method.plan(PARAMS),
        lambda: optimizer.init(PARAMS, key=key),
    ):
        with pytest.raises(ValueError, match="masks at a/kernel: .* 4x4 allows 0 or 16"):
            call()


def test_what_is_no_mask_of_the_params_is_refused(key):
    with pytest.raises(ValueError, match="masks at a/bias has dtype float32; it must be bool"):
        jaxsparse.starting_from(GRANET_ST, PARAMS)
    method = jaxsparse.starting_from(GRANET_ST, {"a": {"kernel": jnp.ones((8, 8), bool)}})
    with pytest.raises(ValueError, match="masks"):
        method.init(key, PARAMS)
    with pytest.raises(ValueError, match="method 'rigl' must be a method such as rigl"):
        jaxsparse.starting_from("rigl", PARAMS)
    by_hand = GRANET_ST._replace(recipe=None)
    with pytest.raises(ValueError, match="method granet_st must be one that compose made"):
        jaxsparse.starting_from(by_hand, jaxsparse.dense_masks(PARAMS))


def test_a_frozen_leaf_is_left_as_it_is():
    labels = {"a": "frozen", "b": "trained"}
    tx = optax.partition({"frozen": optax.set_to_zero(), "trained": optax.sgd(0.1)}, labels)
    method = jaxsparse.starting_from(GRANET_ST, magnitude_masks(0.5, scope="layer"))
    found = [by_layer(masks) for masks in train(method, tx=tx)]
    assert {layers["a/kernel"] for layers in found} == {128}
    # The density of the cubic, of the 192 weights of "b" alone.
    assert [layers["b/kernel"] for layers in found][-3:] == [39, 39, 39]
    given = jaxsparse.static(masks=magnitude_masks(0.5, scope="layer"), total_steps=4)
    (masks,) = train(given, tx=tx)
    assert by_layer(masks)["a/kernel"] < 128
