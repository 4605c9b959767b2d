"""FLOPs of single products against loops over all multiplications, and against XLA's count."""

import itertools
import math

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

from jaxsparse.tracing.products import PRODUCTS

SHAPE = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)


def flops(function, *shapes):
    """The FLOPs of the products in a function, none of which may be in a call."""
    eqns = jax.make_jaxpr(function)(*map(lambda shape: SHAPE(*shape), shapes)).jaxpr.eqns
    return sum(PRODUCTS[e.primitive.name](e) for e in eqns if e.primitive.name in PRODUCTS)


def by_xla(function, *shapes):
    lowered = jax.jit(function).lower(*map(lambda shape: SHAPE(*shape), shapes))
    return lowered.compile().cost_analysis()["flops"]


def convolution(x, kernel, *, stride, padding, lhs=(1, 1), rhs=(1, 1), groups=(1, 1)):
    """Groups: of features, and of the batch."""
    return lax.conv_general_dilated(
        x,
        kernel,
        stride,
        padding,
        lhs_dilation=lhs,
        rhs_dilation=rhs,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups[0],
        batch_group_count=groups[1],
    )


def num_reads(size, taps, stride, padding, lhs, rhs):
    """Pairs of an output and a tap that reads an entry, or padding if nothing is dilated."""
    dilated = (size - 1) * lhs + 1 if size else 0
    num_outputs = (dilated + sum(padding) - (taps - 1) * rhs - 1) // stride + 1
    found = 0
    for output, tap in itertools.product(range(num_outputs), range(taps)):
        at = output * stride + tap * rhs - padding[0]
        found += lhs == 1 or at in range(0, dilated, lhs)
    return found


def has_an_output(axis):
    size, taps, _, padding, lhs, rhs = axis
    dilated = (size - 1) * lhs + 1
    return min(padding) > -dilated and dilated + sum(padding) > (taps - 1) * rhs


AXIS = st.tuples(
    st.integers(1, 5),  # entries
    st.integers(1, 4),  # taps
    st.integers(1, 3),  # stride
    st.tuples(st.integers(-2, 4), st.integers(-2, 4)),  # padding, or cropping
    st.integers(1, 3),  # dilation of the input
    st.integers(1, 2),  # dilation of the kernel
).filter(has_an_output)


