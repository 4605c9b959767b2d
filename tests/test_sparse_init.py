"""Initial weights scaled to masks: the variance of each unit, for every layout and kind of tree."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxsparse
from jaxsparse import sparse_init
from jaxsparse.axes import axes_of
from jaxsparse.paths import leaves_by_path, prunable_leaves
from jaxsparse.types import KernelAxes, OptionError
from tests.networks import Smooth
from tests.transformers import network

SHAPES = {
    "fc": {"kernel": (6, 5)},
    "conv": {"kernel": (3, 3, 4, 5)},
    "torch": {"weight": (5, 4, 3, 3)},
    "attn": {"query": {"kernel": (6, 2, 3)}, "out": {"kernel": (2, 3, 6)}},
}
# Axes summed over, by what PyTorch and Flax document of each layer.
SUMMED = {
    "fc/kernel": (0,),
    "conv/kernel": (0, 1, 2),
    "torch/weight": (1, 2, 3),
    "attn/query/kernel": (0,),
    "attn/out/kernel": (0, 1),
    "experts/kernel": (1,),
}
EXPERTS = {"experts/kernel": KernelAxes((1,), (2,), (), (0,))}


def drawn(seed, dtype=np.float32):
    """Weights, and masks of a third in which one unit of each leaf has no input."""
    rng = np.random.default_rng(seed)
    shapes = SHAPES | {"experts": {"kernel": (2, 6, 5)}}
    is_shape = lambda x: isinstance(x, tuple)
    params = jax.tree.map(
        lambda s: jnp.asarray(rng.normal(size=s), dtype), shapes, is_leaf=is_shape
    )
    masks = jax.tree.map(lambda s: rng.random(s) < 1 / 3, shapes, is_leaf=is_shape)
    for path, mask in leaves_by_path(masks).items():
        mask[tuple(slice(None) if i in SUMMED[path] else 0 for i in range(mask.ndim))] = False
    return params, masks


def unit_by_unit(w, mask, summed, by):
    """The slow way: a loop over units."""
    w, fan_in = np.asarray(w, np.float64), np.prod([w.shape[i] for i in summed])
    out, kept = np.zeros_like(w), [i for i in range(w.ndim) if i not in summed]
    for index in itertools.product(*(range(w.shape[i]) for i in kept)):
        unit = [slice(None)] * w.ndim
        for axis, at in zip(kept, index, strict=True):
            unit[axis] = at
        unit = tuple(unit)
        # The layer of an expert is its own; all other leaves here are one layer.
        layer = index[0] if summed == (1,) and w.ndim == 3 else slice(None)
        active = mask[unit].sum() if by == "unit" else mask[layer].mean() * fan_in
        if active:
            out[unit] = np.where(mask[unit], w[unit] * np.sqrt(fan_in / active), 0.0)
    return out


@pytest.mark.parametrize("by", ["unit", "layer"])
def test_every_layout_equals_a_loop_over_units(by):
    params, masks = drawn(0)
    scaled = leaves_by_path(sparse_init(params, masks, by=by, axes=EXPERTS))
    weights, of_masks = leaves_by_path(params), leaves_by_path(masks)
    for path, summed in SUMMED.items():
        expected = unit_by_unit(weights[path], of_masks[path], summed, by)
        np.testing.assert_allclose(scaled[path], expected, rtol=1e-6, err_msg=path)
        dead = tuple(slice(None) if i in summed else 0 for i in range(expected.ndim))
        assert not np.asarray(scaled[path])[dead].any()


def test_the_variance_of_a_unit_is_that_of_its_own_fan_in(key):
    """He's normal, 2 / fan_in: 400 weights for each number of inputs, whose sd of s^2 is 7 %."""
    of_units = np.array([1, 4, 20, 100] * 400)
    masks = {"kernel": np.arange(100)[:, None] < of_units}
    params = {"kernel": nn.initializers.he_normal()(key, (100, 1600))}
    scaled = np.asarray(sparse_init(params, masks)["kernel"])
    for active in (1, 4, 20, 100):
        weights = scaled[:active, of_units == active]
        spread = np.sqrt(2 / weights.size)
        assert np.var(weights) * active / 2 == pytest.approx(1, abs=5 * spread)


