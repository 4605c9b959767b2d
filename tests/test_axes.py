"""The rules for a leaf's axes without tracing, and axes that are given."""

import jax.numpy as jnp
import numpy as np
import pytest

import jaxsparse
from jaxsparse.axes import axes_by_rules, axes_of, default_axes, fan_in, kept_axes
from jaxsparse.types import KernelAxes

# (inputs, outputs, window, batch)
IN_OUT = ((0,), (1,), (), ())
TO_HEADS, FROM_HEADS = ((0,), (1, 2), (), ()), ((0, 1), (2,), (), ())
CONV1D = ((1,), (2,), (0,), ())


@pytest.mark.parametrize(
    ("path", "shape", "expected"),
    [
        # Flax's attention, as linen and NNX name it and as people do; a leaf of its own name.
        ("attn/query/kernel", (768, 12, 64), TO_HEADS),
        ("blocks/3/attn/key/kernel", (768, 12, 64), TO_HEADS),
        ("SelfAttention_0/value/kernel", (768, 12, 64), TO_HEADS),
        ("q", (768, 12, 64), TO_HEADS),
        ("attn/k_proj/kernel", (768, 2, 64), TO_HEADS),
        ("attn/wq/w", (768, 12, 64), TO_HEADS),
        ("attn/to_v/kernel", (16, 2, 64), TO_HEADS),
        ("attn/qkv/kernel", (768, 3, 768), TO_HEADS),
        ("attn/qkv/kernel", (768, 3, 12, 64), ((0,), (1, 2, 3), (), ())),
        ("cross/kv/kernel", (768, 2, 12, 64), ((0,), (1, 2, 3), (), ())),
        ("attn/query/kernel", (6, 768, 12, 64), ((1,), (2, 3), (), (0,))),  # a stack of nn.scan
        ("attn/query/kernel[3]", (768, 12, 64), TO_HEADS),  # a layer of one
        ("attn/out/kernel", (12, 64, 768), FROM_HEADS),
        ("attn/out/kernel[11]", (12, 64, 768), FROM_HEADS),
        ("attn/o_proj/kernel", (12, 64, 768), FROM_HEADS),
        ("attn/c_proj/kernel", (12, 64, 768), FROM_HEADS),
        ("o", (12, 64, 768), FROM_HEADS),
        # DenseGeneral by the module's name: inputs are one axis, unless that has fewer places.
        ("DenseGeneral_0/kernel", (16, 2, 32), TO_HEADS),
        ("DenseGeneral_12/kernel", (4, 8, 16), FROM_HEADS),
        ("linear_general/kernel", (7, 7, 64, 10), ((0, 1, 2), (3,), (), ())),
        # A name alone does not make it attention: matrices, convolutions, other words.
        ("attn/query/kernel", (768, 768), IN_OUT),
        ("attn/out/kernel", (768, 768), IN_OUT),
        ("query/kernel", (1, 64, 8), CONV1D),  # a convolution of width 1, as in SAGAN
        ("query/kernel", (1, 1, 64, 8), ((2,), (3,), (0, 1), ())),
        ("queries/kernel", (768, 12, 64), CONV1D),
        ("conv_out/kernel", (3, 64, 64), CONV1D),
        ("dense/kernel", (8, 4), IN_OUT),
        ("conv/kernel", (3, 3, 16, 32), ((2,), (3,), (0, 1), ())),
        # Equinox's and PyTorch's layout.
        ("layers/0/weight", (8, 4), ((1,), (0,), (), ())),
        ("query_proj/weight", (8, 4), ((1,), (0,), (), ())),
        ("conv/weight", (8, 4, 3, 3), ((1,), (0,), (2, 3), ())),
        ("cell/weight_hh", (32, 8), ((1,), (0,), (), ())),
        ("layer1.0.weight", (8, 4), ((1,), (0,), (), ())),
        ("lightweight", (8, 4), IN_OUT),
        # Without inputs.
        ("bias", (8,), ((), (0,), (), ())),
        ("layers/0/weight", (8,), ((), (0,), (), ())),
        ("scale", (), ((), (), (), ())),
    ],
)
def test_default_axes(path, shape, expected):
    assert default_axes(path, shape) == expected
    assert axes_of(path, shape) == expected


