"""Our networks in both layouts: the same variables give the same results, in training and after."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsparse
from jaxsparse.nn import VGG, WideResNet, cifar_resnet, resnet, sparse_execution
from jaxsparse.sparse import compress_leaves, expand_leaves, find_positions
from tests.networks import Smooth

NETWORKS = {
    "resnet8": (cifar_resnet(8, width=4), 8),
    "resnet18": (resnet(18, width=4, num_classes=5), 32),
    "wide": (WideResNet(10, 1), 8),
    "vgg": (VGG(16), 16),
    "smooth": (Smooth(num_classes=5), 8),
}


@functools.cache
def drawn(name):
    """A network, its variables with statistics that are not trivial, and images."""
    model, side = NETWORKS[name]
    images = jax.random.normal(jax.random.key(0), (17, side, side, 3))
    variables = jax.jit(model.init)(jax.random.key(1), images)
    apply = functools.partial(model.apply, train=True, mutable=["batch_stats"])
    _, updated = jax.jit(apply)(variables, images)
    return model, {**variables, **updated}, images


@pytest.mark.parametrize("name", NETWORKS)
def test_variables_are_the_same(name):
    model, side = NETWORKS[name]
    image = jax.ShapeDtypeStruct((1, side, side, 3), np.float32)
    shapes = [
        jax.eval_shape(network.init, jax.random.key(1), image)
        for network in (model, model.clone(layout="CHWN"))
    ]
    chex.assert_trees_all_equal(*shapes)


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("name", ["resnet8", "resnet18", "wide"])
def test_both_layouts_give_the_same(name, train):
    model, variables, images = drawn(name)
    found = []
    for network in (model, model.clone(layout="CHWN")):
        apply = functools.partial(network.apply, train=train, mutable=["batch_stats"])
        found.append(jax.jit(apply)(variables, images))
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4)
    jax.tree.map(close, *found)


def test_vgg_in_both_layouts():
    model, variables, images = drawn("vgg")
    major = model.clone(layout="CHWN")
    expected, found = (
        jax.jit(model.apply)(variables, images),
        jax.jit(major.apply)(variables, images),
    )
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_initial_statistics_are_left_alone():
    model = cifar_resnet(8, width=4, layout="CHWN")
    init = functools.partial(model.init, train=True)
    variables = jax.jit(init)(jax.random.key(0), jax.random.normal(jax.random.key(1), (2, 8, 8, 3)))
    assert (variables["batch_stats"]["norm1"]["mean"] == 0).all()


def test_channel_major_images_are_float32():
    model = cifar_resnet(8, width=4, layout="CHWN", dtype=jax.numpy.bfloat16)
    image = jax.ShapeDtypeStruct((1, 8, 8, 3), np.float32)
    with pytest.raises(ValueError, match="images are bfloat16; layout CHWN takes float32"):
        jax.eval_shape(model.init, jax.random.key(0), image)


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("layout", ["NHWC", "CHWN"])
def test_a_network_by_its_active_weights(layout, train, engine):
    model, variables, images = drawn("resnet8")
    params = variables["params"]
    masks = jax.tree.map(lambda x: x > 0.1 if x.ndim > 1 else x == x, params)
    masked = jaxsparse.apply_masks(params, masks)
    positions = find_positions(masks)
    short = {**variables, "params": compress_leaves(params, positions)}

    def sparse(short, positions):
        with sparse_execution(positions):
            apply = model.clone(layout=layout).apply
            return apply(short, images, train=train, mutable=["batch_stats"])

    found = jax.jit(sparse)(short, positions)
    apply = functools.partial(model.apply, train=train, mutable=["batch_stats"])
    expected = jax.jit(apply)({**variables, "params": masked}, images)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4)
    jax.tree.map(close, found, expected)
    assert len(positions) == 10


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("layout", ["NHWC", "CHWN"])
def test_outputs_and_gradients_of_a_smooth_network(layout, train, engine):
    model, variables, images = drawn("smooth")
    params, statistics = variables["params"], variables["batch_stats"]
    masks = jax.tree.map(lambda x: x > 0.1 if x.ndim > 1 else x == x, params)
    positions = find_positions(masks)

    def apply(network, params):
        variables = {"params": params, "batch_stats": statistics}
        outputs, _ = network.apply(variables, images, train=train, mutable=["batch_stats"])
        return jnp.sin(outputs).sum(), outputs

    def sparse(short, positions):
        with sparse_execution(positions):
            return apply(model.clone(layout=layout), short)

    grad = functools.partial(jax.grad, has_aux=True)
    theirs = jax.jit(grad(functools.partial(apply, model)))
    grads, outputs = theirs(jaxsparse.apply_masks(params, masks))
    found, ours = jax.jit(grad(sparse))(compress_leaves(params, positions), positions)

    def close(ours, theirs):
        scale = np.abs(theirs).max()
        np.testing.assert_allclose(ours / scale, theirs / scale, rtol=0, atol=1e-5)

    close(ours, outputs)
    jax.tree.map(close, expand_leaves(found, positions), jaxsparse.apply_masks(grads, masks))
    assert len(positions) == 4
