"""Parts of a checkpoint by name, restored without the code that made the rest."""

from typing import Any, NamedTuple

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxsparse
from jaxsparse.checkpoint import (
    restore_checkpoint,
    restore_masks,
    restore_part,
    restore_parts,
    save_checkpoint,
)
from tests.checkpoint.states import bits, content, small, step, train_state
from tests.trees import FIXED, every_other, fill


class Network(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.BatchNorm(use_running_average=True)(nn.Dense(4)(x))
        return nn.Dense(2)(x)


def test_a_network_is_evaluated_from_its_parts_alone(tmp_path):
    images = jnp.linspace(-1, 1, 6).reshape(2, 3)
    variables = Network().init(jax.random.key(0), images)
    state = {**variables, "opt_state": optax.adam(0.1).init(variables["params"]), "step": 7}
    save_checkpoint(tmp_path, 7, state, extras={"accuracy": 0.5})
    before = content(tmp_path)
    found = restore_parts(tmp_path, ["params", "batch_stats"])
    assert (found.step, found.extras, found.note) == (7, {"accuracy": 0.5}, None)
    assert bits(found.state) == bits(dict(variables))
    chex.assert_trees_all_equal(
        Network().apply(found.state, images), Network().apply(variables, images)
    )
    shapes = jax.eval_shape(Network().init, jax.random.key(0), images)
    for name, like in shapes.items():
        part = restore_part(tmp_path, name, like=like)
        assert bits(part) == bits(variables[name])
        assert jax.tree.structure(part) == jax.tree.structure(like)
    assert bits(restore_part(tmp_path, "params/Dense_1")) == bits(variables["params"]["Dense_1"])
    assert bits(restore_part(tmp_path, "Dense_1/kernel")) == bits(
        variables["params"]["Dense_1"]["kernel"]
    )
    assert int(restore_part(tmp_path, "step")) == 7
    assert content(tmp_path) == before


def test_another_optimizer_takes_params_and_masks_over(tmp_path):
    old = train_state()
    for n in (1, 2):
        old = step(old, fill(FIXED, n), event=old.method.is_due(n))
    save_checkpoint(tmp_path, 2, old)
    momentum = optax.sgd(0.1, momentum=0.9)
    fresh = train_state(seed=1, tx=momentum)
    advice = "; another optimizer saved it, but .*params.* fit: take them over .* restore_parts$"
    with pytest.raises(ValueError, match=advice):
        restore_checkpoint(tmp_path, fresh)
    with pytest.raises(
        ValueError, match="another model or optimizer saved it, but params, masks fit"
    ):
        restore_checkpoint(tmp_path, {"params": fresh.params, "masks": fresh.masks})
    found = restore_parts(tmp_path, {"params": fresh.params, "masks": fresh.params}).state
    chex.assert_trees_all_equal(found, {"params": old.params, "masks": old.masks})
    tuned = train_state(jaxsparse.rigl, seed=1, tx=momentum, **found)
    assert bits(tuned.params) == bits(old.params)
    tuned = step(tuned, fill(FIXED, 3), event=False)
    jaxsparse.check(tuned.params, tuned.opt_state, old.masks)


class Layer(NamedTuple):
    kernel: Any
    empty: Any


def test_containers_come_from_like(tmp_path):
    model = nnx.Linear(3, 4, rngs=nnx.Rngs(0))
    layer = eqx.nn.MLP(3, 2, 4, 1, key=jax.random.key(0))
    named = (Layer(jnp.arange(3.0), jnp.zeros((0, 2))), None)
    trees = {
        "nnx": nnx.state(model, nnx.Param),
        "equinox": eqx.filter(layer, eqx.is_array),
        "named": named,
        "no batch stats": {},
    }
    save_checkpoint(tmp_path, 1, trees)
    found = restore_parts(tmp_path, jax.tree.map(jnp.zeros_like, trees)).state
    assert bits(found) == bits(trees)
    assert jax.tree.structure(found) == jax.tree.structure(trees)
    shapes = restore_part(tmp_path, "named", like=jax.eval_shape(lambda: named))
    assert jax.tree.structure(shapes) == jax.tree.structure(named)
    assert shapes[0].empty.shape == (0, 2)
    # A whole module keeps its functions, and runs.
    other = eqx.nn.MLP(3, 2, 4, 1, key=jax.random.key(1))
    whole = restore_part(tmp_path, "equinox", like=other)
    chex.assert_trees_all_equal(whole(jnp.ones(3)), layer(jnp.ones(3)))


def test_values_come_back_in_the_type_they_were_saved_in(tmp_path):
    state = {
        "key": jax.random.key(3, impl="rbg"),
        "keys": jax.random.split(jax.random.key(1), 2),
        "long": np.array([2**40 + 1]),
        "half": jnp.ones(2, jnp.bfloat16),
        "int4": jnp.arange(3, dtype=jnp.int4),
        "number": 2.5,
    }
    save_checkpoint(tmp_path, 1, {"run": state})
    found = restore_part(tmp_path, "run")
    assert bits(found) == bits(state)
    assert jax.random.key_impl(found["key"]) == jax.random.key_impl(state["key"])
    like = {"run": state | {"half": jnp.zeros(2), "number": 0}}
    assert bits(restore_parts(tmp_path, like).state["run"]) == bits(state)


def test_a_part_comes_back_on_the_devices_of_like(tmp_path):
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    sharding = NamedSharding(mesh, PartitionSpec("x"))
    kernel = jnp.arange(48.0).reshape(16, 3)
    save_checkpoint(tmp_path, 1, {"params": {"kernel": kernel}, "masks": {"kernel": kernel > 5}})
    array = jax.device_put(jnp.zeros((16, 3)), sharding)
    for leaf in (array, jax.ShapeDtypeStruct((16, 3), jnp.float32, sharding=sharding)):
        part = restore_part(tmp_path, "params", like={"kernel": leaf})["kernel"]
        masks = restore_masks(tmp_path, like={"kernel": leaf})["kernel"]
        assert part.sharding == masks.sharding == sharding
        chex.assert_trees_all_equal((part, masks), (kernel, kernel > 5))
    assert not restore_part(tmp_path, "params")["kernel"].committed


def test_masks_without_knowing_anything_else(tmp_path):
    state = train_state()
    save_checkpoint(tmp_path / "linen", 2, {"run": state, "best": {"old": {"masks": jnp.ones(2)}}})
    masks = restore_masks(tmp_path / "linen")
    assert masks["conv"]["kernel"].dtype == bool
    assert masks["blocks"]["0"]["kernel"].shape == (3, 4)  # a list becomes a dict
    chex.assert_trees_all_equal(restore_masks(tmp_path / "linen", like=state.params), state.masks)
    assert bits(restore_part(tmp_path / "linen", "best/old/masks")) == bits(jnp.ones(2))
    save_checkpoint(tmp_path / "plain", 7, small())
    save_checkpoint(tmp_path / "plain", 9, small(1))
    chex.assert_trees_all_equal(restore_masks(tmp_path / "plain", 7), small()["masks"])
    chex.assert_trees_all_equal(restore_masks(tmp_path / "plain"), small(1)["masks"])
    save_checkpoint(tmp_path / "leaf", 1, {"masks": every_other(FIXED)["conv"]["kernel"]})
    assert restore_masks(tmp_path / "leaf").shape == (2, 2, 2, 3)


def test_masks_of_a_leaf_without_entries_have_the_dtype_of_masks(tmp_path):
    params = {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(0)}
    save_checkpoint(tmp_path, 1, {"masks": jaxsparse.dense_masks(params)})
    jaxsparse.apply_masks(params, restore_masks(tmp_path, like=params))


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (["parms"], "/1 has no part parms; it has best, state$"),
        (["state/parms"], "/1 has no part state/parms; it has"),
        ([""], "/1 has no part ; it has"),
        (["params"], "several parts params; name one by its path: best/params, state/params$"),
        (
            {"best/params": {"kernel": jnp.ones((4, 3))}},
            "best/params of .*/1 at kernel has shape",
        ),
        ({"best/params": {"a": jnp.ones(2)}}, "has no leaf a, which like has"),
        ({"best": {"other": jnp.ones((4, 3))}}, "best of .*/1 has no leaf other, which"),
        ({"state": {"key": jax.random.key(0)}}, "state of .*/1 has a leaf .*, which like lacks"),
    ],
)
def test_parts_that_are_not_there(parts, message, tmp_path):
    save_checkpoint(tmp_path, 1, {"state": small(), "best": {"params": {"kernel": jnp.ones(2)}}})
    with pytest.raises(ValueError, match=message):
        restore_parts(tmp_path, parts)


def test_checkpoints_that_are_not_there(tmp_path):
    with pytest.raises(ValueError, match="has no checkpoint$"):
        restore_part(tmp_path, "params")
    for n in (1, 2):
        save_checkpoint(tmp_path, n, small(n))
    for n in (0, 3):
        with pytest.raises(ValueError, match=rf"has no checkpoint {n}, there are \[1, 2\]"):
            restore_masks(tmp_path, n)
    with pytest.raises(ValueError, match="step 1.5 must be a whole number, at least 0"):
        restore_masks(tmp_path, 1.5)
