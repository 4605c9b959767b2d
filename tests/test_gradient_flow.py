"""The squared norm of the masked gradient, against NumPy and against the change of a loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import jaxsparse
from tests.trees import FIXED, every_other, fill, prunable

MASKS = every_other(FIXED)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_it_is_the_squared_norm_of_the_masked_gradient(dtype):
    grads = fill(FIXED, 0, dtype)
    found = jax.jit(jaxsparse.gradient_flow)(grads, MASKS)
    square = lambda g, m: np.sum(np.square(np.asarray(g, np.float64))[np.asarray(m)])
    total = sum(jax.tree.leaves(jax.tree.map(square, grads, MASKS)))
    layers = [square(g, m) for g, m in zip(prunable(grads), prunable(MASKS), strict=True)]
    np.testing.assert_allclose(found.total, total, rtol=1e-5)
    np.testing.assert_allclose(found.layers, layers, rtol=1e-5)
    assert found.total.dtype == found.layers.dtype == jnp.float32


def test_a_small_masked_step_lowers_the_loss_by_it():
    loss = lambda p: sum(jnp.sum(jnp.cos(x)) for x in jax.tree.leaves(p))
    params, rate = fill(FIXED, 0), 1e-3
    grads = jax.grad(loss)(params)
    step = jax.tree.map(lambda p, g: p - rate * g, params, jaxsparse.apply_masks(grads, MASKS))
    flow = jaxsparse.gradient_flow(grads, MASKS)
    assert float(loss(params) - loss(step)) / rate == pytest.approx(float(flow.total), rel=0.02)


def test_on_a_mesh_and_without_masks():
    grads = {"kernel": fill(jax.ShapeDtypeStruct((16, 4), jnp.float32), 0)}
    mesh = jax.make_mesh((8,), ("x",))
    placed = jax.device_put(grads, NamedSharding(mesh, PartitionSpec("x")))
    one, eight = jaxsparse.gradient_flow(grads), jaxsparse.gradient_flow(placed)
    np.testing.assert_allclose(eight.total, one.total, rtol=1e-6)
    np.testing.assert_allclose(one.total, np.sum(np.square(grads["kernel"])), rtol=1e-6)


def test_other_trees_are_refused():
    with pytest.raises(ValueError, match="masks has no leaf kernel, which grads has"):
        jaxsparse.gradient_flow({"kernel": jnp.ones((2, 2))}, {})
