"""A convolution with its norm in one pass, against its steps one after the other."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsparse.sparse import Epilogue, Window, sparse_conv, sparse_conv_norm, to_sparse

WINDOW = Window((3, 3), (2, 1), ((1, 0), (1, 1)))
CLOSE = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)


def drawn(layout, batch, has_shortcut):
    rng = np.random.default_rng(0)
    normal = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    images, kernel = normal(batch, 6, 5, 4), normal(3, 3, 4, 7)
    values, positions = to_sparse(kernel, jnp.asarray(rng.random(kernel.shape) < 0.2), capacity=80)
    shortcut = normal(batch, 3, 5, 7) if has_shortcut else None
    if layout == "CHWN":
        images = images.transpose(3, 1, 2, 0)
        shortcut = None if shortcut is None else shortcut.transpose(3, 1, 2, 0)
    return images, values, positions, Epilogue(normal(7), normal(7), normal(7), shortcut)


def in_steps(images, values, positions, epilogue, *, relu, layout):
    x = sparse_conv(images, values, positions, WINDOW, layout=layout)
    shape = (1, 1, 1, -1) if layout == "NHWC" else (-1, 1, 1, 1)
    mean, factor, bias = (array.reshape(shape) for array in epilogue[:3])
    y = (x - mean) * factor + bias
    y = y if epilogue.shortcut is None else y + epilogue.shortcut
    return jnp.maximum(y, 0) if relu else y


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("has_shortcut", [False, True])
@pytest.mark.parametrize(("layout", "batch"), [("NHWC", 3), ("CHWN", 3), ("CHWN", 17)])
def test_one_pass_gives_what_the_steps_give(layout, batch, has_shortcut, relu, engine):
    images, values, positions, epilogue = drawn(layout, batch, has_shortcut)
    fused = functools.partial(sparse_conv_norm, window=WINDOW, relu=relu, layout=layout)
    found = jax.jit(fused)(images, values, positions, epilogue=epilogue)
    CLOSE(found, in_steps(images, values, positions, epilogue, relu=relu, layout=layout))


def test_gradients(engine):
    images, values, positions, epilogue = drawn("NHWC", 3, True)
    args = (images, values, epilogue)
    fused = lambda images, values, epilogue: sparse_conv_norm(
        images, values, positions, WINDOW, epilogue, relu=True
    )
    steps = lambda images, values, epilogue: in_steps(
        images, values, positions, epilogue, relu=True, layout="NHWC"
    )
    out, pull = jax.vjp(fused, *args)
    expected, their_pull = jax.vjp(steps, *args)
    CLOSE(out, expected)
    jax.tree.map(CLOSE, pull(out), their_pull(out))


def test_layers_of_nothing(engine):
    images, values, positions, epilogue = drawn("NHWC", 3, False)
    found = sparse_conv_norm(images[:0], values, positions, WINDOW, epilogue)
    assert found.shape == (0, 3, 5, 7)
    none, nowhere = to_sparse(jnp.ones((3, 3, 4, 7)), jnp.zeros((3, 3, 4, 7), bool))
    found = sparse_conv_norm(images, none, nowhere, WINDOW, epilogue)
    expected = jnp.broadcast_to(epilogue.bias - epilogue.mean * epilogue.factor, found.shape)
    CLOSE(found, expected)


def test_what_does_not_fit_is_named():
    images, values, positions, epilogue = drawn("NHWC", 3, False)
    for name, array, message in [
        ("mean", jnp.zeros(6), r"mean is float32\(6,\); it must be float32\(7,\)"),
        ("bias", jnp.zeros(7, int), r"bias is int32\(7,\); it must be float32\(7,\)"),
        ("shortcut", images, r"shortcut is float32\(3, 6, 5, 4\); it must be float32\(3, 3, 5, 7"),
    ]:
        with pytest.raises(ValueError, match=message):
            sparse_conv_norm(images, values, positions, WINDOW, epilogue._replace(**{name: array}))
