"""Planes that are alive together never share a place, and nobody writes where zeros are."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsparse.engine.layout import LINE, lay_out
from jaxsparse.engine.operations import Constant, Linear, read
from jaxsparse.engine.steps import Segment
from jaxsparse.engine.tracing import trace
from tests.engine.drawn import SHAPE, drawn


def networks(seed):
    shape = jax.ShapeDtypeStruct((2, *SHAPE), np.float32)
    made = trace(lambda x: jax.tree.leaves(drawn(seed)(x)), [shape])
    return [step.net for step in made.steps if isinstance(step, Segment)]


def lives(net):
    """By plane: the first operation after which it is there, and the last that needs it."""
    born = np.full(len(net.size_of), len(net.operations) + 1)
    dies = np.full(len(net.size_of), -1)
    for array in net.inputs:
        born[array.planes] = -1
    for number, operation in enumerate(net.operations):
        born[operation.outs] = -1 if isinstance(operation, Constant) else number
        always = len(net.operations) if isinstance(operation, Constant) else number
        dies[operation.outs] = np.maximum(dies[operation.outs], always)
        sources = read(operation)
        dies[sources] = np.maximum(dies[sources], number)
    for array in net.outputs:
        dies[array.planes] = len(net.operations)
    return born, dies


@pytest.mark.parametrize("seed", range(12))
def test_places(seed):
    for net in networks(seed):
        layout, (born, dies) = lay_out(net), lives(net)
        families = [layout.families[f] for f in layout.family_of]
        planes = np.flatnonzero(dies >= 0)
        size = np.array([families[net.size_of[p]].size for p in planes])
        begin = layout.place[planes]
        end = begin + size
        assert (begin >= 0).all()
        assert (end <= layout.arena).all()
        at_once = (born[planes][:, None] <= dies[planes]) & (born[planes] <= dies[planes][:, None])
        overlap = (begin[:, None] < end) & (begin < end[:, None])
        np.fill_diagonal(overlap, False)
        assert not (at_once & overlap).any()
        # Others that take a place later have the same size, and so the same zeros.
        same = (begin[:, None] == begin) & (net.size_of[planes][:, None] == net.size_of[planes])
        assert (~overlap | same).all()
        assert (begin[size > 1] % LINE == 0).all()


@pytest.mark.parametrize("seed", range(12))
def test_zeros_are_wide_enough(seed):
    """A tap outside of the image reads a zero of its own plane, never another row's pixel."""
    for net in networks(seed):
        layout = lay_out(net)
        for operation in net.operations:
            if not isinstance(operation, Linear) or not len(operation.sources):
                continue
            out = net.size(operation.outs)
            out_family = layout.families[layout.family_of[net.size_of[operation.outs[0]]]]
            for plane, dy, dx in zip(operation.sources, operation.dy, operation.dx, strict=True):
                source = net.sizes[net.size_of[plane]]
                family = layout.families[layout.family_of[net.size_of[plane]]]
                assert family == out_family
                pixels = np.zeros(family.size)
                rows = pixels[family.lead :][: source.height * family.pitch]
                rows.reshape(source.height, family.pitch)[:, : source.width] = 1
                y, x = np.mgrid[: out.height, : out.width]
                at = family.lead + (y + dy) * family.pitch + x + dx
                inside = (0 <= y + dy) & (y + dy < source.height)
                inside &= (0 <= x + dx) & (x + dx < source.width)
                in_plane = (0 <= at) & (at < family.size)
                assert (inside <= in_plane).all()
                found = np.where(in_plane, pixels[np.clip(at, 0, family.size - 1)], 0)
                np.testing.assert_array_equal(found, inside)


def test_memory_is_reused():
    """A chain of layers needs two sets of planes, however long it is."""

    def chain(num):
        w = jnp.ones((3, 3, 8, 8), np.float32)

        def apply(x):
            for _ in range(num):
                x = jax.nn.relu(
                    jax.lax.conv_general_dilated(
                        x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
                    )
                )
            return [x]

        step: Any = trace(apply, [jax.ShapeDtypeStruct((2, 8, 8, 8), np.float32)]).steps[0]
        return lay_out(step.net).arena

    assert chain(12) == chain(3)
