"""Units: masks of groups and back, and the scores that are pooled over them."""

import chex
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsparse
from jaxsparse.types import Groups
from jaxsparse.units import from_units, pool, to_units
from tests.patterned import TWO_OF_FOUR, picture


def test_units_and_back():
    groups = {"a": jaxsparse.block((2, 2)).cut((2, 6)), "b": TWO_OF_FOUR.cut((4, 1))}
    mask = np.array([[1, 1, 0, 0, 0, 0], [1, 1, 0, 0, 0, 1]], bool)
    masks = {"a": jnp.asarray(mask), "b": jnp.ones((4, 1), bool), "c": jnp.zeros(3, bool)}
    units = to_units(masks, groups)
    assert picture(units["a"]) == ["101"]
    entries = from_units(units, groups, masks)
    assert picture(entries["a"]) == ["110011", "110011"]
    chex.assert_trees_all_equal((entries["b"], entries["c"]), (masks["b"], masks["c"]))


@pytest.mark.parametrize("n", [0, 1, 2, 7, 8, 9, 17, 64, 65, 300])
def test_pooling_adds_every_entry_once(n):
    x = jnp.asarray(np.random.default_rng(n).integers(-99, 99, (n, 3)), jnp.float32)
    for axes, split in (((0,), (n, 3)), ((0, 2), (n, 3, 1)), ((0, 1), (n, 3))):
        pooled = pool(x, Groups("", split, axes))
        np.testing.assert_array_equal(pooled, np.asarray(x).reshape(split).sum(axes))


def test_pooling_is_in_float32_and_keeps_nan():
    groups = jaxsparse.channels().cut((300, 2))
    ones = jnp.ones((300, 2), jnp.bfloat16).at[3, 1].set(jnp.nan)
    pooled = pool(ones, groups)
    assert pooled.dtype == jnp.float32
    assert pooled[0] == 300 and jnp.isnan(pooled[1])
