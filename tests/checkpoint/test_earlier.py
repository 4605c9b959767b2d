"""A run continues from a checkpoint that lacks leaves which its state has now."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxsparse.checkpoint import restore_checkpoint, restore_masks, save_checkpoint
from jaxsparse.checkpoint.earlier import added_since
from jaxsparse.event_counts import UNKNOWN
from jaxsparse.paths import leaves_by_path
from tests.checkpoint.states import bits, small, train_state


def test_counters_that_the_checkpoint_lacks_are_unknown(tmp_path):
    counters = {"num_taken": jnp.int32(3), "num_left_out": jnp.int32(4)}
    save_checkpoint(tmp_path, 1, small(1))
    back = restore_checkpoint(tmp_path, small() | {"events": counters})
    unknown = dict.fromkeys(counters, jnp.int32(UNKNOWN))
    assert bits(back.state) == bits(small(1) | {"events": unknown})
    # After another save they have the saved values, and a new state has its own.
    save_checkpoint(tmp_path, 2, back.state | {"events": counters})
    assert bits(restore_checkpoint(tmp_path, back.state).state["events"]) == bits(counters)
    # Seeds that are trained side by side have one each.
    save_checkpoint(tmp_path / "seeds", 1, {"state": small()})
    stacked = {"num_taken": jnp.zeros(2, jnp.int32), "num_left_out": jnp.zeros(2, jnp.int32)}
    seeds = restore_checkpoint(tmp_path / "seeds", {"state": small() | {"events": stacked}})
    assert seeds.state["state"]["events"]["num_taken"].tolist() == [UNKNOWN, UNKNOWN]


def test_a_train_state_of_before_events_were_counted_goes_on(tmp_path):
    state = train_state()
    new = {"events/num_taken", "events/num_left_out", "event_metrics/num_left_out"}
    flat = leaves_by_path(state)
    assert new < set(flat)
    save_checkpoint(tmp_path, 3, {path: leaf for path, leaf in flat.items() if path not in new})
    back = restore_checkpoint(tmp_path, train_state(seed=1)).state
    assert bits(back.params) == bits(state.params)
    assert [int(x) for x in back.events] == [UNKNOWN, UNKNOWN]
    assert int(back.event_metrics.num_left_out) == 0
    assert back.summary().notes == ()
    # They are not among the parts that can be restored by name.
    with pytest.raises(ValueError, match="saved it, but batch_stats, .*, step fit:") as raised:
        restore_checkpoint(tmp_path, train_state(tx=optax.sgd(0.1)))
    assert " events" not in str(raised.value)


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


def memory(seed=0):
    """Leaves that are called "value" beside others; boxes of one value have the same key."""
    rng = np.random.default_rng(seed)
    draw = lambda: jnp.asarray(rng.random(4) < 0.5)
    masks = {"mem": {"key": draw(), "value": draw()}, "fc": {"kernel": {"value": draw()}}}
    return {"params": jax.tree.map(jnp.float32, masks), "masks": masks}


def test_a_leaf_called_value_is_a_leaf(tmp_path):
    save_checkpoint(tmp_path, 1, memory())
    masks = memory()["masks"]
    bare = masks | {"fc": {"kernel": masks["fc"]["kernel"]["value"]}}
    chex.assert_trees_all_equal(restore_masks(tmp_path), bare)
    chex.assert_trees_all_equal(restore_masks(tmp_path, like=masks), masks)
    assert bits(restore_checkpoint(tmp_path, memory(1)).state) == bits(memory())


def test_checkpoints_that_left_the_name_value_out_go_on(tmp_path):
    """Paths as written by versions that left out every "value"."""
    state, masks = memory(), memory()["masks"]
    old = {
        f"{field}/{path}": leaf
        for field, tree in state.items()
        for path, leaf in {
            "mem/key": tree["mem"]["key"],
            "mem": tree["mem"]["value"],
            "fc/kernel": tree["fc"]["kernel"]["value"],
        }.items()
    }
    save_checkpoint(tmp_path, 1, old)
    assert bits(restore_checkpoint(tmp_path, memory(1)).state) == bits(state)
    chex.assert_trees_all_equal(restore_masks(tmp_path, like=masks), masks)
    chex.assert_trees_all_equal(restore_masks(tmp_path)["mem"], masks["mem"])
