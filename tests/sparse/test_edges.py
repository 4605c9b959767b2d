"""Empty layers equal XLA's; arguments that do not fit together raise errors and never crash."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxsparse.sparse import (
    Epilogue,
    Positions,
    Window,
    check_positions,
    sparse_conv,
    sparse_conv_norm,
    sparse_dot,
    to_dense,
    to_mask,
    to_sparse,
)
from jaxsparse.sparse.norm import batch_norm

SAME = ((1, 1), (1, 1))
# (images, height, width, input channels, output channels), window.
NOTHING = {
    "no image": ((0, 5, 5, 4, 6), Window((3, 3), padding=SAME)),
    "no input channel": ((16, 5, 5, 0, 6), Window((3, 3), padding=SAME)),
    "no output channel": ((16, 5, 5, 4, 0), Window((3, 3), padding=SAME)),
    "no channel": ((2, 5, 5, 0, 0), Window((3, 3), padding=SAME)),
    "no pixel, but padding": ((16, 0, 5, 4, 6), Window((3, 3), padding=((2, 1), (1, 1)))),
    "no output pixel": ((16, 2, 5, 4, 6), Window((3, 3))),
    "no output pixel, stride": ((1, 4, 1, 4, 6), Window((3, 3), (2, 2), ((0, 0), (0, 0)), (2, 1))),
}


@pytest.mark.parametrize("layout", ["NHWC", "CHWN"])
@pytest.mark.parametrize("case", NOTHING)
def test_a_convolution_of_nothing(case, layout, engine):
    (batch, height, width, inputs, outputs), window = NOTHING[case]
    images = jnp.ones((batch, height, width, inputs))
    images = images if layout == "NHWC" else images.transpose(3, 1, 2, 0)
    kernel = jnp.ones((*window.taps, inputs, outputs))
    values, positions = to_sparse(kernel, kernel > 0)
    dense = lambda x, w: lax.conv_general_dilated(
        x,
        w,
        window.strides,
        window.padding,
        rhs_dilation=window.dilation,
        dimension_numbers=(layout, "HWIO", layout),
    )
    expected, dense_pull = jax.vjp(dense, images, kernel)
    sparse = lambda x, v: sparse_conv(x, v, positions, window, layout=layout)
    out, pull = jax.vjp(sparse, images, values)
    np.testing.assert_array_equal(out, expected)
    (grad_images, grad_values), (images_ref, kernel_ref) = pull(out + 1), dense_pull(expected + 1)
    np.testing.assert_array_equal(grad_images, images_ref)
    np.testing.assert_array_equal(to_dense(grad_values, positions), kernel_ref)


@pytest.mark.parametrize("capacity", [0, 5])
@pytest.mark.parametrize("batch", [1, 16])
def test_an_empty_mask(batch, capacity, engine):
    images = jnp.ones((4, 5, 5, batch))
    kernel = jnp.ones((3, 3, 4, 6))
    values, positions = to_sparse(kernel, kernel < 0, capacity=capacity)
    conv = lambda x, v: sparse_conv(x, v, positions, Window((3, 3)), layout="CHWN")
    out, pull = jax.vjp(conv, images, values)
    assert out.shape == (6, 3, 3, batch) and not out.any()
    grad_images, grad_values = pull(out + 1)
    assert grad_images.shape == images.shape and not grad_images.any()
    assert grad_values.shape == (capacity,) and not grad_values.any()
    assert not to_mask(positions).any()


@pytest.mark.parametrize("shape", [(0, 4, 6), (2, 0, 4, 6), (3, 0, 6), (3, 4, 0), (0, 0, 0)])
def test_a_dense_layer_of_nothing(shape, engine):
    *batch, inputs, outputs = shape
    x, kernel = jnp.ones((*batch, inputs)), jnp.ones((inputs, outputs))
    values, positions = to_sparse(kernel, kernel > 0)
    np.testing.assert_array_equal(sparse_dot(x, values, positions), x @ kernel)


@pytest.mark.parametrize("shape", [(0, 4), (3, 0), (3, 2, 0), (0, 0)])
def test_a_norm_of_nothing(shape, engine):
    x, scale = jnp.ones(shape), jnp.ones(shape[0])
    norm = lambda *args: batch_norm(*args, relu=True)
    (y, mean, variance), pull = jax.vjp(norm, x, scale, scale, x)
    assert y.shape == shape and mean.shape == variance.shape == scale.shape
    assert np.isnan(mean).all() and np.isnan(variance).all()  # like jnp.mean of an empty array
    grad_x, grad_scale, grad_bias, grad_shortcut = pull((y, mean, variance))
    assert grad_x.shape == grad_shortcut.shape == shape
    np.testing.assert_array_equal([grad_scale, grad_bias], np.zeros((2, shape[0])))


def conv_with(flat, num, shape=(1, 1, 4, 4), values=None, images=None, **kwargs):
    positions = Positions(jnp.asarray(flat), jnp.asarray(num), shape)
    values = jnp.ones(len(flat)) if values is None else values
    images = jnp.ones((2, 3, 3, 4)) if images is None else images
    return sparse_conv(images, values, positions, **{"window": Window((1, 1)), **kwargs})


@pytest.mark.parametrize("layout", ["NHWC", "CHWN"])
@pytest.mark.parametrize(
    ("flat", "num", "known", "found"),
    [
        (
            [0, 16],
            2,
            r"position 16 is not in \[0, 16\)",
            r"position 16 of nonzero 1 is not in \[0, 16\)",
        ),
        (
            [-1, 5],
            2,
            r"position -1 is not in \[0, 16\)",
            r"position -1 of nonzero 0 is not in \[0, 16\)",
        ),
        ([2**31 - 1, -(2**31)], 2, "position 2147483647", "position 2147483647 of nonzero 0"),
        ([0, 5], 3, "3 active weights", "3 nonzeros, capacity for 2 values and 2 positions"),
        ([0, 5], -1, "-1 active weights", "-1 nonzeros, capacity for 2 values"),
        (
            [0, 5],
            2**31 - 1,
            "2147483647 active weights",
            "2147483647 nonzeros, capacity for 2 values",
        ),
    ],
)
def test_positions_that_are_none(flat, num, known, found, layout, engine):
    images = jnp.ones((4, 3, 3, 16)) if layout == "CHWN" else jnp.ones((2, 3, 3, 4))
    with pytest.raises(ValueError, match=known):
        conv_with(flat, num, images=images, layout=layout)
    # XLA drops the outputs, which are not used, so the error comes from the backward pass.
    conv = lambda x, v, n: conv_with(flat, n, images=x, values=v, layout=layout)
    grad = jax.grad(lambda *args: conv(*args).sum(), (0, 1))
    for function in (conv, grad):
        call = lambda function=function: jax.jit(function)(images, jnp.ones(2), num)
        if engine == "compiled":
            with pytest.raises(jax.errors.JaxRuntimeError, match=found):
                jax.block_until_ready(call())
        else:
            assert all(np.isnan(x).all() for x in jax.tree.leaves(call()))


def test_positions_that_are_none_before_a_norm(engine):
    positions = Positions(jnp.array([0, 16]), jnp.array(2), (1, 1, 4, 4))
    epilogue = Epilogue(*jnp.ones((3, 4)))
    with pytest.raises(ValueError, match=r"position 16 is not in \[0, 16\)"):
        sparse_conv_norm(jnp.ones((2, 3, 3, 4)), jnp.ones(2), positions, Window((1, 1)), epilogue)


def test_positions_beyond_num_are_not_looked_at(engine):
    out = conv_with([3, -7, 99], 1)
    np.testing.assert_array_equal(out, conv_with([3], 1))


def test_any_order_and_the_same_twice(engine):
    """Positions may come in any order and more than once; equal ones are added up."""
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.normal(size=(16, 3, 3, 4)), jnp.float32)
    flat, values = np.array([9, 3, 9, 0, 15]), jnp.asarray(rng.normal(size=5), jnp.float32)
    kernel = np.zeros(16)
    np.add.at(kernel, flat, values)
    kernel = kernel.reshape(4, 4).T  # rows are output channels
    out, pull = jax.vjp(lambda x, v: conv_with(flat, 5, values=v, images=x), images, values)
    np.testing.assert_allclose(out, images @ kernel, rtol=1e-5, atol=1e-6)
    grad_images, grad_values = pull(out)
    np.testing.assert_allclose(grad_images, out @ kernel.T, rtol=1e-5, atol=1e-5)
    of_kernel = jnp.einsum("nyxi,nyxo->oi", images, out).ravel()
    np.testing.assert_allclose(grad_values, of_kernel[flat], rtol=1e-5, atol=1e-4)


def test_memory_that_is_short_is_an_error(compiled):
    """Taps that are 2**24 apart on both axes need planes of 2**48 floats."""
    far = 2**24
    window = Window((2, 2), padding=((far, 0), (far, 0)), dilation=(far, far))
    with pytest.raises(jax.errors.JaxRuntimeError, match="no memory for what the call works on"):
        jax.block_until_ready(conv_with([0, 9], 2, (2, 2, 4, 4), window=window))


def test_a_stride_beyond_the_images(engine):
    out = conv_with(range(16), 16, window=Window((1, 1), (2**40, 2**30)))
    np.testing.assert_array_equal(out, np.full((2, 1, 1, 4), 4))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"flat": [0.5]}, r"flat is float32\(1,\); it must be int32 and have 1 axes"),
        ({"flat": [[1]]}, r"flat is int32\(1, 1\)"),
        ({"num": [1]}, r"num is int32\(1,\); it must be int32 and have 0 axes"),
        ({"num": True}, r"num is bool\(\)"),
        ({"shape": (1, 1, 4, 2**29)}, "a leaf of 2147483648 entries; at most 2147483647"),
        ({"shape": (4, 4)}, r"a kernel of shape \(4, 4\) has no window of \(1, 1\) taps"),
        ({"shape": (1, 1, 2, 4)}, "images with 4 channels; a kernel of shape"),
        ({"values": jnp.ones(2)}, r"values have shape \(2,\), their positions \(1,\)"),
        ({"values": jnp.ones((1, 1))}, r"values have shape \(1, 1\)"),
        ({"values": jnp.ones(1, int)}, "values have dtype int32; they must be float32"),
        ({"images": jnp.ones((2, 3, 3, 4), jnp.bfloat16)}, "images have dtype bfloat16"),
        ({"images": jnp.ones((3, 3, 4))}, r"images have shape \(3, 3, 4\); they must have four"),
        ({"layout": "NCHW"}, "layout 'NCHW' must be NHWC or CHWN"),
        ({"window": Window((1, 1), (0, 1))}, "strides 0 must be a whole number, at least 1"),
        ({"window": Window((1, 1), dilation=(1, 0))}, "dilation 0 must be a whole number"),
        ({"window": Window((1, 1), padding=((0, -1), (0, 0)))}, "padding -1 must be a whole"),
        ({"window": Window((3, 3))}, r"has no window of \(3, 3\) taps"),
        ({"window": Window((1, 1), groups=3)}, "3 groups do not divide 4 input and 4 output"),
        ({"window": Window((1, 1), groups=0)}, "groups 0 must be a whole number, at least 1"),
        ({"window": Window((1, 1), groups=2)}, "in 2 groups takes 8"),
    ],
)
def test_what_does_not_fit_a_convolution(kwargs, message):
    with pytest.raises(ValueError, match=message):
        conv_with(**{"flat": [1], "num": 1, **kwargs})


def test_what_does_not_fit_a_dense_layer():
    values, positions = to_sparse(jnp.ones((3, 2)), jnp.ones((3, 2), bool))
    for shape in [(), (2,), (3, 2)]:
        with pytest.raises(ValueError, match="the kernel of shape"):
            sparse_dot(jnp.ones(shape), values, positions)
    with pytest.raises(ValueError, match="dtype int32"):
        sparse_dot(jnp.ones((1, 3), int), values, positions)


@pytest.mark.parametrize(
    ("x", "more", "message"),
    [
        (jnp.ones(()), {}, "x has no axis; its first one must be that of the channels"),
        (jnp.ones((3, 4)), {}, r"scale has shape \(2,\); it must be \(3,\)"),
        (jnp.ones((2, 4), jnp.int32), {}, "x has dtype int32"),
        (jnp.ones((2, 4)), {"shortcut": jnp.ones((2, 5))}, r"shortcut has shape \(2, 5\)"),
        (jnp.ones((2, 4)), {"shortcut": jnp.ones((2, 4), bool)}, "shortcut has dtype bool"),
        (jnp.ones((2, 4)), {"epsilon": 0.0}, r"epsilon 0.0 must be in \[1.1.*e-38, 3.4.*e\+38\]"),
        (jnp.ones((2, 4)), {"epsilon": float("nan")}, "epsilon nan must be in"),
        (jnp.ones((2, 4)), {"epsilon": 1e-50}, "epsilon 1e-50 must be in"),
        (jnp.ones((2, 4)), {"epsilon": np.inf}, "epsilon inf must be in"),
        (jnp.ones((2, 4)), {"epsilon": "small"}, "epsilon .small. must be in"),
    ],
)
def test_what_does_not_fit_a_norm(x, more, message):
    scale = jnp.ones(x.shape[:1] if x.ndim == 0 else 2)
    with pytest.raises(ValueError, match=message):
        batch_norm(x, scale, scale, **more)


@pytest.mark.parametrize(
    ("flat", "num", "message"),
    [
        ([1, 2], 3, r"3 active weights; they must be in \[0, 2\], the capacity"),
        ([1, 2], -1, "-1 active weights"),
        ([1, 6], 2, r"position 6 is not in \[0, 6\)"),
        ([-3, 1], 2, r"position -3 is not in \[0, 6\)"),
        ([2, 1], 2, "positions must rise; 2 comes before 1"),
        ([0, 4, 4], 3, "positions must rise; 4 comes before 4"),
        ([0.0, 4.0], 2, r"flat is float32\(2,\)"),
        ([1, 2], [2], r"num is int32\(1,\)"),
    ],
)
def test_positions_from_elsewhere(flat, num, message):
    with pytest.raises(ValueError, match=message):
        check_positions(Positions(jnp.asarray(flat), jnp.asarray(num), (3, 2)))


@pytest.mark.parametrize(
    ("flat", "num", "shape"),
    [([0, 5, 6], 2, (3, 2)), ([], 0, (3, 2)), ([9, -9], 0, (3, 2)), ([], 0, (0, 2))],
)
def test_positions_that_are_right(flat, num, shape):
    positions = Positions(jnp.asarray(flat, jnp.int32), jnp.int32(num), shape)
    check_positions(positions)
    assert int(to_mask(positions).sum()) == num


def squares(*args, **kwargs):
    return jnp.sum(sparse_conv(*args, **kwargs) ** 2)


def test_repeated_runs_are_the_same_to_the_bit(compiled):
    rng = np.random.default_rng(0)
    kernel = jnp.asarray(rng.normal(size=(3, 3, 16, 24)), jnp.float32)
    values, positions = to_sparse(kernel, jnp.asarray(rng.random(kernel.shape) < 0.2))
    window = Window((3, 3), padding=SAME)
    for layout, shape in {"NHWC": (64, 8, 8, 16), "CHWN": (16, 8, 8, 64)}.items():
        images = jnp.asarray(rng.normal(size=shape), jnp.float32)
        loss = functools.partial(squares, positions=positions, window=window, layout=layout)
        grad = jax.jit(jax.value_and_grad(loss, (0, 1)))
        first, *others = (jax.tree.map(np.asarray, grad(images, values)) for _ in range(10))
        for other in others:
            jax.tree.map(np.testing.assert_array_equal, first, other)
