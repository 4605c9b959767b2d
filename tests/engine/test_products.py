"""Convolutions and matrix products with constants are those of JAX."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsparse.engine import products
from tests.engine.agreement import assert_agree, compiled, numbers

IMAGES = numbers(17, 7, 6, 4)


def weights(*shape: int) -> Any:
    """A quarter of them active; the first output channel and the first input channel are dead."""
    found = numbers(*shape, seed=1) * (np.random.default_rng(2).random(shape) < 0.25)
    found[..., 0] = 0
    if shape[-2] > 1:
        found[..., 0, :] = 0
    return found


def convolution(*kernel, out=5, strides=(1, 1), padding: Any = "SAME", dilation=(1, 1), groups=1):
    """A convolution of images [n, y, x, 4]."""
    w = weights(*kernel, 4 // groups, out)
    return lambda x: jax.lax.conv_general_dilated(
        x,
        w,
        strides,
        padding,
        rhs_dilation=dilation,
        feature_group_count=groups,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def test_convolutions():
    assert_agree(
        {
            "one pixel": convolution(1, 1),
            "one pixel, strides": convolution(1, 1, strides=(2, 3), padding="VALID"),
            "same": convolution(3, 3),
            "valid": convolution(3, 2, padding="VALID"),
            "even kernel": convolution(2, 4),
            "strides": convolution(3, 3, strides=(2, 2)),
            "strides, valid": convolution(3, 2, strides=(3, 2), padding="VALID"),
            "stride of the rows": convolution(3, 3, strides=(2, 1)),
            "strides beyond the kernel": convolution(2, 1, strides=(3, 4), padding="VALID"),
            "asymmetric": convolution(3, 3, padding=[(2, 0), (0, 3)]),
            "far beyond the image": convolution(3, 3, padding=[(9, 8), (0, 11)]),
            "dilation": convolution(3, 3, dilation=(2, 1)),
            "dilation, strides": convolution(3, 2, dilation=(2, 3), strides=(2, 2)),
            "whole image": convolution(7, 6, padding="VALID"),
            "groups": convolution(3, 3, out=6, groups=2),
            "depthwise": convolution(3, 3, out=4, groups=4),
            "depthwise, two each": convolution(3, 3, out=8, groups=4, strides=(2, 2)),
            "no weight": lambda x: convolution(3, 3)(x) * 0.0 + 1.0,
        },
        IMAGES,
    )


def test_negative_padding():
    cropped = lambda x: convolution(3, 3, padding="VALID")(
        jnp.pad(x, [(0, 0), (0, 1), (0, 2), (0, 0)])[:, 1:]
    )
    engine = compiled(convolution(3, 3, padding=[(-1, 1), (0, 2)]), IMAGES)
    np.testing.assert_allclose(engine((IMAGES,)), jax.jit(cropped)(IMAGES), rtol=1e-5, atol=1e-5)


def test_transposed_convolution_is_left_to_xla():
    w = weights(3, 3, 4, 5)
    engine = compiled(lambda x: jax.lax.conv_transpose(x, w, (2, 2), "SAME"), IMAGES)
    assert "transposed convolution" in str(engine)


def test_channels_first():
    conv = lambda strides, w: lambda x: jax.lax.conv_general_dilated(x, w, strides, "SAME")
    w, after = weights(5, 4, 3, 3), weights(2, 5, 1, 3)
    assert_agree(
        {
            "one": conv((1, 1), w),
            "two": lambda x: conv((2, 1), after)(jax.nn.relu(conv((1, 2), w)(x))),
            "flat": lambda x: conv((2, 2), w)(x).reshape(len(x), -1),
        },
        np.ascontiguousarray(IMAGES.transpose(0, 3, 1, 2)),
    )


def test_one_axis():
    w = weights(3, 4, 6)
    conv = lambda strides, padding, dilation: (
        lambda x: jax.lax.conv_general_dilated(
            x, w, strides, padding, rhs_dilation=dilation, dimension_numbers=("NWC", "WIO", "NWC")
        )
    )
    assert_agree(
        {
            "same": conv((1,), "SAME", (1,)),
            "strides": conv((2,), "VALID", (1,)),
            "causal": conv((1,), [(4, 0)], (2,)),
            "whole": conv((1,), "VALID", (4,)),
        },
        numbers(17, 9, 4),
    )


def test_matrix_products():
    w, wide, two = weights(6, 5), weights(4, 9), numbers(6, 4, 3, seed=3)
    empty = np.zeros((4, 3), np.float32)
    assert_agree(
        {
            "channels": lambda x: x @ wide,
            "columns": lambda x: jnp.einsum("nyxc,xk->nyck", x, w),
            "rows": lambda x: jnp.einsum("nyxc,yk->nkxc", x, numbers(7, 2)),
            "columns and channels": lambda x: jnp.einsum("nyxc,xck->nyk", x, two),
            "from the left": lambda x: jnp.einsum("kc,nyxc->nyxk", wide.T, x),
            "all": lambda x: jnp.einsum("nyxc,yxck->nk", x, weights(7, 6, 4, 3)),
            "flat": lambda x: x.reshape(len(x), -1) @ weights(7 * 6 * 4, 10),
            "none": lambda x: x.reshape(len(x), -1, 4) @ empty + 2.0,
        },
        IMAGES,
    )


def test_vectors():
    heads = numbers(6, 2, 4, seed=4)
    assert_agree(
        {
            "dense": lambda x: x @ weights(20, 7) + numbers(1, 7),
            "one": lambda x: x @ weights(20, 2)[:, 1:],
            "several axes": lambda x: jnp.einsum("nc,chd->nhd", x[:, :6], heads),
            "back": lambda x: jnp.einsum(
                "nhd,chd->nc", jnp.einsum("nc,chd->nhd", x[:, :6], heads), heads
            ),
        },
        numbers(17, 20),
    )


def test_products_of_data_are_left_to_xla():
    engine = compiled(lambda x: jnp.einsum("nyc,nzc->nyz", x, x), numbers(3, 5, 4))
    assert "two arrays that depend on the inputs" in str(engine) or "batch of products" in str(
        engine
    )
    engine = compiled(lambda x: jnp.ones((2, len(x))) @ x, numbers(1, 4))
    assert "adds up over the images" in str(engine)


def test_too_many_taps_are_left_to_xla(monkeypatch):
    monkeypatch.setattr(products, "MOST_TAPS", 10)
    assert "active weights" in str(compiled(convolution(3, 3), IMAGES))
    assert "active products" in str(
        compiled(lambda x: x @ np.ones((20, 6), np.float32), numbers(2, 20))
    )


@pytest.mark.parametrize("channels", [1, 4, 5, 16])
def test_planes_with_the_same_taps(channels):
    """Four planes that read the same are made together; the others alone."""
    w: Any = numbers(3, 3, 4, channels, seed=channels)
    conv = lambda x: jax.lax.conv_general_dilated(
        x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    assert_agree({"dense": conv}, IMAGES, batches=(17, 1))
