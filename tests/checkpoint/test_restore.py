"""Whole states: to the bit, in any tree, on any devices; those of another state are refused."""

from typing import Any

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxsparse
from jaxsparse.checkpoint import restore_checkpoint, restore_masks, save_checkpoint
from tests.checkpoint.states import bits, content, small, step, train_state
from tests.trees import FIXED, fill


def test_a_train_state_comes_back_to_the_bit_in_its_own_containers(tmp_path):
    state = train_state()
    for n in (1, 2, 3):
        state = step(state, fill(FIXED, n), event=state.method.is_due(n))
    save_checkpoint(tmp_path, 3, state, extras={"best": 0.1 + 0.2, "name": "x"})
    before = bits(state)
    step(state, fill(FIXED, 4), event=True)  # donates what was saved
    fresh = train_state(seed=1)
    restored = restore_checkpoint(tmp_path, fresh)
    assert (restored.step, restored.note) == (3, None)
    assert restored.extras == {"best": 0.1 + 0.2, "name": "x"}
    assert bits(restored.state) == before
    assert jax.tree.structure(restored.state) == jax.tree.structure(fresh)
    step(restored.state, fill(FIXED, 4), event=True)  # every leaf has a buffer of its own


def odd():
    nans = np.array([0x7FC00123, 0xFFC00000, 0x80000000, 0x7F800000], np.uint32)
    return {
        "nans": jnp.asarray(nans.view(np.float32)),
        "minus zero": -jnp.zeros(3),
        "a/b": {"c": jnp.zeros((), jnp.bfloat16)},
        "empty": jnp.zeros((0, 3)),
        "none": None,
        "keys": jax.random.split(jax.random.key(1, impl="rbg"), 3),
        "old key": jax.random.key_data(jax.random.key(1)),
        "numpy": np.arange(3),
        "scalars": [3, 2.5, True, np.float16(0.1), np.array(7)],
        "int4": jnp.arange(3, dtype=jnp.int4),
    }


def test_values_and_types_that_formats_lose(tmp_path):
    state = odd()
    save_checkpoint(tmp_path, 0, state)
    back = restore_checkpoint(tmp_path, jax.tree.map(lambda x: x, state)).state
    assert bits(back) == bits(state)
    assert jax.tree.structure(back) == jax.tree.structure(state)
    types = lambda tree: [type(leaf) for leaf in jax.tree.leaves(tree)]
    assert types(back) == types(state)
    assert jax.random.key_impl(back["keys"]) == jax.random.key_impl(state["keys"])


def test_nnx_and_equinox_params(tmp_path):
    model = nnx.Linear(3, 4, rngs=nnx.Rngs(0))
    layer = eqx.nn.MLP(3, 2, 4, 1, key=jax.random.key(0))
    for name, params, path in [
        ("nnx", nnx.state(model, nnx.Param), "kernel"),
        ("equinox", eqx.filter(layer, eqx.is_array), "layers/0/weight"),
    ]:
        masks = jax.tree.map(lambda x: x > 0, params)
        tx = jaxsparse.masked(optax.adam(0.1))
        state = {"params": params, "masks": masks, "opt_state": tx.init(params)}
        save_checkpoint(tmp_path / name, 1, state)
        back = restore_checkpoint(tmp_path / name, jax.tree.map(jnp.zeros_like, state))
        assert bits(back.state) == bits(state)
        assert jax.tree.structure(back.state) == jax.tree.structure(state)
        assert f"params/{path}" in bits(back.state)
        chex.assert_trees_all_equal(restore_masks(tmp_path / name, like=params), masks)


def sharded(tree):
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    layout = lambda x: PartitionSpec(*(["x"] if x.ndim and x.shape[0] % 8 == 0 else []))
    return jax.tree.map(lambda x: jax.device_put(x, NamedSharding(mesh, layout(x))), tree)


@pytest.mark.parametrize("direction", ["8 to 1", "1 to 8"])
def test_it_comes_back_on_the_devices_of_the_state_at_hand(direction, tmp_path):
    one = small(size=(16, 3))
    eight, at_hand = sharded(one), small(1, size=(16, 3))
    if direction == "1 to 8":
        eight, at_hand = one, sharded(at_hand)
    save_checkpoint(tmp_path, 5, eight)
    back = restore_checkpoint(tmp_path, at_hand).state
    assert bits(back) == bits(one)
    for new, old in zip(*map(jax.tree.leaves, (back, at_hand)), strict=True):
        assert (new.sharding, new.committed) == (old.sharding, old.committed)
    assert len(back["params"]["kernel"].sharding.device_set) == int(direction[-1])