def test_given_axes_go_before_the_default_rules():
    axes = {"mix/kernel": KernelAxes((-2,), (0, -1))}
    assert axes_of("mix/kernel", (4, 8, 16), axes) == ((1,), (0, 2), (), ())
    assert axes_of("mix/kernel", (4, 8, 16), kept_axes(axes)) == ((1,), (0, 2), (), ())
    assert axes_of("remix/kernel", (4, 8, 16), axes) == CONV1D


def test_a_layer_of_a_stack_has_the_axes_that_the_stack_has_behind_the_first():
    axes = {"up": KernelAxes((1, -2), (3,), (), (0,))}
    assert axes_of("up", (6, 2, 8, 16), axes) == ((1, 2), (3,), (), (0,))
    assert axes_of("up[5]", (2, 8, 16), axes) == FROM_HEADS


@pytest.mark.parametrize(
    "given",
    [((0,), (1,)), ((0, 1), (1, 2)), ((0,), (1,), (2,), (3,)), ((0,), (1, -2)), ((0,), (1, 5))],
)
def test_axes_that_are_not_each_axis_once(given):
    with pytest.raises(
        ValueError, match=r"axes at a \(4, 8, 16\): .* must name each of its 3 axes"
    ):
        axes_of("a", (4, 8, 16), {"a": KernelAxes(*given)})


@pytest.mark.parametrize("given", [(0, 1), "in out", ((0,),), ((0.5,), (1,)), None])
def test_axes_that_are_none(given):
    with pytest.raises(ValueError, match="axes at a/kernel: .* must be KernelAxes"):
        kept_axes({"a/kernel": given})


def test_kept_axes_are_hashable_and_in_one_order():
    one, other = KernelAxes((0,), (1,)), KernelAxes([np.int64(1)], [0])
    kept = kept_axes({"b": one, "a": other})
    assert kept == kept_axes({"a": other, "b": one}) == (("a", ((1,), (0,), (), ())), ("b", one))
    assert hash(kept) == hash(kept_axes(dict(kept))) and kept_axes(None) == ()


PARAMS = {
    "mixer_0": {"kernel": jnp.ones((4, 8, 16)), "bias": jnp.ones(16)},
    "mixer_1": {"kernel": jnp.ones((8, 16))},
    "head": {"kernel": jnp.ones((16, 10))},
}


def test_rules_of_ones_own():
    rules = [
        ("mixer_0/kernel", KernelAxes((1,), (2,), (), (0,))),
        ("kernel", KernelAxes((-1,), (-2,))),
    ]
    assert jaxsparse.axes_by_rules(rules, PARAMS) == {
        "mixer_0/kernel": ((1,), (2,), (), (0,)),
        "mixer_1/kernel": ((1,), (0,), (), ()),
        "head/kernel": ((1,), (0,), (), ()),
    }


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ([("mixer/", KernelAxes((0,), (1,)))], "axes rule 'mixer/' is the first match of no leaf"),
        ([("mixer", KernelAxes((0,), (1,)))], r"axes at mixer_0/bias \(16,\): .* of its 1 axes"),
    ],
)
def test_rules_that_do_not_fit(rules, message):
    with pytest.raises(ValueError, match=message):
        axes_by_rules(rules, PARAMS)


def test_fan_in():
    assert fan_in((768, 12, 64), KernelAxes((0,), (1, 2))) == 768
    assert fan_in((12, 64, 768), KernelAxes((0, 1), (2,))) == 768
    assert fan_in((5, 3, 3, 16, 32), KernelAxes((3,), (4,), (1, 2), (0,))) == 144
    assert fan_in((7,), KernelAxes((), (0,))) == 1
