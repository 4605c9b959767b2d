"""GMP and GraNet: whole events by hand, the course of the counts, wrong input."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsparse
from jaxsparse.distributions import total_count, uniform


def tree(a, b):
    """Two kernels, of 8 and 4 weights, and a bias that stays dense."""
    return {
        "a": {"kernel": jnp.reshape(jnp.array(a, jnp.float32), (2, 4)), "bias": jnp.full(4, 7.0)},
        "b": {"kernel": jnp.reshape(jnp.array(b, jnp.float32), (4, 1))},
    }


def mask_tree(a, b):
    leaves = tree([c == "1" for c in a], [c == "1" for c in b])
    return jax.tree.map(lambda x: x > 0, leaves)


# Liu et al. 2021, algorithm 1: GraNet-ST from 9 of 12 weights (s = .25) to 6 (s = .5) in one event
# at step 1, with r = .5 throughout.
#                   0    1    2    3    4    5    6    7          0    1    2    3
MASKS = mask_tree("111111" "00", "111" "0")  # fmt: skip
PARAMS = tree([0.9, -0.8, 0.7, -0.3, 0.6, -0.1, 0.0, 0.0], [0.5, -0.2, 0.4, 0.0])
TRACE = tree([1.0, -2.0, 3.0, 4.0, -5.0, 6.0, 0.0, 0.0], [-7.0, 8.0, 9.0, 0.0])
GRADS = tree([9.0, -9.0, 0.1, -0.8, 0.9, 0.2, 0.3, -0.7], [5.0, 0.5, 0.1, -0.6])
# Global prune: the three smallest of .9 .8 .7 .6 .5 .4 | .3 .2 .1 go: a3, a5, b1.
PRUNED = mask_tree("111010" "00", "101" "0")  # fmt: skip
# Exchange in a: ceil(.5 * 4) = 2 of .9 .8 .7 .6 go: a2, a4. Of what is inactive then,
#   |g| at 2 3 4 5 6 7 = .1 .8 .9 .2 .3 .7, the two largest come: a4, a3.
# Exchange in b: ceil(.5 * 2) = 1 of .5 .4 goes: b2. |g| at 1 2 3 = .5 .1 .6: b3 comes.
AFTER = mask_tree("110110" "00", "100" "1")  # fmt: skip
# The three classes of regrown weights:
#   b3, long inactive                     -> value 0, momentum 0
#   a3, pruned and regrown in this event  -> value 0, momentum 0
#   a4, dropped and regrown in one stage  -> keeps value and momentum
KEPT = mask_tree("110010" "00", "100" "0")  # fmt: skip
PARAMS_AFTER = tree([0.9, -0.8, 0.0, 0.0, 0.6, 0.0, 0.0, 0.0], [0.5, 0.0, 0.0, 0.0])
TRACE_AFTER = tree([1.0, -2.0, 0.0, 0.0, -5.0, 0.0, 0.0, 0.0], [-7.0, 0.0, 0.0, 0.0])

GRANET_ST = jaxsparse.granet_st(
    sparsity=0.5, initial_sparsity=0.25, total_steps=10, update_interval=1, stop_step=1,
    drop_fraction=0.5, final_drop_fraction=0.5,
)  # fmt: skip


@pytest.mark.parametrize("jit", [False, True])
def test_granet_event(jit):
    event = (jax.jit if jit else lambda f: f)(GRANET_ST.update)(PARAMS, GRADS, MASKS, 1)
    chex.assert_trees_all_equal(event.masks, AFTER)
    chex.assert_trees_all_equal(event.kept, KEPT)
    assert event.metrics.num_active.tolist() == [4, 2]
    assert event.metrics.num_dropped.tolist() == [2, 2]  # a2 a5; b1 b2
    assert event.metrics.num_grown.tolist() == [0, 1]  # b3
    assert event.metrics.num_restarted.tolist() == [1, 1]  # a3; b3

    tx = jaxsparse.masked(optax.sgd(0.0, momentum=0.9))
    _, opt_state = tx.update(TRACE, tx.init(PARAMS), PARAMS, masks=MASKS)  # trace <- .9 * 0 + TRACE
    chex.assert_trees_all_equal(optax.tree.get(opt_state, "trace"), TRACE)
    params, opt_state = jaxsparse.apply_event(tx, event, PARAMS, opt_state)
    chex.assert_trees_all_equal(params, PARAMS_AFTER)
    chex.assert_trees_all_equal(optax.tree.get(opt_state, "trace"), TRACE_AFTER)


def test_gmp_event_is_the_first_half_of_it():
    gmp = jaxsparse.gmp(
        sparsity=0.5, initial_sparsity=0.25, total_steps=10, update_interval=1, stop_step=1
    )
    event = gmp.update(PARAMS, GRADS, MASKS, 1)
    chex.assert_trees_all_equal(event.masks, PRUNED)
    chex.assert_trees_all_equal(event.kept, PRUNED)


def test_granet_on_dense_layers_is_a_no_op():
    # At step 2 nothing is pruned any more, and there is nothing to exchange with.
    dense = jaxsparse.dense_masks(PARAMS)
    event = GRANET_ST.update(PARAMS, GRADS, dense, 2)
    chex.assert_trees_all_equal(event.masks, dense)
    chex.assert_trees_all_equal(event.kept, dense)


def test_gmp_prunes_over_all_layers_together():
    params = {
        "A": {"kernel": jnp.array([[0.9, -0.1, 0.3, 0.0]])},
        "B": {"kernel": jnp.array([[-0.5, 0.2, 0.05, -0.02]])},
    }
    gmp = jaxsparse.gmp(sparsity=0.5, total_steps=4, update_interval=1, stop_step=1)
    masks = gmp.update(params, params, jaxsparse.dense_masks(params), 1).masks
    np.testing.assert_array_equal(masks["A"]["kernel"], np.array([[1, 0, 1, 0]], bool))
    np.testing.assert_array_equal(masks["B"]["kernel"], np.array([[1, 1, 0, 0]], bool))


def test_gmp_has_the_exact_count_with_equal_weights():
    params = {"kernel": jnp.full((100, 100), 0.1)}
    gmp = jaxsparse.gmp(sparsity=0.9, total_steps=4, update_interval=1, stop_step=1)
    masks = gmp.update(params, params, jaxsparse.dense_masks(params), 1).masks
    assert jaxsparse.num_active(masks) == 1000  # int(10_000 * (1 - .9)) would be 999


def normal_pairs(params, key):
    return jax.tree.map(lambda x: jax.random.normal(key, (2, *x.shape)), params)


def run(method, num_steps, key):
    """The mask trees after every step, with new random weights and gradients at each."""
    params = {"a": {"kernel": jnp.ones((20, 30))}, "b": {"kernel": jnp.ones((30, 10))}}
    history = [method.init(key, params)]
    update = jax.jit(method.update)
    for n in range(1, num_steps + 1):
        drawn = normal_pairs(params, jax.random.fold_in(key, n))
        params = jaxsparse.apply_masks(jax.tree.map(lambda x: x[0], drawn), history[-1])
        grads = jax.tree.map(lambda x: x[1], drawn)
        due = method.is_due(n)
        history.append(update(params, grads, history[-1], n).masks if due else history[-1])
    return history


# To tf = 8 the counts follow the cubic (T = 4), then layers keep theirs, and regeneration
# goes on until the step before the last.
@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize(
    ("initial", "sparsities"),
    [
        (0.0, [0.0, 0.5203125, 0.7875, 0.8859375, 0.9]),
        (0.5, [0.5, 0.7312500, 0.8500, 0.8937500, 0.9]),
    ],
)
def test_granet_counts(initial, sparsities, scope, key):
    method = jaxsparse.granet(
        sparsity=0.9, initial_sparsity=initial, total_steps=14, update_interval=2, stop_step=8,
        scope=scope,
    )  # fmt: skip
    assert method.name == ("granet" if initial == 0 else "granet_st")
    history = run(method, 14, key)
    totals = [jaxsparse.num_active(masks) for masks in history[::2]]
    assert totals == [total_count(900, 1 - s) for s in sparsities] + [90] * 3

    layers = [jax.tree.map(lambda mask: int(mask.sum()), masks) for masks in history]
    assert all(counts == layers[8] for counts in layers[8:])
    changed = [
        n
        for n in range(9, 15)
        if (history[n]["a"]["kernel"] != history[n - 1]["a"]["kernel"]).any()
    ]
    assert changed == [10, 12]  # not 14: what is grown at the end could not train


def test_legacy_end_leaves_out_the_last_event(key):
    options = {"sparsity": 0.9, "total_steps": 8, "update_interval": 1, "stop_step": 4}
    method = jaxsparse.gmp(**options, legacy_end=True)
    assert [event.step for event in method.timetable.events] == [1, 2, 3]
    masks = run(method, 8, key)[-1]
    assert jaxsparse.num_active(masks) == 900 - 797  # .8859375 * 900 = 797.3


def test_layer_scope_follows_the_distribution(key):
    method = jaxsparse.gmp(
        sparsity=0.9, total_steps=8, update_interval=1, scope="layer", distribution=uniform()
    )
    masks = run(method, 8, key)[-1]
    assert jax.tree.map(lambda mask: int(mask.sum()), masks) == {
        "a": {"kernel": 60},
        "b": {"kernel": 30},
    }


def test_min_keep_holds_where_a_global_threshold_would_empty_a_layer():
    params = {
        "large": {"kernel": jnp.full((10, 10), 9.0)},
        "small": {"kernel": jnp.full((5, 2), 1.0)},
    }
    for min_keep, left in [(0, 0), (3, 3)]:
        method = jaxsparse.granet(
            sparsity=0.9, total_steps=4, update_interval=1, stop_step=1, min_keep=min_keep
        )
        event = jax.jit(method.update)(params, params, jaxsparse.dense_masks(params), 1)
        assert event.metrics.num_active.tolist() == [11 - left, left]
        assert int(event.metrics.num_empty) == (left == 0)


def test_growth_sees_the_dense_gradient_at_the_weights_before_the_step(key):
    # loss = x . w + w4 * w0: the gradient at the inactive w4 is w0 before the step, 1.0;
    # the step takes w0 to .5, below the .7 of w3. x is this batch's, the last one had w5 ahead.
    params = {"kernel": jnp.array([[1.0, 2.0, 3.0, 0.0, 0.0, 0.0]])}
    masks = {"kernel": jnp.array([[True, True, True, False, False, False]])}
    method = jaxsparse.granet_st(
        sparsity=0.5, initial_sparsity=0.5, total_steps=9, update_interval=2,
        drop_fraction=0.3, final_drop_fraction=0.3,
    )  # fmt: skip
    state = jaxsparse.TrainState.create(
        apply_fn=lambda w, x: (w["kernel"] * x).sum() + w["kernel"][0, 4] * w["kernel"][0, 0],
        params=params, tx=optax.sgd(1.0), method=method, key=key, masks=masks,
    )  # fmt: skip
    batches = [[0.0, 0.0, 0.0, 0.0, 0.0, 9.0], [0.5, -1.0, 0.0, 0.7, 0.0, 0.0]]
    for n, x in enumerate(batches, start=1):
        grads = jax.grad(state.apply_fn)(state.params, jnp.array([x]))
        state = state.apply_gradients(grads=grads, event=method.is_due(n))
    # w = .5, 3, 3: w0 is dropped, w4 comes. |g| at 0 3 4 5 = .5 .7 1 0.
    np.testing.assert_array_equal(state.masks["kernel"], np.array([[0, 1, 1, 0, 1, 0]], bool))
    np.testing.assert_array_equal(state.params["kernel"], [[0.0, 3.0, 3.0, 0.0, 0.0, 0.0]])


GOOD = {"sparsity": 0.9, "total_steps": 100, "update_interval": 10}


@pytest.mark.parametrize("factory", [jaxsparse.gmp, jaxsparse.granet, jaxsparse.granet_st])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sparsity": 1.0}, "sparsity 1.0 must be at least 0 and below 1"),
        ({"sparsity": -0.1}, "sparsity -0.1 must be at least 0"),
        ({"sparsity": float("nan")}, "sparsity nan must be at least 0"),
        ({"initial_sparsity": -0.1}, "initial_sparsity -0.1 must be at least 0"),
        ({"initial_sparsity": 0.95}, "initial_sparsity 0.95 is above sparsity 0.9"),
        ({"total_steps": 0}, "total_steps 0 must be a whole number of steps"),
        ({"update_interval": 0}, "update_interval 0 must be a whole number of steps"),
        (
            {"update_interval": 60},
            "sparsity 0.9 is never reached: update_interval 60 .* stop_step 50",
        ),
        ({"update_interval": 30, "legacy_end": True}, "never reached: .* at most 25 steps"),
        ({"start_step": -1}, "start_step -1 and stop_step 50 must satisfy"),
        ({"start_step": 50}, "start_step 50 and stop_step 50 must satisfy 0 <= start_step < stop"),
        ({"stop_step": 101}, "stop_step 101 must satisfy .* <= total_steps 100"),
        ({"scope": "globl"}, "scope 'globl' must be 'global' or 'layer'"),
    ],
)
def test_out_of_range(factory, options, message):
    with pytest.raises(ValueError, match=message):
        factory(**GOOD | options)


@pytest.mark.parametrize("name", ["drop_fraction", "final_drop_fraction"])
@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_drop_fraction_out_of_range(name, value):
    with pytest.raises(ValueError, match=rf"{name} {value} must be in \[0, 1\]"):
        jaxsparse.granet(**GOOD, **{name: value})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sparsity": 1 - 1e-9}, "the target of 0 active weights of 12 at step 50 is below 1"),
        ({"min_keep": 2}, "the target of 2 .* is below 2 for each of 2 layers"),
        ({"sparsity": 0.95, "scope": "layer"}, "leaves 1 active weights for 2 layers"),
    ],
)
def test_targets_too_low_for_these_layers(options, message):
    with pytest.raises(ValueError, match=message):
        jaxsparse.gmp(**GOOD | options).plan(PARAMS)