@hypothesis.given(AXIS, AXIS, st.sampled_from([(1, 1), (3, 1), (1, 2)]))
def test_a_convolution_counts_every_multiplication(rows, columns, groups):
    (height, width), taps, stride, padding, lhs, rhs = zip(rows, columns, strict=True)
    options = {"stride": stride, "padding": padding, "lhs": lhs, "rhs": rhs, "groups": groups}
    kernel = (*taps, 6 // groups[0], 12)
    found = flops(lambda *x: convolution(*x, **options), (2, height, width, 6), kernel)
    per_channel = num_reads(*rows) * num_reads(*columns)
    assert found == 2 * (2 // groups[1]) * 12 * (6 // groups[0]) * per_channel


@pytest.mark.parametrize(
    "options",
    [
        {"stride": (1, 1), "padding": "VALID"},
        {"stride": (2, 3), "padding": "VALID", "rhs": (2, 1)},
        {"stride": (1, 1), "padding": "VALID", "groups": (4, 1)},
        {"stride": (1, 1), "padding": "VALID", "groups": (1, 2)},
        {"stride": (1, 1), "padding": ((2, 1), (0, 3)), "lhs": (3, 2)},
        {"stride": (2, 1), "padding": ((-2, 3), (-2, -1)), "lhs": (2, 3), "rhs": (2, 1)},
    ],
    ids=["plain", "dilated", "depthwise", "batch groups", "transposed", "cropped"],
)
def test_xla_counts_the_same(options):
    shapes = (2, 7, 8, 4), (3, 2, 4 // options.get("groups", (1,))[0], 8)
    function = lambda x, kernel: convolution(x, kernel, **options)
    assert flops(function, *shapes) == by_xla(function, *shapes)


def test_xla_leaves_out_padding_which_counts_here():
    """The first and the last of 8 outputs along an axis have a tap that reads padding."""
    shapes = (1, 8, 8, 3), (3, 3, 3, 4)
    function = lambda x, kernel: convolution(x, kernel, stride=(1, 1), padding="SAME")
    assert flops(function, *shapes) == 2 * (8 * 3) ** 2 * 3 * 4
    assert by_xla(function, *shapes) == 2 * (8 * 3 - 2) ** 2 * 3 * 4


def test_a_transposed_convolution_multiplies_no_zeros():
    """Every entry meets every tap once where they do not go over the edge: 12 times 4 x 2."""
    layer = nn.ConvTranspose(1, (2, 2), strides=(2, 2), use_bias=False)
    kernel = lambda x, kernel: layer.apply({"params": {"kernel": kernel}}, x)
    assert flops(kernel, (1, 2, 2, 3), (2, 2, 3, 1)) == 96
    valid = nn.ConvTranspose(5, (5, 3), strides=(3, 2), padding="VALID", use_bias=False)
    kernel = lambda x, kernel: valid.apply({"params": {"kernel": kernel}}, x)
    assert flops(kernel, (1, 4, 6, 3), (5, 3, 3, 5)) == 2 * (4 * 6) * (5 * 3) * 3 * 5


@pytest.mark.parametrize(
    ("form", "shapes"),
    [
        ("ecd,edf->ecf", [(2, 4, 8), (2, 8, 16)]),
        ("bhqd,bkhd->bhqk", [(2, 3, 4, 5), (2, 6, 3, 5)]),
        ("bij,bij->b", [(2, 3, 4), (2, 3, 4)]),
        ("abc,cd,de->abe", [(2, 3, 4), (4, 5), (5, 6)]),
    ],
)
def test_an_einsum_counts_every_multiplication(form, shapes):
    """By pairs, from left to right as the shapes have it; sizes by letter."""
    inputs, _ = form.split("->")
    sizes = {
        k: n
        for name, s in zip(inputs.split(","), shapes, strict=True)
        for k, n in zip(name, s, strict=True)
    }
    in_all = lambda letters: 2 * math.prod(sizes[letter] for letter in letters)
    by_hand = in_all("abcd") + in_all("abde") if len(shapes) == 3 else in_all(set(inputs) - {","})
    assert flops(lambda *x: jnp.einsum(form, *x, optimize=False), *shapes) == by_hand


SIZES = np.array([3, 0, 2])


def test_a_ragged_product_meets_one_kernel_a_row():
    function = lambda x, kernel: lax.ragged_dot(x, kernel, SIZES)
    rows = [(4, 8) for size in SIZES for _ in range(size)]  # the kernel of each row
    assert flops(function, (5, 4), (3, 4, 8)) == sum(2 * m * n for m, n in rows)


def test_a_ragged_contraction_and_a_ragged_batch():
    """Rows of a contraction, and matrices of a batch, are in one group each."""
    ragged = lambda dot, axis, groups: (
        lambda x, y: lax.ragged_dot_general(
            x, y, SIZES, lax.RaggedDotDimensionNumbers(dot, (axis,), groups)
        )
    )
    contraction = ragged((((0,), (0,)), ((), ())), 0, ())
    assert flops(contraction, (5, 4), (5, 8)) == 2 * 5 * 4 * 8
    batch = ragged((((2,), (1,)), ((0,), (0,))), 0, ())
    assert flops(batch, (5, 2, 4), (5, 4, 8)) == 5 * (2 * 2 * 4 * 8)


def test_a_scaled_product_counts_like_a_plain_one():
    scaled = lambda x, kernel: lax.scaled_dot(
        x.astype(jnp.float8_e4m3fn),
        kernel.astype(jnp.float8_e4m3fn),
        lhs_scale=jnp.ones((4, 2), jnp.float8_e8m0fnu),
        rhs_scale=jnp.ones((2, 8), jnp.float8_e8m0fnu),
    )
    assert flops(scaled, (4, 64), (64, 8)) == 2 * 4 * 64 * 8
