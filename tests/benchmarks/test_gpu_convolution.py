"""The GPU kernels of the benchmark, interpreted, against XLA's convolution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from benchmarks.pallas_convolution import Block, Layer, convolve, make_lists
from jaxsparse.sparse import to_dense, to_sparse

PLAIN = Block(pixels=1, images=8, channels=1, unroll=1, warps=1)
WIDE = Block(pixels=4, images=4, channels=2, unroll=4, warps=2)


def dense(layer, images, kernel):
    return lax.conv_general_dilated(
        images,
        kernel,
        (layer.stride, layer.stride),
        "SAME",
        dimension_numbers=("CHWN", "HWIO", "CHWN"),
        precision="highest",
    )


def a_case(layer, batch, dtype, seed=0):
    """Images, gradients of the outputs, values and positions with room and an empty channel."""
    rng = np.random.default_rng(seed)
    shape = (layer.taps, layer.taps, layer.inputs, layer.outputs)
    mask = rng.random(shape) < 0.3
    mask[..., 1] = False
    mask[..., 1, :] = False
    weights = jnp.asarray(rng.normal(size=shape), jnp.float32)
    values, positions = to_sparse(weights, jnp.asarray(mask), room=int(mask.sum()) + 3)
    sizes = (layer.inputs, layer.size), (layer.outputs, layer.out_size)
    images, grads = (
        jnp.asarray(rng.normal(size=(channels, size, size, batch)), dtype)
        for channels, size in sizes
    )
    return images, grads, values, positions


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("block", [PLAIN, WIDE])
@pytest.mark.parametrize(
    "layer",
    [
        Layer(4, 3, 4, 1, 1),
        Layer(4, 3, 4, 1, 2),
        Layer(5, 3, 4, 3, 1),
        Layer(4, 3, 4, 3, 2),
        Layer(5, 2, 3, 3, 2),
    ],
    ids=str,
)
def test_outputs_and_gradients_are_those_of_xla(layer, block, dtype):
    images, grads, values, positions = a_case(layer, 6, dtype)
    flat = np.asarray(positions.flat)[: int(positions.num)]
    lists = make_lists(flat, layer, positions.room)
    sparse = lambda images, values: convolve(layer, block, True, images, values, lists)
    exact = lambda images, values: dense(layer, images, to_dense(values, positions))
    out, backward = jax.vjp(sparse, images, values)
    expected, expected_backward = jax.vjp(exact, images.astype(jnp.float32), values)
    assert out.dtype == dtype
    found = (out, *jax.jit(backward)(grads))
    wanted = (expected, *expected_backward(grads.astype(jnp.float32)))
    tolerance = 1e-5 if dtype == jnp.float32 else 2e-2
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(
            np.asarray(one, np.float32), other, rtol=tolerance, atol=tolerance
        )
