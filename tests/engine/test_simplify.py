"""What follows a layer becomes part of it, and what nobody reads is gone."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsparse.engine.operations import Activation, Linear, read
from jaxsparse.engine.tracing import trace
from tests.engine.agreement import numbers


def network(apply, *shape) -> Any:
    image = jax.ShapeDtypeStruct((2, *shape), np.float32)
    step: Any = trace(lambda x: [apply(x)], [image]).steps[0]
    return step.net


def convolved(x, w):
    return jax.lax.conv_general_dilated(
        x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def test_norm_shortcut_and_relu_are_in_the_layer():
    w, scale, shift = numbers(3, 3, 4, 4), numbers(1, 1, 1, 4), numbers(1, 1, 1, 4, seed=1)
    net = network(lambda x: jax.nn.relu(convolved(x, w) * scale + shift + x), 6, 5, 4)
    (layer,) = net.operations
    assert isinstance(layer, Linear)
    assert layer.activation == Activation("clamp", 0.0)
    assert len(layer.sources) == w.size  # the shortcut is in the tap in the middle
    np.testing.assert_allclose(layer.bias, shift.ravel(), rtol=1e-6)
    middle = (layer.dy == 0) & (layer.dx == 0) & (layer.sources == 0) & (layer.out_of_tap() == 0)
    want = w[1, 1, 0, 0] * scale.ravel()[0] + 1
    np.testing.assert_allclose(layer.weights[middle], want, rtol=1e-6)


def test_silu_is_one_function():
    net = network(lambda x: jax.nn.silu(x @ numbers(4, 4)), 4)
    assert [layer.activation.function for layer in net.operations] == ["silu"]


def test_planes_that_nobody_reads_are_gone():
    """Also those that lead to no output through several layers."""
    first, second = numbers(1, 1, 3, 6), numbers(1, 1, 6, 2)
    second[:, :, [1, 4]] = 0
    first[:, :, 2] = 0
    net = network(lambda x: convolved(jax.nn.relu(convolved(x, first)), second), 4, 4, 3)
    one, two = net.operations
    assert (len(one.outs), len(two.outs)) == (4, 2)
    assert len(net.inputs[0].planes) == 2


def test_constant_channels_are_in_the_bias():
    """A dead channel is a number. Where zeros are padded it is not the same everywhere."""
    first, bias = numbers(4, 4), np.array([[-1.0, 2.0, 3.0, 0.5]], np.float32)
    first[:, :2] = 0
    net = network(lambda x: jnp.tanh(x @ first + bias) @ numbers(4, 3), 4)
    assert len(net.operations[-1].sources) == 2 * 3
    dead = numbers(1, 1, 2, 2)
    dead[..., 1] = 0
    shift = np.ones((1, 1, 1, 2), np.float32)
    net = network(lambda x: convolved(convolved(x, dead) + shift, numbers(3, 3, 2, 1)), 5, 5, 2)
    assert len(net.operations[-1].sources) == 2 * 9 - 1  # the tap in the middle is never outside
    net = network(lambda x: convolved(convolved(x, dead) + shift, numbers(1, 1, 2, 1)), 5, 5, 2)
    assert all(len(read(operation)) <= 2 for operation in net.operations)


def test_a_plane_that_others_read_stays():
    """It is not written out into each of its readers, which would do its work again."""
    w = numbers(3, 3, 4, 4)
    net = network(lambda x: convolved(convolved(x, w), w), 6, 6, 4)
    assert len(net.operations) == 2
