"""Gradient resetting and the penalty: masked rows, all rows, snapped rows, rows that orbit 0."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxsparse.structured.gradient_reset import (
    ResetState,
    compactor_sgd,
    reset_and_lasso,
    row_gradient,
)
from tests.structured.stepping import trained

pytestmark = pytest.mark.variants  # our own code, which knows little of versions

MATRIX = jnp.array([[3.0, 0.0, 0.0], [4.0, 2.0, 0.0], [0.0, 0.0, 0.0]])


def test_a_masked_row_gets_the_penalty_alone_and_an_unmasked_one_gets_both():
    gradient = jnp.full((3, 3), 7.0)
    found = row_gradient(gradient, MATRIX, jnp.array([False, True, True]), lasso=0.5)
    np.testing.assert_allclose(found[:, 0], [0.3, 0.4, 0.0], rtol=1e-6)  # half a unit vector
    np.testing.assert_allclose(found[:, 1], [7.0, 7.5, 7.0], rtol=1e-6)
    np.testing.assert_array_equal(found[:, 2], 7.0)  # a row of zeros has no direction
    masked = row_gradient(gradient, MATRIX, jnp.zeros(3, bool), lasso=0.5)
    np.testing.assert_array_equal(masked[:, 2], 0.0)
    nan = row_gradient(gradient * jnp.nan, MATRIX, jnp.array([False, True, True]), lasso=0.5)
    assert np.isfinite(nan[:, 0]).all()


@pytest.mark.parametrize("size", [1e-30, 1e-20, 1e30])
def test_the_penalty_has_its_length_at_any_size_of_a_row(size):
    found = row_gradient(jnp.zeros((3, 3)), MATRIX * size, jnp.ones(3, bool), lasso=2.0)
    np.testing.assert_allclose(jnp.linalg.norm(found, axis=0), [2.0, 2.0, 0.0], rtol=1e-5)


def test_the_norm_of_a_masked_row_falls_until_it_first_crosses_0():
    q = {"matrix": jnp.eye(2)}
    masks = {"matrix": np.array([False, True])}
    path, _ = trained(compactor_sgd(0.1, lasso=1e-2), q, masks, 60)
    norms = jnp.linalg.norm(path["matrix"], axis=1)[:, 0]
    crossing = int(np.argmax(np.diff(norms) > 0))
    assert (np.diff(norms)[:crossing] < 0).all() and crossing > 40 and norms[crossing] < 0.05


def test_the_chain_of_parts_is_the_whole():
    rate = optax.linear_schedule(0.1, 0.0, 20)
    chain = optax.chain(
        reset_and_lasso(0.01), optax.trace(0.99), optax.scale_by_learning_rate(rate)
    )
    masks, gradient = {"q": np.array([True, False, True])}, lambda q: jnp.cos(7 * q)
    found, expected = (
        trained(tx, {"q": MATRIX}, masks, 20, gradient)[0]
        for tx in (compactor_sgd(rate, lasso=0.01), chain)
    )
    chex.assert_trees_all_close(found, expected, rtol=1e-6)


def test_snapped_rows_rest_at_0_with_their_momentum():
    """At a constant rate the plain row oscillates; the snapped one stops within its bound."""
    q, masks = {"q": jnp.eye(2)}, {"q": np.array([False, True])}
    options = {"lasso": 1e-2, "momentum": 0.99}
    plain, _ = trained(compactor_sgd(0.02, **options), q, masks, 1000)
    snapped, state = trained(compactor_sgd(0.02, **options, snap=True), q, masks, 1000)
    norms = lambda path: np.linalg.norm(path["q"], axis=1)
    bound = 25 * 0.02 * 1e-2
    first = int(np.argmax(norms(plain)[:, 0] <= bound))
    assert norms(plain)[first + 2 :, 0].max() > 1e-3
    assert not norms(snapped)[first + 1 :, 0].any() and not state.momentum["q"][:, 0].any()
    np.testing.assert_allclose(norms(snapped)[:first, 0], norms(plain)[:first, 0], atol=1e-6)
    np.testing.assert_allclose(norms(snapped)[:, 1], norms(plain)[:, 1], atol=1e-5)  # not masked
    assert norms(plain)[:, 1].min() < bound  # and comes as near


def test_a_row_with_momentum_across_it_orbits_0_unless_it_is_snapped():
    """At a constant rate: radius r^1.5 is the angular momentum, which friction takes away."""
    rate, options = 0.1, {"lasso": 1e-2, "momentum": 0.99}
    q = jnp.eye(2)
    # Circular at the start: v^2 / r is the acceleration, lr * lambda, and a step moves by v.
    across = jnp.array([[0.0, 0.0], [1.0, 0.0]]) * jnp.sqrt(rate * options["lasso"]) / rate

    def norms(snap):
        tx = compactor_sgd(rate, **options, snap=snap)
        state = tx.init(q)._replace(masks=jnp.array([False, True]), momentum=across)

        def step(carry, _):
            q, state = carry
            updates, state = tx.update(jnp.zeros((2, 2)), state, q)
            return (q + updates, state), jnp.linalg.norm(q[:, 0] + updates[:, 0])

        return np.asarray(jax.jit(lambda c: jax.lax.scan(step, c, length=600)[1])((q, state)))

    orbit = norms(snap=False)
    assert orbit[:150].min() > 0.3 > 25 * rate * options["lasso"]
    shrunk = np.log(orbit[50:200].mean() / orbit[450:600].mean()) / 400
    assert shrunk == pytest.approx(2 / 3 * (1 - 0.99), rel=0.02)
    assert not norms(snap=True)[150:].any()


def test_bfloat16_compactors_keep_their_dtype():
    path, _ = trained(compactor_sgd(0.1), {"q": MATRIX.astype(jnp.bfloat16)}, None, 1)
    assert path["q"].dtype == jnp.bfloat16 and np.isfinite(path["q"].astype(np.float32)).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: reset_and_lasso(0.0), r"lasso 0.0 must be in \(0, inf\)"),
        (lambda: compactor_sgd(0.1, momentum=1.0), r"momentum 1.0 must be in \[0, 1\)"),
        (
            lambda: reset_and_lasso().init({"q": jnp.ones((2, 3))}),
            r"q \(2, 3\) is no compactor, which is a square matrix",
        ),
        (
            lambda: reset_and_lasso().update({}, ResetState({"q": jnp.ones(3, bool)})),
            "compactors need params",
        ),
    ],
)
def test_what_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
