"""The compactor: an identity to the bit on any axis, and no prunable leaf."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsparse.nn import Compactor
from jaxsparse.paths import prunable_paths


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(("shape", "axis"), [((2, 3, 3, 5), -1), ((5, 3, 3, 2), 0), ((4, 5), 1)])
def test_it_starts_as_the_identity_to_the_bit(shape, axis, dtype, key):
    x = jax.random.normal(key, shape, dtype)
    model = Compactor(axis=axis)
    y, variables = model.init_with_output(key, x)
    assert variables["params"]["matrix"].dtype == jnp.float32 and y.dtype == dtype
    np.testing.assert_array_equal(y, x)
    matrix = jax.random.normal(key, (5, 5))
    y = model.apply({"params": {"matrix": matrix}}, x.astype(jnp.float32))
    x, matrix = np.asarray(x, np.float64), np.asarray(matrix, np.float64)
    expected = np.moveaxis(np.tensordot(x, matrix, (axis, 0)), -1, axis)
    np.testing.assert_allclose(y, expected, atol=1e-5)


def test_methods_do_not_prune_it(key):
    params = jax.eval_shape(Compactor().init, key, jnp.ones((1, 4)))["params"]
    with pytest.raises(ValueError, match=r"no leaf is prunable; the leaves are matrix \(4, 4\)"):
        prunable_paths(params)
