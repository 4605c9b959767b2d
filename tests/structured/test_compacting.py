"""Dead channels go, outputs stay: by hand, in chains, behind norms, and on sparse networks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsparse
from jaxsparse.nn import cifar_resnet, narrow_module
from jaxsparse.structured import channel_groups, check_narrow, compact

pytestmark = pytest.mark.variants  # our own code, which knows little of versions

X = jnp.asarray(np.random.default_rng(0).normal(size=(16, 4)), jnp.float32)


def mlp(p, x):
    x = jax.nn.relu(x @ p["a"] + p["bias"][None])
    return jax.nn.relu(x @ p["b"]) @ p["c"]


def _dense():
    rng = np.random.default_rng(1)
    shapes = {"a": (4, 6), "bias": (6,), "b": (6, 5), "c": (5, 3)}
    return {k: np.asarray(rng.normal(size=s), np.float32) for k, s in shapes.items()}


def _plan(params, fn=mlp):
    groups = channel_groups(fn, params, X)
    return compact(groups, fn, jax.tree.map(jnp.asarray, params), X)


def test_channels_that_nothing_reads_or_makes():
    params = _dense()
    params["b"][0] = 0  # nothing reads unit 0 of a
    params["a"][:, 1], params["bias"][1] = 0, -1  # nothing makes unit 1, and ReLU cuts its bias
    params["a"][:, 2], params["bias"][2] = 0, 1  # it is constant 1
    plan = _plan(params)
    np.testing.assert_array_equal(plan.kept["a"], [2, 3, 4, 5])
    np.testing.assert_array_equal(plan.kept["b"], range(5))
    np.testing.assert_allclose(mlp(plan.apply(params), X), mlp(params, X), rtol=1e-5)


def test_death_spreads_through_layers():
    params = _dense()
    params["c"][3] = 0  # so unit 3 of b is not read,
    params["b"][4] = 0
    params["b"][4, 3] = 1  # and unit 4 of a by nothing else
    plan = _plan(params)
    np.testing.assert_array_equal(plan.kept["b"], [0, 1, 2, 4])
    np.testing.assert_array_equal(plan.kept["a"], [0, 1, 2, 3, 5])
    params["a"][:], params["bias"][:] = 0, 0  # nothing is made: one unit of each group stays
    assert _plan(params).widths == {"a": 1, "b": 1}


def test_a_residual_channel_dies_only_if_all_its_makers_do():
    def residual(p, x):
        x = x @ p["in"]
        return (x + jax.nn.relu(x @ p["up"]) @ p["down"]) @ p["out"]

    rng = np.random.default_rng(2)
    shapes = {"in": (4, 5), "up": (5, 6), "down": (6, 5), "out": (5, 2)}
    params = {k: np.asarray(rng.normal(size=s), np.float32) for k, s in shapes.items()}
    params["in"][:, 0] = params["in"][:, 1] = params["down"][:, 1] = 0
    plan = _plan(params, residual)
    np.testing.assert_array_equal(plan.kept["in"], [0, 2, 3, 4])


def test_norms_over_channels_keep_them():
    normed = lambda p, x: (lambda y: (y - y.mean(1, keepdims=True)) @ p["b"])(x @ p["a"])
    rng = np.random.default_rng(3)
    params = {"a": rng.normal(size=(4, 5)), "b": rng.normal(size=(5, 2))}
    params = {k: np.asarray(v, np.float32) for k, v in params.items()}
    params["b"][0] = 0
    assert _plan(params, normed).widths == {"a": 5}


def test_inputs_that_say_too_little_are_found():
    params = _dense()
    params["a"][:, 1], params["bias"][1] = 0, 1
    groups = channel_groups(mlp, params, X)
    params["b"][1], params["c"][:] = -1, abs(params["c"])
    dark = jax.tree.map(jnp.asarray, params | {"b": -abs(params["b"])})
    plan = compact(groups, mlp, dark, X)  # its outputs are 0, whatever is removed
    np.testing.assert_array_equal(mlp(plan.apply(dark), X), 0)


def test_a_sparse_resnet_is_the_same_and_narrower():
    model = cifar_resnet(8, width=8)
    images = jnp.asarray(np.random.default_rng(1).normal(size=(4, 8, 8, 3)), jnp.float32)
    variables = model.init(jax.random.key(0), images)
    scores = jax.tree.map(jnp.abs, variables["params"])
    masks = jaxsparse.masks_from_scores(scores, sparsity=0.98)
    params = jaxsparse.apply_masks(variables["params"], masks)
    shift = lambda path, x: x - 0.1 if "norm" in str(path) and "bias" in str(path) else x
    params = jax.tree_util.tree_map_with_path(shift, params)
    variables = {**variables, "params": params}
    groups = channel_groups(model.apply, variables, images)
    plan = compact(groups, model.apply, variables, images)
    assert sum(plan.widths.values()) < sum(group.width for group in groups)
    narrow = narrow_module(model, plan)
    assert check_narrow(plan, model.apply, narrow.apply, variables, images) < 1e-5
    found = narrow.apply(plan.apply(variables), images)
    np.testing.assert_allclose(found, model.apply(variables, images), rtol=1e-4, atol=1e-5)
    kept = plan.apply(masks)
    active = lambda masks: jaxsparse.num_active(masks)
    assert active(kept) <= active(masks)
    jaxsparse.check(plan.apply(params), (), kept)


def test_a_constant_that_inputs_or_outputs_hide_stays():
    params = _dense()
    params["a"][:, 1], params["bias"][1] = 0, 5
    groups = channel_groups(mlp, params, X)
    with pytest.raises(ValueError, match="an output is int32; give a function of float outputs"):
        compact(groups, lambda p, x: jnp.argmax(mlp(p, x), -1), params, X)
    dark = params | {"b": params["b"].copy()}
    dark["b"][1] = -9  # so that no gradient passes
    with pytest.raises(ValueError, match="of the largest: a channel that seemed 0 is not"):
        compact(channel_groups(mlp, dark, X), mlp, dark, jnp.zeros_like(X))


def test_numbers_that_are_none_are_no_reason_to_remove():
    params = _dense()
    params["b"][0], params["c"][0, 0] = 0, np.nan
    with pytest.raises(ValueError, match="outputs would change by nan"):
        _plan(params)
