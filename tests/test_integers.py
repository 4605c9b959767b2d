"""Whole numbers by one rule, whatever their type."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsparse.integers import whole_number

TYPES = (np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64)
NO_NUMBERS = (True, np.True_, jnp.array(True), 2.0, np.float32(2), jnp.float32(2), "2", None)
NO_NUMBERS += (
    [2],
    (2,),
    [[1], [2, 3]],
    np.array([2]),
    jnp.array([2]),
    float("nan"),
    2j,
    jax.random.key(0),
)


@pytest.mark.parametrize("kind", [int, *TYPES])
def test_integers_of_all_types_count(kind):
    least, most = (0, 127) if kind is int else (np.iinfo(kind).min, np.iinfo(kind).max)
    for number in (least, 0, 2, most):
        found = whole_number(kind(number))
        assert found == number and type(found) is int
        assert whole_number(np.array(kind(number))) == number


@pytest.mark.parametrize("kind", [jnp.int8, jnp.uint8, jnp.int32, jnp.uint32])
def test_integers_of_jax_count(kind):
    assert whole_number(kind(2)) == 2
    with jax.enable_x64(True):
        assert whole_number(jnp.uint64(2**64 - 1)) == 2**64 - 1


@pytest.mark.parametrize("value", NO_NUMBERS, ids=repr)
def test_nothing_else_counts(value):
    assert whole_number(value) is None


def test_a_traced_number_does_not_count():
    assert jax.eval_shape(lambda n: jnp.zeros(whole_number(n) or 7), 2).shape == (7,)
