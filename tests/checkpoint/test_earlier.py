"""States that have grown since a checkpoint was saved go on from it."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsparse
from jaxsparse.checkpoint import restore_checkpoint, restore_masks, restore_part, save_checkpoint
from jaxsparse.checkpoint.earlier import added_since
from tests.checkpoint.states import bits, small

UNKNOWN = -(2**30)


def test_counters_that_the_checkpoint_lacks_are_unknown(tmp_path):
    counters = {"num_taken": jnp.int32(3), "num_left_out": jnp.int32(4)}
    save_checkpoint(tmp_path, 1, small(1))
    back = restore_checkpoint(tmp_path, small() | {"events": counters})
    unknown = dict.fromkeys(counters, jnp.int32(UNKNOWN))
    assert bits(back.state) == bits(small(1) | {"events": unknown})
    # Once they are saved they are what was saved, and a new state has its own.
    save_checkpoint(tmp_path, 2, back.state | {"events": counters})
    assert bits(restore_checkpoint(tmp_path, back.state).state["events"]) == bits(counters)
    # Of seeds trained side by side, each has its own.
    save_checkpoint(tmp_path / "seeds", 1, {"state": small()})
    stacked = {"num_taken": jnp.zeros(2, jnp.int32), "num_left_out": jnp.zeros(2, jnp.int32)}
    seeds = restore_checkpoint(tmp_path / "seeds", {"state": small() | {"events": stacked}})
    assert seeds.state["state"]["events"]["num_taken"].tolist() == [UNKNOWN, UNKNOWN]


@pytest.mark.parametrize("name", ["num_other", "taken", "num_taken/more"])
def test_another_leaf_that_is_missing_is_refused(name, tmp_path):
    save_checkpoint(tmp_path, 1, small())
    with pytest.raises(ValueError, match=f"/1 has no leaf events/{name}, which the state at hand"):
        restore_checkpoint(tmp_path, small() | {"events": {name: jnp.int32(0)}})


def test_the_first_regex_found_decides_and_the_leaf_keeps_its_type():
    leaves = {"a/x": jnp.ones((2, 1), jnp.bfloat16), "a/y": 7, "b": np.ones(2, bool), "c": 1.0}
    table = [("x$", 3), ("^a/", -1), ("b", True)]
    found = added_since({"c"}, leaves, table)
    chex.assert_trees_all_equal(
        found,
        {
            "a/x": np.full((2, 1), 3, jnp.bfloat16),
            "a/y": np.array(-1),
            "b": np.array([True, True]),
        },
    )


def test_a_key_named_value_was_left_out_of_its_path(tmp_path):
    """As an earlier version saved {"memory": {"key": ..., "value": ...}}."""
    key, value = jnp.ones((2, 3)), jnp.zeros((4, 3))
    masks = {"memory": {"key": key > 0, "value": value > 0}, "fc": {"value": key > 0}}
    flat = {"memory/key": key > 0, "memory": value > 0, "fc": key > 0}
    save_checkpoint(tmp_path, 1, {"masks": flat})
    other = jax.tree.map(jnp.zeros_like, masks)
    assert bits(restore_checkpoint(tmp_path, {"masks": other}).state) == bits({"masks": masks})
    chex.assert_trees_all_equal(restore_masks(tmp_path, like=masks), masks)
    chex.assert_trees_all_equal(restore_part(tmp_path, "masks")["memory"], masks["memory"])
    jaxsparse.apply_masks(masks, restore_masks(tmp_path, like=masks))
