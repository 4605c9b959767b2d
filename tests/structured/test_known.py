"""Indices folded in NumPy are those that JAX computes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxsparse.structured.known import folded, known_array

X, Y = np.array([3, -1, 2, 0]), np.array([1, 5, -2, 7])
FOLDED = {
    "wrapped": lambda x, y: jnp.where(x < 0, x + 4, x)[:, None],
    "compared": lambda x, y: (x <= y) & ~(x >= 2) | (x == y) | (x != 0) & (x > y),
    "computed": lambda x, y: jnp.maximum(-x, y * 2 - x) + jnp.minimum(x, y),
    "clamped": lambda x, y: lax.clamp(0, x, 2).astype(jnp.int16),
    "moved": lambda x, y: jnp.concatenate([x, y[1:3]]).reshape(2, 3).T[:, :1].squeeze(1),
    "counted": lambda x, y: lax.broadcasted_iota(jnp.int32, (2, 4), 1) + lax.stop_gradient(x)[None],
}


@pytest.mark.parametrize("name", FOLDED)
def test_folded(name):
    closed = jax.make_jaxpr(FOLDED[name])(X, Y)
    assert np.array_equal(_run(closed.jaxpr, [X, Y]), FOLDED[name](jnp.asarray(X), jnp.asarray(Y)))


def _run(jaxpr, inputs):
    values = dict(zip(jaxpr.invars, inputs, strict=True))
    for eqn in jaxpr.eqns:
        operands = [x.val if hasattr(x, "val") else values[x] for x in eqn.invars]
        operands = [np.asarray(x) for x in operands]
        inner = eqn.params.get("jaxpr")
        values[eqn.outvars[0]] = _run(inner.jaxpr, operands) if inner else folded(eqn, operands)
        assert values[eqn.outvars[0]].dtype == eqn.outvars[0].aval.dtype
    return values[jaxpr.outvars[0]]


def test_what_is_no_index_is_not_known():
    assert known_array(jnp.float32, (2,), np.ones(2)) is None
    assert known_array(jnp.int32, (2**10, 2**10), None) is None  # too large
    assert known_array(jnp.bool_, (), True) == np.array(True)
    (eqn,) = jax.make_jaxpr(lambda x: x + 1.0)(1.0).eqns
    assert folded(eqn, [np.array(1.0), np.array(1.0)]) is None
    (eqn,) = jax.make_jaxpr(lambda x: x + 1)(1).eqns
    assert folded(eqn, [None, np.array(1)]) is None