def test_a_layer_is_scaled_by_its_density(key):
    params = {"kernel": jax.random.normal(key, (20, 30))}
    masks = jaxsparse.magnitude_masks(params, 0.9)
    scaled = sparse_init(params, masks, by="layer")["kernel"]
    expected = jnp.where(masks["kernel"], params["kernel"] / jnp.sqrt(60 / 600), 0)
    np.testing.assert_allclose(scaled, expected, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("by", ["unit", "layer"])
def test_masks_that_are_all_true_change_no_bit(by, dtype):
    params, masks = drawn(1, dtype)
    full = jax.tree.map(np.ones_like, masks)
    chex.assert_trees_all_equal(sparse_init(params, full, by=by, axes=EXPERTS), params)


def test_bfloat16_is_rounded_once():
    params, masks = drawn(2)
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), half)
    expected = jax.tree.map(lambda x: x.astype(jnp.bfloat16), sparse_init(wide, masks))
    chex.assert_trees_all_equal(sparse_init(half, masks), expected)


@pytest.mark.parametrize("by", ["unit", "layer"])
def test_a_layer_without_weights_is_finite(by):
    masks = {"kernel": np.zeros((4, 3), bool)}
    assert not sparse_init({"kernel": jnp.ones((4, 3))}, masks, by=by)["kernel"].any()


def test_other_leaves_stay_as_they_are():
    params = {"fc": {"kernel": jnp.ones((4, 2)), "bias": jnp.arange(2.0)}, "head": jnp.ones((2, 2))}
    masks = jaxsparse.dense_masks(params)
    masks["fc"]["kernel"] = masks["fc"]["kernel"].at[1:].set(False)
    scaled = sparse_init(params, masks)
    assert scaled["fc"]["bias"] is params["fc"]["bias"] and scaled["head"] is params["head"]
    assert scaled["fc"]["kernel"].tolist() == [[2, 2], *[[0, 0]] * 3]
    kept = sparse_init(params, masks, prunable=(("fc/kernel", False), ("head", True)))
    assert kept["fc"]["kernel"] is params["fc"]["kernel"]


def test_a_prunable_vector_is_only_masked():
    params, masks = {"bias": jnp.full(3, 2.0)}, {"bias": np.array([True, False, True])}
    for by in ("unit", "layer"):
        scaled = sparse_init(params, masks, by=by, prunable=(("bias", True),))
        assert scaled["bias"][0] == scaled["bias"][2] != 0 and scaled["bias"][1] == 0
    assert sparse_init(params, masks, prunable=(("bias", True),))["bias"].tolist() == [2, 0, 2]


def convolutional():
    model, images = Smooth(10), jnp.zeros((1, 8, 8, 3))
    variables = dict(jax.jit(model.init)(jax.random.key(0), images))
    params = variables.pop("params")
    return params, lambda p, x: model.apply({"params": p, **variables}, x), images


def transformer(name):
    made = network(name)
    return made.params, made.forward, made.inputs


@pytest.mark.variants
@pytest.mark.parametrize("name", ["cnn", "linen vit", "nnx vit"])
def test_networks_scale_along_the_axes_that_their_forward_pass_sums_over(name):
    params, forward, inputs = convolutional() if name == "cnn" else transformer(name)
    masks = jaxsparse.static(sparsity=0.8, total_steps=1).init(jax.random.key(1), params)
    scaled = sparse_init(params, masks)
    assert jax.tree.structure(scaled) == jax.tree.structure(params)
    traced = jaxsparse.kernel_axes(forward, params, inputs)
    weights, of_masks = prunable_leaves(params), leaves_by_path(masks)
    assert weights.keys() <= traced.keys()
    for path, w in weights.items():
        axes = traced[path]
        assert axes_of(path, w.shape) == axes
        mask, summed = np.asarray(of_masks[path]), (*axes.inputs, *axes.window)
        active = mask.sum(summed, keepdims=True)
        fan_in = mask.size // active.size
        expected = np.where(mask, np.asarray(w) * np.sqrt(fan_in / np.maximum(active, 1)), 0)
        np.testing.assert_allclose(leaves_by_path(scaled)[path], expected, rtol=1e-5)


