"""Whole networks as one call: every kind of model, masks, threads, transformations, bad input."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from jaxsparse.engine.inference import compile_inference
from jaxsparse.masks import apply_masks
from jaxsparse.nn import LeNet5, LeNet300100, cifar_resnet
from tests.engine.agreement import RELATIVE, compiled, difference, numbers

BATCHES = (40, 1, 3, 16, 17)


def noisy(variables):
    """Variables whose biases and norms are not what they begin with."""
    rng = np.random.default_rng(5)
    noise = lambda a: (a + 0.2 * rng.random(a.shape) * (a.ndim < 2)).astype(a.dtype)
    return jax.tree.map(noise, variables)


def random_masks(params, sparsity):
    rng = np.random.default_rng(6)
    draw = lambda a: rng.random(a.shape) >= sparsity if a.ndim > 1 else np.ones(a.shape, bool)
    return jax.tree.map(draw, params)


def assert_right(engine, apply, shape, batches=BATCHES, relative=RELATIVE):
    """Asserts that an engine agrees with a function; returns the inputs and its outputs."""
    x = numbers(max(batches), *shape)
    want = jax.jit(apply)(x)
    for batch in batches:
        assert difference(engine(x[:batch]), want[:batch]) < relative, batch
    return x


def assert_network(model, shape, sparsity, masks=None, **options):
    x = np.zeros((1, *shape), np.float32)
    variables = noisy(model.init(jax.random.key(0), x))
    if masks is None:
        masks = random_masks(variables["params"], sparsity)
    masked = variables | {"params": apply_masks(variables["params"], masks)}
    engine = compile_inference(model.apply, variables, masks, x, **options)
    assert not engine.reasons
    assert_right(engine, lambda x: model.apply(masked, x), shape)
    return engine


@pytest.mark.parametrize("sparsity", [0.9, 0.99])
def test_resnet(sparsity):
    model = cifar_resnet(8, width=8)
    assert_network(model, (16, 16, 3), sparsity, threads=2)


def test_lenets():
    assert_network(LeNet5(), (28, 28, 1), 0.9)
    assert_network(LeNet300100(), (28, 28, 1), 0.98)


class Stranger(linen.Module):
    """A network as others write it."""

    @linen.compact
    def __call__(self, x):
        x = linen.Conv(8, (5, 5), strides=2, padding=2, use_bias=False)(x)
        x = linen.silu(linen.GroupNorm(num_groups=4)(x))
        x = linen.max_pool(x, (3, 3), (2, 2), "SAME")
        y = linen.Conv(8, (3, 3), feature_group_count=8)(x)
        y = linen.BatchNorm(use_running_average=True)(y)
        y = linen.Conv(16, (1, 1))(linen.leaky_relu(y))
        gate = linen.sigmoid(linen.Dense(16)(y.mean((1, 2), keepdims=True)))
        x = linen.gelu(jnp.concatenate([x, y * gate], -1))
        x = linen.avg_pool(x, (2, 2), (1, 1))
        x = linen.LayerNorm()(x.reshape(len(x), -1))
        return linen.softmax(linen.Dense(10)(x))


def test_third_party():
    assert_network(Stranger(), (16, 12, 3), 0.5, threads=1)


@pytest.mark.parametrize("part", ["outputs", "inputs", "layer"])
def test_dead_channels(part):
    """Channels without active weights are the constants that their biases make of them."""
    model, x = cifar_resnet(8, width=8), np.zeros((1, 8, 8, 3), np.float32)
    params = model.init(jax.random.key(0), x)["params"]

    def mask(path, a):
        found = np.ones(a.shape, bool)
        if a.ndim == 4 and a.shape[2] > 3:
            if part == "outputs":
                found[..., 1::2] = False
            elif part == "inputs":
                found[:, :, ::3] = False
            else:
                found[...] = "1" not in jax.tree_util.keystr(path[-2:])
        return found

    masks = jax.tree_util.tree_map_with_path(mask, params)
    assert_network(model, (8, 8, 3), 0.0, masks)


class Small(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(3, 8, (3, 3), strides=2, rngs=rngs)
        self.norm = nnx.BatchNorm(8, use_running_average=True, rngs=rngs)
        self.groups = nnx.GroupNorm(8, num_groups=2, rngs=rngs)
        self.dense = nnx.Linear(8 * 4 * 4, 5, rngs=rngs)

    def __call__(self, x):
        x = self.groups(nnx.silu(self.norm(self.conv(x))))
        return self.dense(nnx.elu(x).reshape(len(x), -1))


def test_nnx():
    graph, state = nnx.split(Small(nnx.Rngs(0)))
    apply = lambda state, x: nnx.merge(graph, state)(x)
    engine = compile_inference(apply, state, None, np.zeros((1, 8, 8, 3), np.float32))
    assert not engine.reasons
    assert_right(engine, lambda x: apply(state, x), (8, 8, 3))


def test_equinox():
    eqx = pytest.importorskip("equinox")

    class Net(eqx.Module):
        conv: Any
        dense: Any

        def __call__(self, x):
            x = eqx.nn.MaxPool2d(2, 2)(jax.nn.elu(self.conv(x)))
            return self.dense(x.reshape(-1))

    key = jax.random.key(0)
    net = Net(eqx.nn.Conv2d(3, 6, 3, padding=1, groups=3, key=key), eqx.nn.Linear(96, 4, key=key))
    engine = compile_inference(
        lambda net, x: jax.vmap(net)(x), net, None, np.zeros((1, 3, 8, 8), np.float32)
    )
    assert not engine.reasons
    assert_right(engine, jax.vmap(net), (3, 8, 8))


class Block(linen.Module):
    @linen.compact
    def __call__(self, x):
        x = x + linen.MultiHeadDotProductAttention(2)(linen.LayerNorm()(x))
        return x + linen.Dense(8)(linen.gelu(linen.Dense(16)(linen.LayerNorm()(x))))


class Transformer(linen.Module):
    @linen.compact
    def __call__(self, x):
        x = linen.Conv(8, (4, 4), strides=4)(x)
        x = Block()(x.reshape(len(x), -1, 8))
        return linen.Dense(3)(x.mean(1))


def test_transformer(compiled):
    """Attention, which multiplies data with data, is XLA's."""
    del compiled
    model, x = Transformer(), np.zeros((3, 8, 8, 3), np.float32)
    variables = noisy(model.init(jax.random.key(0), x))
    masks = random_masks(variables["params"], 0.7)
    engine = compile_inference(model.apply, variables, masks, x)
    assert "dot_general" in str(engine)
    assert len(engine.programs) >= 2
    masked = {"params": apply_masks(variables["params"], masks)}
    assert_right(engine, lambda x: model.apply(masked, x), (8, 8, 3), batches=(3, 1))


