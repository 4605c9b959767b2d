"""ResRep's optimizer: its published parts, and the masks in its state."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsparse
from jaxsparse.structured.gradient_reset import ResetState, compactor_sgd
from jaxsparse.structured.resrep import resrep_optimizer, row_masks, row_norms, with_row_masks
from tests.structured.stepping import trained

pytestmark = pytest.mark.variants  # our own code, which knows little of versions

MATRIX = jnp.array([[3.0, 0.0, 0.0], [4.0, 2.0, 0.0], [0.0, 0.0, 0.0]])
PATH = "block/compactor1/matrix"
PARAMS = {
    "block": {
        "compactor1": {"matrix": MATRIX},
        "conv1": {"kernel": jnp.ones((1, 1, 2, 3)), "bias": jnp.ones(3)},
        "norm1": {"scale": jnp.ones(3), "bias": jnp.ones(3)},
    }
}


def test_the_parts_of_the_published_optimizer():
    """Two steps with a gradient of 1: momentum, decay and rate of every leaf by hand.

    z1 = 1 + wd, z2 = mu z1 + 1 + wd (1 - rate z1); w = 1 - rate (z1 + z2).
    """
    rate, decay = 0.1, 0.01
    tx = resrep_optimizer(lambda step: rate + 0 * step, weight_decay=decay, lasso=1e-3)
    path, state = trained(tx, PARAMS, None, 2, jnp.ones_like)
    two = jax.tree.map(lambda x: x[1], path)["block"]
    of = lambda mu, rate, wd: 1 - rate * ((1 + wd) * (1 + mu) + 1 + wd * (1 - rate * (1 + wd)))
    np.testing.assert_allclose(two["conv1"]["kernel"], of(0.9, rate, decay), rtol=1e-6)
    np.testing.assert_allclose(two["norm1"]["scale"], of(0.9, rate, 0), rtol=1e-6)
    for layer in ("conv1", "norm1"):
        np.testing.assert_allclose(two[layer]["bias"], of(0.9, 2 * rate, 0), rtol=1e-6)
    alone, _ = trained(compactor_sgd(rate, lasso=1e-3), {"q": MATRIX}, None, 2, jnp.ones_like)
    np.testing.assert_array_equal(two["compactor1"]["matrix"], alone["q"][1])
    assert row_masks(state)[PATH].all()


def test_it_trains_beside_masks_on_single_weights():
    """`masked` looks for slots with a placeholder in place of params, which has no compactor."""
    tx = jaxsparse.masked(resrep_optimizer(0.1))
    masks = jaxsparse.dense_masks(PARAMS)
    masks["block"]["conv1"]["kernel"] = jnp.zeros((1, 1, 2, 3), bool).at[..., 1].set(True)
    params, state = jaxsparse.apply_masks(PARAMS, masks), tx.init(PARAMS)
    state = with_row_masks(state, {PATH: np.array([True, False, True])})
    grads = jax.tree.map(jnp.ones_like, params)
    for _ in range(2):
        updates, state = tx.update(grads, state, params, masks=masks)
        params = optax.apply_updates(params, updates)
    jaxsparse.check(params, state, masks)
    assert row_masks(state)[PATH].tolist() == [True, False, True]
    plain = resrep_optimizer(0.1)
    alone = with_row_masks(plain.init(PARAMS), row_masks(state))
    updates, _ = plain.update(grads, alone, PARAMS)
    found, _ = tx.update(
        grads, with_row_masks(tx.init(PARAMS), row_masks(state)), PARAMS, masks=masks
    )
    of = lambda tree: tree["block"]["compactor1"]["matrix"]
    np.testing.assert_array_equal(of(found), of(updates))


def test_new_masks_compile_nothing_again():
    tx = resrep_optimizer(0.1)
    traces = []

    @jax.jit
    def step(params, state):
        traces.append(1)
        updates, state = tx.update(jax.tree.map(jnp.ones_like, params), state, params)
        return optax.apply_updates(params, updates), state

    params, state = step(PARAMS, tx.init(PARAMS))
    chosen = np.array([False, True, True])
    state = with_row_masks(state, {PATH: chosen})
    np.testing.assert_array_equal(row_masks(state)[PATH], chosen)
    params, state = step(params, state)
    np.testing.assert_array_equal(row_masks(state)[PATH], chosen)
    assert len(traces) == 1
    np.testing.assert_allclose(row_norms(params)[PATH].shape, 3)


STATE = ResetState({"q": jnp.ones(3, bool)})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: resrep_optimizer(0.1, bias_rate=0), r"bias_rate 0 must be in \(0, inf\)"),
        (
            lambda: resrep_optimizer(0.1).init({"conv": {"kernel": MATRIX}}),
            "no leaf has a path like .*there are conv/kernel",
        ),
        (lambda: row_norms({"kernel": MATRIX}), "no leaf has a path like"),
        (lambda: row_masks(optax.sgd(0.1).init(PARAMS)), "holds 0 states"),
        (lambda: with_row_masks(STATE, {}), "masks has no compactor q, which"),
        (lambda: with_row_masks(STATE, {"q": np.ones(2)}), r"shape \(2,\), its compactor has 3"),
        (
            lambda: with_row_masks(STATE, {"q": np.ones(3), "r": np.ones(3)}),
            "no compactor r; it has q",
        ),
    ],
)
def test_what_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
