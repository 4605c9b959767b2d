"""Methods that must be the same at the edges of their options, bit by bit."""

import chex
import jax
import optax
import pytest

import jaxsparse

STEPS = 12
KEY = jax.random.key(0)
TX = jaxsparse.masked(optax.sgd(0.1, momentum=0.9))
PARAMS = {
    "a": {"kernel": jax.random.normal(KEY, (6, 8))},
    "b": {"kernel": jax.random.normal(KEY, (8, 4))},
}


@jax.jit
def step(params, opt_state, masks, n):
    """One step of SGD with a gradient that depends on the weights."""
    key = jax.random.fold_in(KEY, n)
    grads = jax.tree.map(lambda p: p - jax.random.normal(key, p.shape), params)
    updates, opt_state = TX.update(grads, opt_state, params, masks=masks)
    return optax.apply_updates(params, updates), opt_state, grads


def train(method):
    """The masks and params after each of twelve steps."""
    masks = method.init(KEY, PARAMS)
    params = jaxsparse.apply_masks(PARAMS, masks)
    opt_state = TX.init(params)
    update = jax.jit(method.update)
    history = [(masks, params)]
    for n in range(1, STEPS + 1):
        params, opt_state, grads = step(params, opt_state, masks, n)
        if method.is_due(n):
            event = update(params, grads, masks, n, key=KEY)
            params, opt_state = jaxsparse.apply_event(TX, event, params, opt_state)
            masks = event.masks
        history.append((masks, params))
    return history


EQUAL = {
    "GraNet with r = 0 is GMP": (
        jaxsparse.granet(
            sparsity=0.9,
            total_steps=STEPS,
            update_interval=2,
            drop_fraction=0,
            final_drop_fraction=0,
        ),
        jaxsparse.gmp(sparsity=0.9, total_steps=STEPS, update_interval=2),
    ),
    "GraNet-ST that starts at its target is RigL-ITOP": (
        jaxsparse.granet_st(
            sparsity=0.7, initial_sparsity=0.7, total_steps=STEPS, update_interval=2
        ),
        jaxsparse.rigl_itop(sparsity=0.7, total_steps=STEPS, update_interval=2),
    ),
    "EAST without cycles is RigL-ITOP": (
        jaxsparse.east(sparsity=0.7, total_steps=STEPS, update_interval=2, num_cycles=0),
        jaxsparse.rigl_itop(sparsity=0.7, total_steps=STEPS, update_interval=2),
    ),
    "cycles that go nowhere are none": (
        jaxsparse.with_cycles(
            jaxsparse.rigl(sparsity=0.7, total_steps=STEPS, update_interval=2),
            multiplier=1.0,
            cycle_interval=1,
        ),
        jaxsparse.rigl(sparsity=0.7, total_steps=STEPS, update_interval=2),
    ),
}


@pytest.mark.parametrize(("one", "other"), EQUAL.values(), ids=EQUAL)
def test_equal_methods_are_equal_bit_by_bit(one, other):
    chex.assert_trees_all_equal(train(one), train(other))


def test_sgd_on_masked_gradients_is_a_dense_step_then_the_mask(key):
    # The authors' order: optimizer on all coordinates, then mask weights and momentum.
    params = {"kernel": jax.random.normal(key, (8, 8))}
    masks = {"kernel": jax.random.bernoulli(key, 0.3, (8, 8))}
    params = jaxsparse.apply_masks(params, masks)
    for options in ({"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}):
        plain = optax.sgd(0.1, **options)
        tx = jaxsparse.masked(plain)
        ours, theirs = (params, tx.init(params)), (params, plain.init(params))
        for n in range(5):
            grads = {"kernel": jax.random.normal(jax.random.fold_in(key, n), (8, 8))}
            updates, slots = tx.update(grads, ours[1], ours[0], masks=masks)
            ours = (optax.apply_updates(ours[0], updates), slots)
            updates, slots = plain.update(grads, theirs[1], theirs[0])
            stepped = optax.apply_updates(theirs[0], updates)
            trace = jaxsparse.apply_masks(optax.tree.get(slots, "trace"), masks)
            theirs = (jaxsparse.apply_masks(stepped, masks), optax.tree.set(slots, trace=trace))
            chex.assert_trees_all_equal(ours[0], theirs[0])