def test_nnx_transformer(compiled):
    del compiled
    rngs = nnx.Rngs(0)
    attend = nnx.MultiHeadAttention(2, 8, decode=False, rngs=rngs)
    norm, dense = nnx.LayerNorm(8, rngs=rngs), nnx.Linear(8, 4, rngs=rngs)
    graph, state = nnx.split((attend, norm, dense))

    def apply(state, x):
        attend, norm, dense = nnx.merge(graph, state)
        return dense(jax.nn.relu(x + attend(norm(x))))

    engine = compile_inference(apply, state, None, np.zeros((2, 5, 8), np.float32))
    assert engine.reasons
    assert_right(engine, lambda x: apply(state, x), (5, 8), batches=(3, 1))


def test_bfloat16_variables():
    w = jnp.asarray(numbers(6, 4), jnp.bfloat16)
    apply = lambda w, x: jax.nn.relu(x @ w.astype(jnp.float32))
    engine = compile_inference(apply, w, None, np.zeros((1, 6), np.float32))
    assert_right(engine, lambda x: apply(w, x), (6,))


@pytest.mark.parametrize(("weights", "relative"), [("bfloat16", 2**-7), ("int8", 2**-5)])
def test_narrow_weights(weights, relative):
    w = numbers(3, 3, 4, 8)
    conv = lambda w, x: jax.lax.conv_general_dilated(
        x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    x = np.zeros((1, 6, 6, 4), np.float32)
    engine = compile_inference(conv, w, w > 0, x, weights=weights)
    whole = compile_inference(conv, w, w > 0, x)
    assert len(engine.programs[0]) < len(whole.programs[0])
    assert_right(engine, lambda x: conv(w * (w > 0), x), (6, 6, 4), relative=relative)


def test_same_bits():
    model, x = cifar_resnet(8, width=8), numbers(40, 8, 8, 3)
    variables = noisy(model.init(jax.random.key(0), x[:1]))
    first = None
    for threads in (1, 2, 3):
        engine = compile_inference(model.apply, variables, None, x[:1], threads=threads)
        for batch in BATCHES:
            found = [engine(x[:batch]), engine(x[:batch]), engine(np.asfortranarray(x[:batch]))]
            first = {} if first is None else first
            want = first.setdefault(batch, found[0])
            assert all(np.array_equal(want, y) for y in found)


def test_jax_arrays(compiled):
    """A call with NumPy arrays, with those of JAX, under jit and vmap give the same bits."""
    del compiled
    w = numbers(4, 6)
    engine = compile_inference(lambda w, x: jnp.tanh(x @ w), w, None, np.zeros((1, 4)))
    x = numbers(5, 4)
    want = engine(x)
    assert isinstance(want, np.ndarray)
    np.testing.assert_array_equal(engine(jnp.asarray(x)), want)
    np.testing.assert_array_equal(jax.jit(engine)(x), want)
    np.testing.assert_array_equal(jax.jit(lambda x: engine(2 * x) + 1)(x / 2), want + 1)
    np.testing.assert_array_equal(jax.vmap(engine)(jnp.stack([x, x]))[1], want)
    with pytest.raises(ValueError, match="has no gradient; differentiate the model"):
        jax.grad(lambda x: engine(x).sum())(x)


def test_inputs_and_outputs():
    w = numbers(4, 3)

    def apply(w, inputs):
        a, b = inputs["a"] @ w, inputs["b"][0]
        return {"sum": a + b, "input": b, "both": (a, [b * 2])}

    example = {"a": np.zeros((1, 4), np.float32), "b": [np.zeros((1, 3), np.float32)]}
    engine = compile_inference(apply, w, None, example)
    inputs = {"a": numbers(3, 4), "b": [numbers(3, 3)]}
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6),
        engine(inputs),
        apply(w, inputs),
    )


