"""Active weights and their positions: a table to check by eye, exact round trips."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxsparse.sparse import Positions, check_positions, to_dense, to_mask, to_sparse
from jaxsparse.sparse.positions import positions_of
from tests.leaves import bits, leaves, masked


def test_a_kernel_by_eye():
    kernel = jnp.arange(1.0, 13.0).reshape(1, 2, 2, 3)  # taps, inputs, outputs
    mask = np.zeros(kernel.shape, bool)
    for at in ((0, 0, 0, 0), (0, 1, 1, 0), (0, 0, 1, 2), (0, 1, 0, 2)):
        mask[at] = True
    values, positions = to_sparse(kernel, mask, capacity=6)
    np.testing.assert_array_equal(positions.flat, [0, 3, 9, 10, 12, 12])  # by output, tap, input
    np.testing.assert_array_equal(values, [1, 10, 6, 9, 0, 0])
    assert int(positions.num) == 4
    under_jit = jax.jit(to_sparse, static_argnums=2)(kernel, mask, 6)
    jax.tree.map(np.testing.assert_array_equal, under_jit, (values, positions))


@pytest.mark.slow
@settings(max_examples=20)
@given(leaf=leaves(), share=st.sampled_from([None, 0.0, 0.5, 1.0]))
def test_round_trip_to_the_bit(leaf, share):
    """With a capacity of the active weights alone, or of a share of the others too."""
    weights, mask = np.asarray(jnp.asarray(leaf[0])), leaf[1]  # float64 as JAX takes it
    num = int(mask.sum())
    capacity = num if share is None else num + int(share * (mask.size - num))
    values, positions = to_sparse(weights, mask, None if share is None else capacity)
    assert values.shape == (capacity,) and int(positions.num) == num
    assert bits(to_dense(values, positions)) == bits(masked(weights, mask))
    assert bits(to_mask(positions)) == bits(mask)


@pytest.mark.parametrize("capacity", [3.0, -1, 7, True, "3", np.nan, 2**40])
def test_a_capacity_is_a_number_of_places(capacity):
    mask = np.ones((2, 3), bool)
    for make in (positions_of, jax.jit(positions_of, static_argnums=1)):
        with pytest.raises(ValueError, match="capacity .* must be a whole number in"):
            make(mask, capacity)


def test_a_capacity_of_any_type():
    mask = np.eye(2, 3, dtype=bool)
    for capacity in (np.uint8(5), np.int64(5), jnp.int32(5), np.array(5)):
        positions = positions_of(mask, capacity)
        assert positions.capacity == 5 and positions.num == 2


@pytest.mark.parametrize("shape", [(2, 3.0), (2, -3), (-2, -3), ("2", 3), None, 6, (2, np.nan)])
def test_a_shape_is_whole_numbers(shape):
    flat, num = jnp.array([1, 5]), jnp.int32(2)
    with pytest.raises(ValueError, match=r"shape .* must be whole numbers, at least 0"):
        check_positions(Positions(flat, num, shape))
