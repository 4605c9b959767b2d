"""Exported forward passes: the model's own bits, any batch, a file like the active weights."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.training.train_state import TrainState

import jaxsparse
from jaxsparse.nn import (
    BasicBlock,
    DyReLUOptions,
    LeNet5,
    phase_out,
    with_beta,
    without_dyrelu,
)
from jaxsparse.nn.resnet import ResNet
from tests.leaves import bits
from tests.trees import fill, map_prunable


def test_every_leaf_comes_back_to_the_bit():
    params = {
        "sparse": np.zeros((5, 4), np.float32),
        "half": np.array([[1.0, 0.0], [2.0, 0.0]], np.float32),
        "bfloat16": np.zeros((3, 3, 2), jnp.bfloat16),
        "int": np.zeros(9, np.int32),
        "bool": np.arange(8) == 3,
        "empty": np.zeros((0, 3), np.float32),
        "zeros": np.zeros(3, np.float16),
        "scalar": np.float32(3.0),
    }
    params["sparse"][[0, 2, 3, 4], [1, 0, 3, 3]] = [np.nan, -0.0, -np.inf, 1e-45]
    params["bfloat16"][1, 2, 1], params["int"][4] = 0.1, -7
    exported = jaxsparse.export_forward(lambda p: p, params)
    assert jax.tree.map(bits, exported.call()) == jax.tree.map(bits, params)


def test_a_network_at_95_percent(tmp_path):
    pytest.importorskip("flatbuffers")
    model, rng = LeNet5(), np.random.default_rng(0)
    images = jnp.asarray(rng.normal(size=(3, 28, 28, 1)), jnp.float32)
    params = fill(jax.eval_shape(model.init, jax.random.key(0), images)["params"], seed=0)
    sparse = map_prunable(lambda w: w * (rng.random(w.shape) < 0.05), params)
    forward = lambda params, x: model.apply({"params": params}, x)

    path = tmp_path / "forward.bin"
    exported = jaxsparse.export_forward(forward, sparse, images)
    assert exported.platforms == ("cpu", "cuda", "tpu")
    path.write_bytes(exported.serialize())
    again = jax.jit(jax.export.deserialize(bytearray(path.read_bytes())).call)
    for batch in (3, 1):  # neither knows the other's size
        logits = again(images[:batch])
        # As constants of a compiled function; with arguments XLA may sum in another order.
        assert bits(logits) == bits(jax.jit(lambda x: forward(sparse, x))(images[:batch]))
        np.testing.assert_allclose(logits, jax.jit(forward)(sparse, images[:batch]), rtol=1e-4)

    num_active = jaxsparse.num_active(jaxsparse.masks_from_params(sparse))
    dense = jaxsparse.export_forward(forward, params, images)
    assert path.stat().st_size < 8 * num_active + 15_000 < 60_000
    assert len(dense.serialize()) > 4 * 61_706


def test_a_network_that_shares_weights_after_its_dyrelus():
    model = ResNet((3,), BasicBlock, 4, stem="cifar", dyrelu=DyReLUOptions(), num_owners=2)
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.normal(size=(2, 8, 8, 3)), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    variables = jax.tree.map(jnp.abs, fill(shapes, seed=0))
    params = map_prunable(lambda w: w * (rng.random(w.shape) < 0.2), variables.pop("params"))
    state = TrainState.create(apply_fn=model.apply, params=params, tx=optax.identity())
    relu, left = phase_out(model, state)
    rest = without_dyrelu(variables)
    forward = lambda params, x: relu.apply({"params": params, **rest}, x)
    exported = jaxsparse.export_forward(forward, left.params, images, platforms=["cpu"])
    logits = jax.jit(exported.call)(images)
    assert bits(logits) == bits(jax.jit(lambda x: forward(left.params, x))(images))
    at_zero = {"params": params, **with_beta(variables, 0.0)}
    np.testing.assert_allclose(logits, jax.jit(model.apply)(at_zero, images), rtol=1e-5)
    assert np.ptp(logits) > 0


def test_shapes_of_inputs():
    forward = lambda params, x, extra: (x["a"] + x["b"]).sum() + params * extra
    x = {"a": jnp.ones((2, 3)), "b": jax.ShapeDtypeStruct((2, 3), jnp.float32)}
    exported = jaxsparse.export_forward(forward, jnp.float32(2.0), x, jnp.float32(1.0))
    assert [str(aval.shape) for aval in exported.in_avals] == ["(batch, 3)", "(batch, 3)", "()"]
    fixed = jaxsparse.export_forward(
        forward, jnp.float32(2.0), x, jnp.float32(1.0), symbolic_batch=False, platforms=["cpu"]
    )
    assert [aval.shape for aval in fixed.in_avals] == [(2, 3), (2, 3), ()]
    assert fixed.platforms == ("cpu",)


def test_symbolic_shapes_of_ones_own():
    rows, columns = jax.export.symbolic_shape("rows, columns")
    spec = jax.ShapeDtypeStruct((rows, columns), jnp.float32)
    exported = jaxsparse.export_forward(lambda p, x: x * p, jnp.float32(2.0), spec)
    assert str(exported.in_avals[0].shape) == "(rows, columns)"
    np.testing.assert_array_equal(exported.call(jnp.ones((2, 5))), np.full((2, 5), 2.0))


@pytest.mark.parametrize("scale", [2.0, 2, jnp.asarray(2.0)], ids=["float", "int", "weak"])
def test_weak_types_stay_weak(scale):
    params = {"kernel": jnp.ones((3, 3), jnp.bfloat16), "scale": scale}
    forward = lambda p, x: x @ p["kernel"] * p["scale"]
    exported = jaxsparse.export_forward(forward, params, jnp.ones((1, 3), jnp.bfloat16))
    logits = exported.call(jnp.ones((2, 3), jnp.bfloat16))
    assert logits.dtype == jnp.bfloat16
    np.testing.assert_array_equal(logits, np.full((2, 3), 6.0))


@pytest.mark.parametrize("platforms", [("gpu",), (), "cpu", ("cpu", "metal")])
def test_platforms_that_there_are_not(platforms):
    with pytest.raises(ValueError, match="platforms .* must be one or more of cpu, cuda, rocm, t"):
        jaxsparse.export_forward(lambda p, x: x, {}, jnp.ones(1), platforms=platforms)
