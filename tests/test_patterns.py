"""N:M, blocks and channels: how they cut leaves, their masks, numbers out of range."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsparse
from jaxsparse.pattern_rules import groups_of
from jaxsparse.types import Groups, KernelAxes
from jaxsparse.units import pool
from tests.patterned import METHODS, TWO_OF_FOUR, drawn, picture


@pytest.mark.parametrize(
    ("pattern", "shape", "split", "axes"),
    [
        (jaxsparse.n_of_m(2, 4), (8, 3), (2, 4, 3), (1,)),
        (jaxsparse.n_of_m(1, 3, axis=0), (6, 5, 2), (2, 3, 5, 2), (1,)),
        (jaxsparse.n_of_m(3, 4, axis=-1), (8,), (2, 4), (1,)),
        (jaxsparse.block((4, 2)), (8, 6), (2, 4, 3, 2), (1, 3)),
        (jaxsparse.block((6, 1)), (3, 3, 2, 5), (3, 6, 5, 1), (1, 3)),  # taps of one filter row
        (jaxsparse.channels(), (3, 3, 2, 5), (3, 3, 2, 5), (0, 1, 2)),
        (jaxsparse.channels(-2), (2, 5), (2, 5), (1,)),
    ],
)
def test_how_leaves_are_cut(pattern, shape, split, axes):
    groups = pattern.cut(shape)
    assert (groups.split, groups.axes) == (split, axes)


# The kernels of attention, and other leaves whose inputs and outputs are elsewhere.
@pytest.mark.parametrize(
    ("pattern", "path", "shape", "split", "axes"),
    [
        (TWO_OF_FOUR, "q/kernel", (768, 12, 64), (192, 4, 12, 64), (1,)),
        (TWO_OF_FOUR, "out/kernel", (12, 64, 768), (192, 4, 768), (1,)),
        (TWO_OF_FOUR, "out/kernel", (2, 6, 8), (3, 4, 8), (1,)),  # 6 alone is no multiple
        (TWO_OF_FOUR, "q/kernel", (3, 16, 2, 8), (3, 4, 4, 2, 8), (2,)),  # a stack
        (TWO_OF_FOUR, "DenseGeneral_0/kernel", (16, 2, 32), (4, 4, 2, 32), (1,)),
        (TWO_OF_FOUR, "fc/weight", (5, 8), (5, 2, 4), (2,)),
        (TWO_OF_FOUR, "conv/weight", (5, 8, 3, 3), (5, 2, 4, 3, 3), (2,)),
        (jaxsparse.n_of_m(2, 4, axis=-2), "q/kernel", (768, 12, 64), (768, 3, 4, 64), (2,)),
        (jaxsparse.block((4, 2)), "q/kernel", (16, 2, 8), (4, 4, 8, 2), (1, 3)),
        (jaxsparse.block((4, 2)), "out/kernel", (2, 8, 16), (4, 4, 8, 2), (1, 3)),
        (jaxsparse.block((4, 2)), "conv/weight", (6, 4, 3, 3), (3, 2, 9, 4), (1, 3)),
        (jaxsparse.channels(), "q/kernel", (16, 2, 8), (16, 2, 8), (0,)),
        (jaxsparse.channels(), "out/kernel", (2, 8, 16), (2, 8, 16), (0, 1)),
        (jaxsparse.channels("inputs"), "q/kernel", (16, 2, 8), (16, 2, 8), (1, 2)),
        (jaxsparse.channels("inputs"), "out/kernel", (2, 8, 16), (2, 8, 16), (2,)),
        (jaxsparse.channels("inputs"), "conv/kernel", (3, 3, 2, 5), (3, 3, 2, 5), (0, 1, 3)),
        (jaxsparse.channels(), "conv/weight", (6, 4, 3, 3), (6, 4, 3, 3), (1, 2, 3)),
        (jaxsparse.channels(-1), "q/kernel", (16, 2, 8), (16, 2, 8), (0, 1)),
    ],
)
def test_groups_follow_the_axes_of_a_leaf(pattern, path, shape, split, axes):
    groups = groups_of([("", pattern)], {path: shape})[path]
    assert (groups.split, groups.axes) == (split, axes)


def as_rows(x, axes):
    """A leaf as the matrices that it is: [everything but inputs, inputs], NumPy."""
    order = (*axes.batch, *axes.outputs, *axes.window, *axes.inputs)
    return np.transpose(x, order).reshape(-1, np.prod([x.shape[axis] for axis in axes.inputs]))


@pytest.mark.parametrize(
    "given",
    [
        ((0,), (1, 2), (), (3,)),
        ((1, 2), (0,), (3,), ()),
        ((0, 2), (1, 3), (), ()),
        ((3,), (0,), (1,), (2,)),
        ((1, 2, 3), (), (), (0,)),
    ],
)
def test_given_axes_go_before_the_rules(given):
    given = KernelAxes(*given)
    params = drawn(0, {"kernel": jax.ShapeDtypeStruct((4, 4, 4, 4), jnp.float32)})
    axes = {"kernel": given}
    masks = jaxsparse.pattern_masks(params, jaxsparse.n_of_m(2, 4, axes=axes))
    weights, kept = (as_rows(np.abs(x["kernel"]), given).reshape(-1, 4) for x in (params, masks))
    assert (kept.sum(1) == 2).all()
    assert (np.where(kept, weights, np.inf).min(1) > np.where(kept, -np.inf, weights).max(1)).all()
    if given.outputs:
        summed = given._replace(inputs=tuple(sorted((*given.inputs, *given.window))), window=())
        masks = jaxsparse.pattern_masks(params, jaxsparse.channels(axes=axes), sparsity=0.5)
        assert {*as_rows(np.asarray(masks["kernel"]), summed).mean(1)} == {0, 1}
        pairs = jaxsparse.block((2, 1), axes=axes)
        masks = jaxsparse.pattern_masks(params, pairs, sparsity=0.5)
        assert {*as_rows(np.asarray(masks["kernel"]), summed).reshape(-1, 2).sum(1)} == {0, 2}
        jaxsparse.check_pattern(masks, pairs)


def test_axes_that_do_not_go_with_a_pattern():
    shapes = {"kernel": (8, 16)}
    with pytest.raises(
        ValueError, match="leaf kernel .*: axes at kernel .* each of its 2 axes once"
    ):
        groups_of([("", jaxsparse.n_of_m(2, 4, axes={"kernel": KernelAxes((0,), (0,))}))], shapes)
    none = {"kernel": KernelAxes((), (0, 1))}
    with pytest.raises(ValueError, match="leaf kernel .*: it has no axis of inputs"):
        groups_of([("", jaxsparse.n_of_m(2, 4, axes=none))], shapes)
    with pytest.raises(ValueError, match="leaf kernel .*: it has no axis of inputs"):
        groups_of([("", jaxsparse.channels("inputs", axes=none))], shapes)
    with pytest.raises(
        ValueError, match="leaf out/kernel .*: its size 6 along axis -3, -2 is no mu"
    ):
        groups_of([("", TWO_OF_FOUR)], {"out/kernel": (2, 3, 8)})


def test_a_cut_of_ones_own_sees_the_shape():
    mine = jaxsparse.Pattern("mine", lambda shape: Groups("mine", shape, (0,)))
    assert groups_of([("", mine)], {"q/kernel": (8, 2, 4)})["q/kernel"].axes == (0,)


def test_rows_of_a_convolution_go_by_input_channel_then_width_then_height():
    kernel = jnp.arange(2 * 2 * 2 * 2, dtype=jnp.float32).reshape(2, 2, 2, 2)  # h, w, in, out
    groups = jaxsparse.block((4, 1)).cut(kernel.shape)
    want = [[kernel[h, :, :, out].sum() for out in range(2)] for h in range(2)]
    np.testing.assert_array_equal(pool(kernel, groups), np.array(want))


def test_pattern_masks_by_magnitude():
    params = {"kernel": jnp.array([[1.0, -4, 3, 2], [0, 1, 0, 0]]), "bias": jnp.zeros(4)}
    masks = jaxsparse.pattern_masks(params, jaxsparse.n_of_m(1, 2, axis=-1))
    assert picture(masks["kernel"]) == ["0110", "01" + picture(masks["kernel"])[1][2:]]
    assert masks["bias"].all()
    masks = jaxsparse.pattern_masks(params, jaxsparse.channels(), sparsity=0.5)
    assert picture(masks["kernel"]) == ["0110", "0110"]
    rules = [("^a$", TWO_OF_FOUR)]
    params = {"a": jnp.arange(8.0).reshape(4, 2), "b": jnp.arange(8.0).reshape(4, 2)}
    all_leaves = (("", True),)
    masks = jaxsparse.pattern_masks(params, rules, sparsity=0.75, prunable=all_leaves)
    assert picture(masks["a"].T) == ["0011"] * 2 and picture(masks["b"].T) == ["0001"] * 2
    with pytest.raises(ValueError, match="leaf b has no N:M pattern, so its sparsity= must be giv"):
        jaxsparse.pattern_masks(params, rules, prunable=all_leaves)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: jaxsparse.n_of_m(4, 4), r"n_of_m\(4, 4\): n must be at least 1 and below m"),
        (lambda: jaxsparse.n_of_m(0, 4), "n_of_m: 0 must be a whole number, at least 1"),
        (lambda: jaxsparse.block((4, 0)), "block: 0 must be a whole number, at least 1"),
        (lambda: jaxsparse.block((4, 4), 2), r"block: \(4, 4\) must be a whole number"),
        (lambda: jaxsparse.block(4), r"block 4 must be \(rows, columns\)"),
        (lambda: jaxsparse.channels("out"), "channels: axis 'out' must be a whole number"),
        (lambda: jaxsparse.channels(True), "channels: axis True must be a whole number"),
        (lambda: jaxsparse.n_of_m(2, 4, axis=1.0), "n_of_m: axis 1.0 must be a whole number"),
        (lambda: jaxsparse.n_of_m(2, 4, axis="in"), "n_of_m: axis 'in' must be a whole number"),
        (lambda: jaxsparse.block(4, 4, axes={"a": (0, 1)}), "axes at a: .* must be KernelAxes"),
        (lambda: jaxsparse.n_of_m(np.True_, 4), "n_of_m: (np.)?True_? must be a whole number"),
    ],
)
def test_patterns_out_of_range(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_numbers_from_numpy():
    assert jaxsparse.n_of_m(np.int64(2), np.int32(4), axis=np.int64(-2)).name == "2:4"
    assert jaxsparse.block(np.array([4, 2])).name == "4x2"
    assert jaxsparse.block(4, 2).cut((8, 6)) == jaxsparse.block((4, 2)).cut((8, 6))
    assert jaxsparse.channels(np.int64(-1)).name == "channels"


def test_another_axis_is_in_the_name():
    rules = [("a", jaxsparse.n_of_m(2, 4, axis=-1)), ("b", TWO_OF_FOUR)]
    assert jaxsparse.with_pattern(METHODS["rigl"](0.5), rules).name == "rigl 2:4(-1)+2:4"
