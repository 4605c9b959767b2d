"""The hash that cuts ties: against Python's integers, no two alike, the same in every layout."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxsparse.selection.ties import index_hash

LOW_31 = 2**31 - 1


def mixed(x):
    """The slow way: xor with the upper bits and multiply by an odd number, twice, in 31 bits."""
    x = (x ^ x >> 16) * 0x7FEB352D & LOW_31
    x = (x ^ x >> 15) * 0x846CA68B & LOW_31
    return x ^ x >> 16


@pytest.mark.parametrize("offset", [0, 1, 12_345, LOW_31 - 23])
def test_against_integers_of_any_size(offset):
    found = index_hash((2, 3, 4), np.uint32(offset))
    assert found.shape == (2, 3, 4) and found.dtype == jnp.uint32
    assert found.ravel().tolist() == [mixed(offset + i) for i in range(24)]


def test_no_two_are_alike():
    hashes = np.asarray(index_hash((1 << 16,), np.uint32(7)))
    assert len(np.unique(hashes)) == 1 << 16 and hashes.max() <= LOW_31


def test_leaves_that_follow_each_other_share_one_order():
    """A hash goes by the index in all leaves together, whatever their shapes."""
    whole = index_hash((20,), np.uint32(5))
    np.testing.assert_array_equal(index_hash((2, 6), np.uint32(5)).ravel(), whole[:12])
    np.testing.assert_array_equal(index_hash((8,), np.uint32(17)), whole[12:])


@pytest.mark.parametrize("shape", [(), (0,), (3, 0)])
def test_scalars_and_empty_leaves(shape):
    assert index_hash(shape, np.uint32(0)).tolist() == np.zeros(shape).tolist()