def test_an_empty_folder_and_none_at_all(tmp_path):
    assert restore_checkpoint(tmp_path, small()) is None
    assert restore_checkpoint(tmp_path / "none", small()) is None
    assert not (tmp_path / "none").exists()


def test_the_oldest_are_deleted(tmp_path):
    for n in (1, 2, 3):
        save_checkpoint(tmp_path, n, small(n))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["2", "3"]
    save_checkpoint(tmp_path, 4, small(4), keep=1)
    assert [p.name for p in tmp_path.iterdir()] == ["4"]


CIRCLE: dict[str, Any] = {"name": "x"}
CIRCLE["self"] = CIRCLE


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((2, small()), {}, "step 2 must be above 2, the newest checkpoint in"),
        ((1.5, small()), {}, "step 1.5 must be a whole number, at least 0"),
        ((True, small()), {}, "step True must be a whole number"),
        ((-1, small()), {}, "step -1 must be a whole number, at least 0"),
        ((3, small()), {"keep": 0}, "keep 0 must be a whole number, at least 1"),
        ((3, small()), {"extras": {"a": np.ones(2)}}, "must have types that JSON has"),
        (
            (3, small()),
            {"extras": CIRCLE},
            "extras .*'name': 'x'.* must have .*: Circular reference",
        ),
        ((3, {"params": {"act": jax.nn.relu}}), {}, "state at params/act is .*; only arrays and"),
        ((3, {"name": "lenet"}), {}, "state at name is 'lenet'"),
        ((3, {"x": np.array([None])}), {}, r"state at x is array\(\[None\], dtype=object\); only"),
        ((3, {"x": np.array(["a"])}), {}, "state at x is array"),
        ((3, {"x": 2**70}), {}, "state at x is 1180591620717411303424; only"),
        ((3, {}), {}, "state has no leaf with entries, so there is nothing to save"),
        ((3, {"empty": jnp.zeros(0)}), {}, "state has no leaf with entries"),
        ((3, jax.eval_shape(small)), {}, "state at key is ShapeDtypeStruct.*, only a shape; make"),
    ],
)
def test_what_cannot_be_saved(arguments, options, message, tmp_path):
    save_checkpoint(tmp_path, 2, small())
    before = content(tmp_path)
    with pytest.raises(ValueError, match=message):
        save_checkpoint(tmp_path, *arguments, **options)
    assert content(tmp_path) == before


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (small(size=(4, 2)), r"/2 at (masks|params)/kernel has shape \(4, 3\), .* has \(4, 2\)"),
        (small() | {"step": 1}, "/2 has no leaf step, which the state at hand has"),
        ({"key": small()["key"]}, "/2 has a leaf masks/kernel, which the state at hand lacks"),
        (small() | {"key": jax.random.key(0, impl="rbg")}, "at key has dtype key<fry>, .* key<rbg"),
        (
            small() | {"params": {"kernel": jnp.ones((4, 3), jnp.bfloat16)}},
            "params/kernel has dtype float32, the state at hand has bfloat16",
        ),
    ],
)
def test_a_checkpoint_of_another_state_is_refused_and_left_alone(other, message, tmp_path):
    save_checkpoint(tmp_path, 1, small())
    save_checkpoint(tmp_path, 2, small())
    before = content(tmp_path)
    with pytest.raises(ValueError, match=message + ".*; another model or optimizer saved it"):
        restore_checkpoint(tmp_path, other)
    assert content(tmp_path) == before


def test_steps_may_be_integers_of_numpy_and_jax(tmp_path):
    save_checkpoint(tmp_path, np.int64(1), small(1))
    save_checkpoint(tmp_path, jnp.int32(2), small(2))
    assert restore_checkpoint(tmp_path, small()).step == 2
    chex.assert_trees_all_equal(restore_masks(tmp_path, np.int32(1)), small(1)["masks"])


def test_shapes_are_no_state_to_restore_into(tmp_path):
    save_checkpoint(tmp_path, 1, small())
    with pytest.raises(ValueError, match="at key is ShapeDtypeStruct.*, only a shape; make [^;]*$"):
        restore_checkpoint(tmp_path, jax.eval_shape(small))
