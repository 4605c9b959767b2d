"""Views against arrays of indices, which vary along the axes that come from a leaf's axis."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from jaxsparse.tracing.axis_views import (
    axes_in_product,
    covers,
    merged,
    reshaped,
    resized,
    split_stack,
    taken_by_index,
    transposed,
    view_of,
    with_axis,
    without,
)


def varies(index: np.ndarray) -> list[bool]:
    """Along which axes an array of one leaf axis' indices is not constant."""
    return [bool((index != index.take([0], axis)).any()) for axis in range(index.ndim)]


def sources(indices: list[np.ndarray]) -> list[set[int]]:
    """By axis of a value, the leaf's axes whose index varies along it."""
    by_leaf_axis = [varies(index) for index in indices]
    axes = range(indices[0].ndim)
    return [{a for a, along in enumerate(by_leaf_axis) if along[axis]} for axis in axes]


def named(view) -> list[set[int]]:
    return [set().union(*(axes for axes, _ in parts)) for parts in view]


def factored(draw: st.DrawFn, size: int) -> tuple[int, ...]:
    """A shape with so many entries."""
    shape = []
    while size > 1:
        n = draw(st.sampled_from([d for d in range(2, size + 1) if size % d == 0]))
        shape.append(n)
        size //= n
    shape.insert(draw(st.integers(0, len(shape))), 1)
    return tuple(shape)


@hypothesis.given(data=st.data())
def test_reshapes_and_transposes_agree_with_indices(data):
    draw = data.draw
    shape = draw(st.sampled_from([(6, 4), (2, 3, 4), (12, 2), (2, 2, 2, 3), (4, 1, 6), (24,)]))
    view, indices = view_of(shape), list(np.indices(shape))
    clean = True
    for _ in range(draw(st.integers(1, 4))):
        if draw(st.booleans()):
            order = draw(st.permutations(range(indices[0].ndim)))
            view, indices = transposed(view, order), [x.transpose(order) for x in indices]
        else:
            new = factored(draw, 24)
            view, indices = reshaped(view, new), [x.reshape(new) for x in indices]
        assert [np.prod([n for _, n in parts]) for parts in view] == list(indices[0].shape)
        found, true = named(view), sources(indices)
        # Parts that were merged, since edges did not meet, may say more than is so, never less.
        assert all(real <= said for real, said in zip(true, found, strict=True))
        clean &= all(len(axes) < 2 for parts in view for axes, _ in parts)
        if clean:
            long = {axis for axis, n in enumerate(shape) if n > 1}
            assert [said & long for said in found] == true


def test_a_reshape_that_cuts_across_axes():
    view = reshaped(view_of((6, 4)), (8, 3))
    assert named(view) == [{0, 1}, {0, 1}]
    assert named(reshaped(view_of((6, 4)), (2, 12))) == [{0}, {0, 1}]


def test_empty_leaves_have_nothing_to_follow():
    assert named(reshaped(view_of((0, 3)), (3, 0))) == [set(), set()]


def test_sizes_that_change():
    view = resized(reshaped(view_of((4, 6, 2)), (24, 2)), (5, 2))
    assert view == (((frozenset({0, 1}), 5),), ((frozenset({2}), 2),))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_gathered_rows(axis):
    """`np.take` with indices of shape (5, 2): they stand where the axis was."""
    shape, indices = (3, 4, 6), np.array([[0, 1], [2, 0], [1, 1], [0, 2], [2, 1]])
    taken = [np.take(index, indices, axis) for index in np.indices(shape)]
    offset = [i for i in range(4) if i not in (axis, axis + 1)]
    view = taken_by_index(view_of(shape), [axis], offset, taken[0].shape)
    assert named(view) == sources(taken)


def test_views_of_one_leaf_that_meet():
    whole, norm = view_of((3, 4)), with_axis(without(view_of((3, 4)), (0,)), 0, 3)
    assert named(norm) == [set(), {1}]
    assert merged([norm, whole]) == merged([whole, norm]) == whole
    assert not covers(norm) and covers(whole)
    assert named(merged([whole, transposed(view_of((4, 3)), (1, 0))])) == [{0, 1}, {0, 1}]


def test_stacks_in_the_output_axis_of_a_grouped_convolution():
    stack, kernel = frozenset({0}), frozenset({1})
    view = (((stack, 4), (kernel, 6)), ())
    assert split_stack(view, 0, groups=4) == (((kernel, 6),), (), ((stack, 4),))
    assert split_stack(view, 0, groups=1) == (*view, ())
    # The outputs of the groups of one kernel are outputs.
    assert split_stack((((kernel, 4), (kernel, 6)), ()), 0, groups=4)[-1] == ()


def test_roles():
    view = reshaped(view_of((4, 3, 2)), (4, 6))
    assert axes_in_product(view, ["outputs", "inputs"], 3) == ((1, 2), (0,), (), ())
    assert axes_in_product(view[1:], ["inputs"], 3) == ((1, 2), (), (), (0,))
    assert axes_in_product(reshaped(view_of((12,)), (4, 3)), ["batch", "inputs"], 1) == (
        "its axis 0 is partly batch and partly inputs"
    )
