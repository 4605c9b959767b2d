"""Linen models executed by their active weights, beside the same models with masked kernels."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import jaxsparse
from jaxsparse.nn import cifar_resnet
from jaxsparse.nn.sparse import sparse_execution
from jaxsparse.paths import leaves_by_path, prunable_leaves, with_leaves
from jaxsparse.sparse import to_dense, to_sparse


class Model(nn.Module):
    """Layers of all kinds, with a smooth activation: near 0 a ReLU would magnify rounding."""

    @nn.compact
    def __call__(self, x):
        x = nn.softplus(nn.Conv(8, (3, 3), padding="SAME", name="a")(x))
        x = nn.softplus(nn.Conv(16, (3, 3), strides=2, padding="SAME", use_bias=False, name="b")(x))
        x = nn.softplus(nn.Conv(16, (3, 2), (1, 2), "VALID", feature_group_count=4, name="c")(x))
        x = nn.softplus(nn.Conv(8, (2, 2), padding=((1, 0), 2), kernel_dilation=2, name="d")(x))
        return nn.Dense(5, name="e")(x.reshape(x.shape[0], -1))


def own_product(*args, **kwargs):
    return jax.lax.dot_general(*args, **kwargs)


def own_convolution(*args, **kwargs):
    return jax.lax.conv_general_dilated(*args, **kwargs)


class Standardised(nn.Conv):
    """A convolution that computes something else."""


@pytest.fixture(scope="module")
def drawn():
    """A model with masks, its params in both forms, and images."""
    model = Model()
    images = jax.random.normal(jax.random.key(0), (6, 9, 9, 3))
    params = jax.jit(model.init)(jax.random.key(1), images)["params"]
    masks = jaxsparse.rigl(sparsity=0.7, total_steps=10, update_interval=2).init(
        jax.random.key(2), params
    )
    params = jaxsparse.apply_masks(params, masks)
    kernels, kept = prunable_leaves(params), prunable_leaves(masks)
    pairs = {path: to_sparse(kernels[path], kept[path]) for path in kernels}
    values = with_leaves(params, {path: values for path, (values, _) in pairs.items()})
    return (
        model,
        images,
        params,
        values,
        {path: positions for path, (_, positions) in pairs.items()},
    )


def test_outputs_and_gradients_of_a_whole_model(drawn):
    model, images, params, values, positions = drawn

    def sparse(values, positions):
        with sparse_execution(positions):
            return model.apply({"params": values}, images)

    expected, their_pull = jax.vjp(lambda params: model.apply({"params": params}, images), params)
    found, pull = jax.vjp(lambda values: jax.jit(sparse)(values, positions), values)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
    close(found, expected)
    weights = jax.random.normal(jax.random.key(3), found.shape)
    ours, theirs = leaves_by_path(pull(weights)[0]), leaves_by_path(their_pull(weights)[0])
    for path, grad in ours.items():
        if path in positions:
            mask = to_dense(jnp.ones_like(grad), positions[path])
            close(to_dense(grad, positions[path]), theirs[path] * mask)
        else:
            close(grad, theirs[path])


def test_layers_without_positions_are_as_they_were(drawn):
    model, images, params, values, positions = drawn
    only = {path: positions[path] for path in ("b/kernel", "e/kernel")}
    mixed = with_leaves(params, {path: leaves_by_path(values)[path] for path in only})
    with sparse_execution(only):
        found = model.apply({"params": mixed}, images)
    expected = model.apply({"params": params}, images)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (nn.Conv(4, (3,)), "kernel has 1 spatial axes, where sparse layers have two"),
        (
            nn.Conv(4, (3, 3), padding="CIRCULAR"),
            "kernel has padding='CIRCULAR'; it cannot be exec",
        ),
        (nn.Conv(4, (3, 3), dtype=jnp.bfloat16), "kernel has dtype="),
        (nn.Dense(4, dtype=jnp.bfloat16), "kernel has dtype="),
        (nn.Dense(4, dot_general=own_product), "kernel has a product of its own"),
        (
            nn.Conv(4, (3, 3), conv_general_dilated=own_convolution),
            "kernel has a product of its own",
        ),
        (Standardised(4, (3, 3)), "kernel has no sparse form, for a Standardised; leave it out"),
        (
            nn.ConvTranspose(4, (3, 3)),
            "kernel has no sparse form, for a ConvTranspose; leave it out",
        ),
    ],
)
def test_what_has_no_sparse_form_is_named(layer, message):
    x = jnp.ones((2, 5, 4)) if layer.__class__ is nn.Conv and len(layer.kernel_size) == 1 else None
    x = jnp.ones((2, 5, 5, 4)) if x is None else x
    kernel = layer.init(jax.random.key(0), x)["params"]["kernel"]
    values, positions = to_sparse(kernel, jnp.ones(kernel.shape, bool))
    with pytest.raises(ValueError, match=message), sparse_execution({"kernel": positions}):
        layer.apply({"params": {"kernel": values, "bias": jnp.zeros(4)}}, x)


def test_inputs_that_are_not_float32_are_refused_by_the_layer(drawn):
    model, images, _, values, positions = drawn
    with (
        pytest.raises(ValueError, match="^a/kernel: images have dtype uint8; they must be float32"),
        sparse_execution(positions),
    ):
        model.apply({"params": values}, images.astype(jnp.uint8))
    kernel, where = to_sparse(jnp.ones((4, 2)), jnp.ones((4, 2), bool))
    dense = nn.Dense(2, use_bias=False)
    for x, message in (
        (jnp.ones((3, 4), jnp.bfloat16), "^kernel: images have dtype bfloat16; they must be float"),
        (
            jnp.ones((3, 5)),
            r"^kernel: x has shape \(3, 5\); the kernel of shape \(4, 2\) takes non",
        ),
    ):
        with pytest.raises(ValueError, match=message), sparse_execution({"kernel": where}):
            dense.apply({"params": {"kernel": kernel}}, x)


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("layout", ["NHWC", "CHWN"])
def test_our_networks_name_the_layer_that_gets_pixels(layout, train):
    network = cifar_resnet(8, width=4, layout=layout)
    pixels = jnp.zeros((2, 8, 8, 3), jnp.uint8)
    variables = network.init(jax.random.key(0), pixels)
    kernel = variables["params"]["conv1"]["kernel"]
    values, where = to_sparse(kernel, jnp.ones(kernel.shape, bool))
    params = with_leaves(variables["params"], {"conv1/kernel": values})
    with (
        pytest.raises(ValueError, match="^conv1/kernel: images have dtype uint8; they must be fl"),
        sparse_execution({"conv1/kernel": where}),
    ):
        network.apply({**variables, "params": params}, pixels, train=train, mutable=["batch_stats"])


def test_params_of_another_form_are_named(drawn):
    model, images, params, _, positions = drawn
    with (
        pytest.raises(ValueError, match=r"a/kernel has shape \(3, 3, 3, 8\) in params, the capac"),
        sparse_execution(positions),
    ):
        model.apply({"params": params}, images)
