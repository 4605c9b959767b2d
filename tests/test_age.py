"""A weight that is grown late takes Adam's first steps; the others do not change."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsparse
from jaxsparse.age import OLD
from tests.trees import fill, shape

TREE = {"kernel": shape(5, 7), "bias": shape(7)}


def adam(*, aged, learning_rate=1.0):
    correction = [jaxsparse.scale_by_age()] if aged else []
    return optax.chain(
        optax.scale_by_adam(), *correction, optax.scale_by_learning_rate(learning_rate)
    )


def apply(tx, event, params, opt_state):
    return *jaxsparse.apply_event(tx, event, params, opt_state), event.masks


# Gradient 1 at every step, learning rate 1, a weight grown after step 1000:
#   (1 - 0.9^k) / sqrt((1 - 0.999^k) / (1 - 0.999^(1000 + k)))
UPDATES = [
    # update, optax's Adam, by age
    (1, 2.515, 1.000),
    (2, 3.381, 1.000),
    (3, 3.940, 1.000),
    (4, 4.332, 1.000),
    (5, 4.616, 1.000),
    (6, 4.824, 1.000),
    (7, 4.976, 1.000),
    (8, 5.084, 1.000),
    (9, 5.158, 1.000),
    (10, 5.206, 1.000),
    (11, 5.232, 1.000),
    (12, 5.241, 1.000),
    (13, 5.237, 1.000),
    (14, 5.221, 1.000),
    (15, 5.196, 1.000),
    (16, 5.164, 1.000),
    (17, 5.127, 1.000),
    (18, 5.085, 1.000),
    (19, 5.039, 1.000),
    (20, 4.991, 1.000),
]


@pytest.mark.parametrize(("aged", "column"), [(False, 1), (True, 2)], ids=["optax", "by age"])
def test_the_first_twenty_updates_of_a_grown_weight(aged, column):
    tx = jaxsparse.masked(adam(aged=aged))
    one = {"kernel": jnp.ones((1, 2))}
    masks = {"kernel": jnp.array([[True, False]])}
    event = jaxsparse.Event({"kernel": jnp.array([[True, True]])}, kept=masks, metrics=None)

    @functools.partial(jax.jit, static_argnums=0)
    def steps(num, params, opt_state, masks):
        def step(carry, _):
            params, opt_state = carry
            updates, opt_state = tx.update(one, opt_state, params, masks=masks)
            return (optax.apply_updates(params, updates), opt_state), updates["kernel"][0]

        return jax.lax.scan(step, (params, opt_state), length=num)

    params = jaxsparse.apply_masks(one, masks)
    (params, opt_state), _ = steps(1000, params, tx.init(params), masks)
    params, opt_state = jaxsparse.apply_event(tx, event, params, opt_state)
    _, updates = steps(20, params, opt_state, event.masks)
    old, new = -np.asarray(updates).T
    np.testing.assert_allclose(new, [row[column] for row in UPDATES], atol=1e-3)
    np.testing.assert_allclose(old, 1.0, atol=1e-4)


def test_weights_that_are_never_regrown_train_as_with_optax(key):
    """Bit for bit, from dense or given masks, while others die."""
    runs = [jaxsparse.masked(adam(aged=aged, learning_rate=0.1)) for aged in (False, True)]
    method = jaxsparse.gmp(sparsity=0.7, total_steps=12, update_interval=3)
    finals = []
    for tx in runs:
        params, update = fill(TREE, 0), jax.jit(tx.update)
        masks = method.init(key, params)
        opt_state = tx.init(params)
        for n in range(1, 13):
            updates, opt_state = update(fill(TREE, n), opt_state, params, masks=masks)
            params = optax.apply_updates(params, updates)
            if method.is_due(n):
                event = method.update(params, fill(TREE, n), masks, n)
                params, opt_state, masks = apply(tx, event, params, opt_state)
        finals.append(params)
    assert 0 < jaxsparse.num_active(masks) < 35
    chex.assert_trees_all_equal(*finals)


def test_a_regrown_weight_takes_the_steps_of_a_fresh_adam():
    """Masks in which column 0 dies at step 5 and comes back at step 9."""
    tx = jaxsparse.masked(adam(aged=True, learning_rate=0.1))
    update = jax.jit(tx.update)
    all_on = jaxsparse.dense_masks(fill(TREE, 0))
    off = {"kernel": all_on["kernel"].at[:, 0].set(False), "bias": all_on["bias"]}
    params = fill(TREE, 0)
    opt_state, masks = tx.init(params), all_on
    fresh = optax.adam(0.1)
    for n in range(1, 40):
        grads = fill(TREE, 50 + n)
        updates, opt_state = update(grads, opt_state, params, masks=masks)
        params = optax.apply_updates(params, updates)
        if n == 5:
            event = jaxsparse.Event(off, kept=off, metrics=None)
            params, opt_state, masks = apply(tx, event, params, opt_state)
        if n == 9:
            event = jaxsparse.Event(all_on, kept=off, metrics=None)
            params, opt_state, masks = apply(tx, event, params, opt_state)
            column = jnp.zeros(5)
            state = fresh.init(column)
        if n > 9:
            step, state = fresh.update(grads["kernel"][:, 0], state)
            column = optax.apply_updates(column, step)
            np.testing.assert_allclose(params["kernel"][:, 0], column, rtol=1e-3, atol=1e-5)
    ages = opt_state[1].age
    assert set(np.asarray(ages["kernel"][:, 0])) == {30}
    assert set(np.asarray(ages["kernel"][:, 1:]).ravel()) == {39}


def test_an_inactive_weight_has_no_age():
    tx, params = jaxsparse.masked(adam(aged=True)), fill(TREE, 0)
    masks = jax.tree.map(lambda p: p > 0, params)
    params = jaxsparse.apply_masks(params, masks)
    _, state = tx.update(fill(TREE, 1), tx.init(params), params, masks=masks)
    chex.assert_trees_all_equal(state[1].age, jax.tree.map(lambda m: m.astype(jnp.uint16), masks))


@pytest.mark.parametrize(
    ("age", "steps", "new_age", "scale"),
    [
        (OLD, 10**6, OLD, 1.0),  # does not wrap around
        (OLD - 1, 10**6, OLD, 1.0),
        (OLD - 1, OLD - 1, OLD, 1.0),
        (9, 9, 10, 1.0),
        # sqrt(1 - 0.999^10) / (1 - 0.9^10), as (1 - b^t) is 1 by then
        (9, 10**6, 10, 0.15317),
    ],
)
def test_ages_stop(age, steps, new_age, scale):
    tx, params = jaxsparse.scale_by_age(), {"kernel": jnp.ones((1, 1))}
    state = tx.init(params)._replace(
        steps=jnp.int32(steps), age={"kernel": jnp.full((1, 1), age, jnp.uint16)}
    )
    updates, state = tx.update(params, state, masks={"kernel": jnp.ones((1, 1), bool)})
    assert state.age["kernel"].dtype == jnp.uint16
    assert int(state.age["kernel"][0, 0]) == new_age
    np.testing.assert_allclose(updates["kernel"], scale, rtol=1e-3)


def test_without_masks_it_changes_nothing():
    tx, updates = jaxsparse.scale_by_age(b1=0.0), fill(TREE, 0)
    new, state = tx.update(updates, tx.init(updates))
    chex.assert_trees_all_equal(new, updates)
    assert int(state.age["bias"][0]) == int(state.steps) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [({"b1": 1.0}, r"b1 1.0 must be in \[0, 1\)"), ({"b2": -0.1}, "b2 -0.1 must be")],
)
def test_decays_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        jaxsparse.scale_by_age(**options)