def test_the_state_of_an_nnx_module():
    params = nnx.state(nnx.Linear(8, 4, rngs=nnx.Rngs(0)), nnx.Param)
    masks = jaxsparse.magnitude_masks(params, 0.5)
    scaled = sparse_init(params, masks)
    chex.assert_trees_all_equal_structs(scaled, params)
    assert int(jnp.count_nonzero(scaled["kernel"][...])) == 16
    assert jnp.array_equal(scaled["bias"][...], params["bias"][...])


def test_a_signal_keeps_its_size_through_ten_sparse_layers(key):
    """The point of it: with the dense network's weights it loses a factor of sqrt(10) a layer."""
    keys = jax.random.split(key, 10)
    draw = nn.initializers.he_normal()
    params = {f"layer{i}": {"kernel": draw(k, (200, 200))} for i, k in enumerate(keys)}
    uniform = jaxsparse.static(sparsity=0.9, total_steps=1, distribution=jaxsparse.uniform())
    masks = uniform.init(key, params)

    def size(params):
        x = jax.random.normal(jax.random.key(1), (16, 200))
        for i in range(10):
            x = jax.nn.relu(x @ params[f"layer{i}"]["kernel"])
        return float(jnp.sqrt(jnp.mean(x**2)))

    assert 0.5 < size(sparse_init(params, masks)) / size(params) < 2
    assert 0.5 < size(sparse_init(params, masks, by="layer")) / size(params) < 2
    assert size(jaxsparse.apply_masks(params, masks)) / size(params) < 1e-4


@pytest.mark.parametrize("pattern", [None, jaxsparse.n_of_m(2, 4), jaxsparse.channels()])
def test_it_starts_any_method(pattern, key):
    """Masks of a pattern and masks that are given; what is inactive is 0 as the state asks for."""
    params = {"fc": {"kernel": jax.random.normal(key, (8, 16)), "bias": jnp.zeros(16)}}
    method = jaxsparse.rigl(sparsity=0.5, total_steps=20, update_interval=5)
    method = method if pattern is None else jaxsparse.with_pattern(method, pattern)
    masks = method.init(key, params)
    method = jaxsparse.starting_from(method, masks)
    state = jaxsparse.TrainState.create(
        apply_fn=None,
        params=sparse_init(params, masks),
        tx=optax.sgd(0.1, momentum=0.9),
        method=method,
        key=key,
    )
    state.check()
    chex.assert_trees_all_equal(state.masks, masks)
    chex.assert_trees_all_equal(state.params, sparse_init(params, state.masks))


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("by", ["unit", "layer"])
def test_on_a_mesh_weights_stay_where_they_are(by, kind):
    mesh = jax.make_mesh((8,), ("x",), axis_types=(kind,))
    params, masks = {"kernel": np.ones((16, 8), np.float32)}, {"kernel": np.eye(16, 8) > 0}
    expected = sparse_init(params, masks, by=by)
    for spec in (PartitionSpec("x"), PartitionSpec(None, "x")):
        place = NamedSharding(mesh, spec)
        put = jax.tree.map(lambda x, at=place: jax.device_put(x, at), (params, masks))
        for scaled in (
            sparse_init(*put, by=by),
            jax.jit(sparse_init, static_argnames="by")(*put, by=by),
        ):
            assert scaled["kernel"].sharding.is_equivalent_to(place, 2)
            chex.assert_trees_all_close(scaled, expected, rtol=1e-6)


def test_what_is_wrong_is_named():
    params, masks = {"fc": {"kernel": jnp.ones((4, 2))}}, {"fc": {"kernel": np.ones((4, 2), bool)}}
    with pytest.raises(OptionError, match="by 'neuron' must be unit or layer"):
        sparse_init(params, masks, by="neuron")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="masks at fc/kernel has dtype float32; it must be bool"):
        sparse_init(masks, params)
    with pytest.raises(ValueError, match=r"masks at fc/kernel has shape \(2, 4\)"):
        sparse_init(params, {"fc": {"kernel": np.ones((2, 4), bool)}})
