"""Rewound params and optimizers: to the bit, fresh moments, schedules at step k, and refusals."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsparse
from tests.checkpoint.states import bits
from tests.trees import FIXED, every_other, fill

RATE = optax.piecewise_constant_schedule(0.1, {3: 0.1})
OPTIMIZERS = {
    "sgd": optax.sgd(RATE, momentum=0.9, nesterov=True),
    "adamw": optax.adamw(RATE, weight_decay=0.1),
    "injected": optax.inject_hyperparams(optax.adam)(learning_rate=RATE),
    "partition": optax.chain(
        optax.masked(optax.trace(0.9), lambda p: jax.tree.map(lambda x: x.ndim > 1, p)),
        optax.scale_by_learning_rate(RATE),
    ),
}


def steps(tx, params, opt_state, masks, first, last):
    """Params after each step; the gradient of step n is the same whoever takes it."""
    tx, taken = jaxsparse.masked(tx), []
    for n in range(first, last + 1):
        updates, opt_state = tx.update(fill(FIXED, n), opt_state, params, masks=masks)
        params = optax.apply_updates(params, updates)
        taken.append(params)
    return taken, opt_state


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_ticket_is_bit_equal_and_its_learning_rate_goes_on(name):
    tx, masks, theta = OPTIMIZERS[name], every_other(FIXED), fill(FIXED, 0)
    dense = jaxsparse.dense_masks(theta)
    (*_, theta_k), state_k = steps(tx, theta, tx.init(theta), dense, 1, 4)
    params, state = jaxsparse.rewound(theta_k, masks, tx, state_k)
    assert bits(params) == bits(jax.tree.map(lambda m, x: jnp.where(m, x, 0), masks, theta_k))
    chex.assert_trees_all_equal_structs(state, state_k)
    # Fresh but for the schedule: as an optimizer whose rate is that of step 4 from its first step.
    late = {
        "sgd": lambda rate: optax.sgd(rate, momentum=0.9, nesterov=True),
        "adamw": lambda rate: optax.adamw(rate, weight_decay=0.1),
        "injected": lambda rate: optax.adam(rate),
        "partition": lambda rate: optax.chain(
            optax.masked(optax.trace(0.9), lambda p: jax.tree.map(lambda x: x.ndim > 1, p)),
            optax.scale_by_learning_rate(rate),
        ),
    }[name](lambda count: RATE(count + 4))
    ours, _ = steps(tx, params, state, masks, 5, 7)
    theirs, _ = steps(late, params, late.init(params), masks, 5, 7)
    for a, b in zip(ours, theirs, strict=True):
        chex.assert_trees_all_close(a, b, rtol=1e-5)
        jaxsparse.check(a, (), masks)  # momentum, Adam and decay leave pruned weights at exactly 0
    restarted, _ = steps(tx, params, tx.init(params), masks, 5, 5)
    moved = lambda taken: float(
        jnp.abs(taken[0]["pair"][1]["weight"] - params["pair"][1]["weight"]).sum()
    )
    assert moved(restarted) > 5 * moved(ours)  # a new init alone starts the schedule over


def test_from_step_0_it_is_the_optimizers_own_init():
    tx, theta, masks = OPTIMIZERS["adamw"], fill(FIXED, 0), every_other(FIXED)
    params, state = jaxsparse.rewound(theta, masks, tx, tx.init(theta))
    assert bits(params) == bits(jaxsparse.apply_masks(theta, masks))
    assert bits(state) == bits(tx.init(params))


def test_a_single_array_and_bfloat16():
    x = jnp.array([[1.5, -2.5]], jnp.bfloat16)
    tx = optax.sgd(RATE, momentum=0.9)
    _, state = tx.update(x, tx.init(x), x)
    params, state = jaxsparse.rewound(x, jnp.array([[False, True]]), tx, state)
    np.testing.assert_array_equal(params, jnp.array([[0, -2.5]], jnp.bfloat16))
    assert int(state[1].count) == 1 and not np.asarray(state[0].trace).any()


def test_a_state_that_does_not_match_is_one_clear_error():
    theta, masks = fill(FIXED, 0), every_other(FIXED)
    sgd, adam = optax.sgd(0.1, momentum=0.9), optax.adam(0.1)
    with pytest.raises(ValueError, match="opt_state has no leaf 0/trace/.*own init has"):
        jaxsparse.rewound(theta, masks, sgd, adam.init(theta))
    narrow = {"conv": theta["conv"]}
    with pytest.raises(ValueError, match="opt_state has no leaf 0/mu/blocks/0/"):
        jaxsparse.rewound(theta, masks, adam, adam.init(narrow))
    with pytest.raises(ValueError, match="masks has no leaf"):
        jaxsparse.rewound(theta, narrow, adam, adam.init(theta))