def test_outputs_that_no_input_changes(compiled):
    del compiled
    w = numbers(1, 3)
    engine = compile_inference(lambda w, x: (w + 1, x * w), w, None, np.zeros((1, 3), np.float32))
    fixed, product = engine(np.ones((2, 3), np.float32))
    np.testing.assert_allclose(fixed, w + 1)
    np.testing.assert_allclose(product, np.repeat(w, 2, 0))


def test_integers_are_xlas(compiled):
    """A table of embeddings is read by XLA, and the engine goes on from there."""
    del compiled
    table, w = numbers(9, 4), numbers(4, 3)
    apply = lambda v, x: jax.nn.relu(v[0][x] @ v[1])
    x = np.array([[1, 2], [8, 0], [3, 3]])
    engine = compile_inference(apply, (jnp.asarray(table), w), None, x)
    assert len(engine.programs) == 1
    np.testing.assert_allclose(engine(x), apply((table, w), x), rtol=1e-5, atol=1e-6)


def test_images_that_meet(compiled):
    """A function of one image that would be another one of two is not taken for all batches."""
    del compiled
    engine = compile_inference(lambda _, x: x * x[:1], {}, None, np.zeros((1, 3), np.float32))
    x = numbers(4, 3)
    np.testing.assert_allclose(engine(x), x * x[:1], rtol=1e-6)


def test_wrong_options():
    apply, w, x = lambda w, x: x @ w["params"]["W"], {"params": {"W": np.eye(3)}}, np.zeros((1, 3))
    with pytest.raises(ValueError, match="threads"):
        compile_inference(apply, w, None, x, threads=0)
    with pytest.raises(ValueError, match="threads"):
        compile_inference(apply, w, None, x, threads=257)
    unknown: Any = "fp8"
    with pytest.raises(ValueError, match="weights.*fp8"):
        compile_inference(apply, w, None, x, weights=unknown)
    with pytest.raises(ValueError, match="W"):
        compile_inference(apply, w, {"W": np.ones((3, 2), bool)}, x)
    with pytest.raises(ValueError, match="mask|struct|tree"):
        compile_inference(apply, w, {"V": np.ones((3, 3), bool)}, x)


def test_wrong_inputs():
    engine = compiled(lambda a, b: a + b, numbers(2, 3), numbers(2, 3))
    a = numbers(4, 3)
    with pytest.raises(ValueError, match=r"shape \(4, 2\)"):
        engine((a, a[:, :2]))
    with pytest.raises(ValueError, match=r"shape \(3, 3\)"):
        engine((a, a[:3]))
    with pytest.raises(ValueError, match="shape"):
        engine((np.float32(1), a))
    with pytest.raises(ValueError, match="dtype int32"):
        engine((a, a.astype(np.int32)))
    with pytest.raises(ValueError, match="the example"):
        engine(a)
    with pytest.raises(ValueError, match="the example"):
        engine((a, None))


def test_no_images():
    engine = compiled(lambda a: jax.nn.relu(a), numbers(2, 3))
    assert engine((numbers(0, 3),)).shape == (0, 3)
