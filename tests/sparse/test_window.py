"""Windows as Flax takes them; impossible numbers raise errors and never crash."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from jaxsparse.sparse import Window, sparse_conv, to_mask, to_sparse
from jaxsparse.sparse.window import concrete

# Taps, strides, padding, dilation, as `nn.Conv` takes them too.
LIKE_FLAX = [
    ((3, 3), 1, "SAME", 1),
    ((2, 3), 2, "same", (1, 2)),
    ((3, 2), (2, 3), "SAME_LOWER", 1),
    ((3, 3), (1, 2), "VALID", 2),
    ((3, 3), 2, 1, 1),
    ((3, 3), 1, (2, (0, 1)), 2),
    ((3, 3), [2, 1], [(1, 2), (0, 0)], 1),
    ((7, 8), 2**40, "VALID", 1),
]


@pytest.mark.parametrize(("taps", "strides", "padding", "dilation"), LIKE_FLAX)
def test_a_window_is_what_flax_makes_of_the_same_arguments(taps, strides, padding, dilation):
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.normal(size=(2, 7, 8, 3)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(*taps, 3, 4)), jnp.float32)
    values, positions = to_sparse(kernel, jnp.asarray(rng.random(kernel.shape) < 0.5))
    window = Window(taps, strides, padding, dilation)
    sparse = sparse_conv(images, values, positions, window)
    layer = nn.Conv(4, taps, strides, padding, kernel_dilation=dilation, use_bias=False)
    dense = layer.apply({"params": {"kernel": jnp.where(to_mask(positions), kernel, 0)}}, images)
    np.testing.assert_allclose(sparse, dense, rtol=1e-5, atol=1e-5)
    assert window.out_size((7, 8)) == sparse.shape[1:3]


def test_one_number_serves_for_both_axes():
    window = concrete(Window(3, np.uint8(2), 1, np.array(2)), (9, 9))
    assert window == ((3, 3), (2, 2), ((1, 1), (1, 1)), (2, 2), 1)


def test_numbers_without_an_effect_are_cut():
    """The stride has no effect on a single output, nor the dilation on a single tap."""
    window = concrete(Window((1, 2), 2**70, dilation=(2**70, 4)), (5, 6))
    assert window == ((1, 2), (5, 2), ((0, 0), (0, 0)), (1, 4), 1)
    assert window.out_size((5, 6)) == (1, 1)
    assert concrete(Window(3, 2**70), (2, 2)).out_size((2, 2)) == (0, 0)


FAR, TOO_FAR = 10**9, 2**62
REFUSED = [
    ({"padding": ((FAR, FAR), (FAR, FAR))}, r"2000000005 x 2000000005 pixels .* too large"),
    ({"padding": ((TOO_FAR, 0), (0, 0))}, "images of 4611686018427387909 x 5 pixels with padding"),
    ({"padding": "SAME", "dilation": TOO_FAR}, "images of .* pixels with padding"),
    ({"padding": -1}, "padding -1 must be a whole number, at least 0"),
    ({"padding": ((0, -1), (0, 0))}, "padding -1 must be a whole number, at least 0"),
    ({"padding": "CIRCULAR"}, r"padding 'CIRCULAR' must be \(\(before, after\).* SAME, SAME_LOWER"),
    ({"padding": (1, 2, 3)}, r"padding \(1, 2, 3\) must be \(\(before, after\), \(before, after\)"),
    ({"padding": (1, (2,))}, r"padding \(1, \(2,\)\) must be \(\(before"),
    ({"padding": 0.5}, "padding 0.5 must be a whole number, at least 0"),
    ({"padding": None}, "padding None must be a whole number, at least 0"),
    ({"strides": 0}, "strides 0 must be a whole number, at least 1"),
    ({"strides": (1, float("nan"))}, "strides nan must be a whole number, at least 1"),
    ({"strides": "SAME"}, "strides 'SAME' must be a whole number, at least 1"),
    ({"strides": (1, 1, 1)}, r"strides \(1, 1, 1\) must be a whole number, or two"),
    ({"strides": True}, "strides True must be a whole number, at least 1"),
    ({"dilation": -(2**63)}, "dilation -9223372036854775808 must be a whole number, at least 1"),
    ({"dilation": (1, 1.0)}, "dilation 1.0 must be a whole number, at least 1"),
    ({"groups": 0}, "groups 0 must be a whole number, at least 1"),
    ({"groups": 2**40}, "1099511627776 groups do not divide 4 input and 6 output channels"),
    ({"groups": 1.0}, "groups 1.0 must be a whole number, at least 1"),
    ({"taps": 2**40}, "a kernel of shape .* has no window of"),
    ({"taps": None}, "taps None must be a whole number, at least 1"),
]


@pytest.mark.parametrize(("fields", "message"), REFUSED)
def test_what_is_no_window_is_named(fields, message):
    kernel = jnp.ones((3, 3, 4, 6))
    values, positions = to_sparse(kernel, kernel > 0)
    with pytest.raises(ValueError, match=message):
        sparse_conv(jnp.ones((2, 5, 5, 4)), values, positions, Window(**{"taps": 3, **fields}))


@pytest.mark.parametrize("window", [None, (3, 3), ((3, 3), (1, 1))])
def test_another_kind_of_window_is_named(window):
    kernel = jnp.ones((3, 3, 4, 6))
    values, positions = to_sparse(kernel, kernel > 0)
    with pytest.raises(ValueError, match="must be a jaxsparse.sparse.Window"):
        sparse_conv(jnp.ones((2, 5, 5, 4)), values, positions, window)


def test_a_traced_number_is_refused():
    kernel = jnp.ones((3, 3, 4, 6))
    values, positions = to_sparse(kernel, kernel > 0)
    conv = lambda n: sparse_conv(jnp.ones((2, 5, 5, 4)), values, positions, Window(3, n))
    with pytest.raises(ValueError, match="strides .* must be a whole number, at least 1"):
        jax.jit(conv)(2)


# Each is far from the limit of a machine's memory: a window fits, or needs far too much.
_LARGE = (2**31 - 1, 2**31, 2**32, 2**40, 2**53, 2**61, 2**62, 2**63 - 1, 2**63, 2**64)
_SMALL = st.sampled_from((1, 1, 1, 2, 3, np.int8(2)))
_NUMBERS = st.one_of(_SMALL, st.sampled_from((0, -1, -(2**63), 0.5, float("nan"), None, *_LARGE)))
_PADS = st.one_of(
    _SMALL, st.sampled_from((0, -1, None, "SAME", *(n for n in _LARGE if n >= 2**40)))
)


def of_both(numbers):
    return st.one_of(numbers, st.tuples(numbers, numbers))


@settings(max_examples=15)
@given(
    strides=of_both(_NUMBERS),
    padding=of_both(of_both(_PADS)),
    dilation=of_both(_NUMBERS),
    images=st.sampled_from(((2, 4, 5, 4), (17, 4, 5, 4), (16, 0, 3, 4), (0, 3, 3, 4))),
    layout=st.sampled_from(("NHWC", "CHWN")),
    is_compiled=st.booleans(),
)
def check_drawn_windows(strides, padding, dilation, images, layout, is_compiled):
    kernel = jnp.ones((2, 3, 2, 4))
    values, positions = to_sparse(kernel, kernel > 0)
    window = Window((2, 3), strides, padding, dilation, groups=2)
    x = jnp.ones(images) if layout == "NHWC" else jnp.ones(images).transpose(3, 1, 2, 0)
    conv = functools.partial(sparse_conv, positions=positions, window=window, layout=layout)

    def run(x, values):
        out, pull = jax.vjp(conv, x, values)
        return out, *pull(out)

    try:
        out, grad_x, grad_values = jax.block_until_ready(
            (jax.jit(run) if is_compiled else run)(x, values)
        )
    except (ValueError, jax.errors.JaxRuntimeError) as error:
        assert any(word in str(error) for word in ("must be", "too large", "memory"))
        return
    assert out.shape[1:3] == window.out_size(images[1:3])
    assert grad_x.shape == x.shape and grad_values.shape == values.shape
    # Each output is a sum of ones: the number of taps that read an image, times two channels.
    found = concrete(window, images[1:3])
    if max(found.dilation) < 2**31:
        dense = lax.conv_general_dilated(
            x,
            kernel,
            found.strides,
            found.padding,
            rhs_dilation=found.dilation,
            dimension_numbers=(layout, "HWIO", layout),
            feature_group_count=2,
        )
        np.testing.assert_array_equal(out, dense)


def test_drawn_windows_compute_or_are_refused(engine):
    check_drawn_windows()
