"""Shuffled masks: the counts of each leaf, every arrangement, patterns kept, refusals."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import jaxsparse
from jaxsparse.patterns import block, channels, n_of_m
from tests.trees import FIXED, every_other, fill, others, prunable


def test_each_leaf_keeps_its_count_and_other_leaves_stay_dense(key):
    masks = jaxsparse.magnitude_masks(fill(FIXED, 0), 0.6)
    shuffled = jaxsparse.shuffle_masks(key, masks)
    assert [m.sum() for m in prunable(shuffled)] == [m.sum() for m in prunable(masks)]
    assert all(m.all() for m in others(shuffled))
    chex.assert_trees_all_equal_structs(shuffled, masks)
    other = jaxsparse.shuffle_masks(jax.random.key(1), masks)
    assert any((a != b).any() for a, b in zip(prunable(shuffled), prunable(other), strict=True))
    compiled = jax.jit(jaxsparse.shuffle_masks)(key, masks)
    chex.assert_trees_all_equal(compiled, shuffled)


def test_every_arrangement_is_equally_likely():
    """2 of 4: six arrangements, 600 draws; chi-square with 5 degrees of freedom under its 0.999."""
    masks = {"kernel": jnp.array([[True, True, False, False]])}
    draw = jax.jit(jax.vmap(lambda key: jaxsparse.shuffle_masks(key, masks)["kernel"][0]))
    found = np.asarray(draw(jax.random.split(jax.random.key(0), 600)))
    assert (found.sum(1) == 2).all()
    _, seen = np.unique(found @ [1, 2, 4, 8], return_counts=True)
    assert len(seen) == 6 and ((seen - 100) ** 2 / 100).sum() < 20.5


@pytest.mark.parametrize("pattern", [block((2, 2)), channels(), n_of_m(2, 4)])
def test_patterns_are_kept(pattern, key):
    params = fill({"kernel": jax.ShapeDtypeStruct((8, 6), jnp.float32)}, 0)
    sparsity = None if pattern.name == "2:4" else 0.5
    masks = jaxsparse.pattern_masks(params, pattern, sparsity=sparsity)
    shuffled = jaxsparse.shuffle_masks(key, masks, pattern=pattern)
    jaxsparse.check_pattern(shuffled, pattern)
    assert jaxsparse.num_active(shuffled) == jaxsparse.num_active(masks)
    assert (shuffled["kernel"] != masks["kernel"]).any()


def test_masks_without_their_pattern_are_refused(key):
    masks = every_other({"kernel": jax.ShapeDtypeStruct((4, 4), jnp.float32)})
    with pytest.raises(ValueError, match="masks at kernel: the group of 4 .* 2x2 allows 0 or 4"):
        jaxsparse.shuffle_masks(key, masks, pattern=block((2, 2)))
    with pytest.raises(ValueError, match="dtype float32; it must be bool"):
        jaxsparse.shuffle_masks(key, {"kernel": jnp.ones((2, 2))})


def test_on_a_mesh_as_on_one_device(key):
    masks = {"kernel": jnp.arange(128).reshape(16, 8) < 40}
    place = NamedSharding(jax.make_mesh((8,), ("x",)), PartitionSpec("x"))
    shuffled = jaxsparse.shuffle_masks(key, jax.device_put(masks, place))
    expected = jaxsparse.shuffle_masks(key, masks)
    np.testing.assert_array_equal(jax.device_get(shuffled["kernel"]), expected["kernel"])
    assert shuffled["kernel"].sharding.is_equivalent_to(place, 2)
