"""The GPU kernels of the benchmark, interpreted, against XLA's convolution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from benchmarks.gpu_layers import Layer, make_lists, resnet50
from benchmarks.gpu_programs import Case, compile_case, draw_kernel, run_once
from benchmarks.gpu_report import break_even
from benchmarks.pallas_convolution import Block, convolve
from jaxsparse.sparse import to_dense, to_sparse

pytestmark = pytest.mark.variants  # long, and one version of Python is enough

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
    """Images, output gradients, values, and positions with spare capacity and an empty channel."""
    rng = np.random.default_rng(seed)
    shape = (layer.taps, layer.taps, layer.inputs, layer.outputs)
    mask = rng.random(shape) < 0.3
    mask[..., 1] = False
    mask[..., 1, :] = False
    weights = jnp.asarray(rng.normal(size=shape), jnp.float32)
    values, positions = to_sparse(weights, jnp.asarray(mask), capacity=int(mask.sum()) + 3)
    sizes = (layer.inputs, layer.size), (layer.outputs, layer.out_size)
    images, grads = (
        jnp.asarray(rng.normal(size=(channels, size, size, batch)), dtype)
        for channels, size in sizes
    )
    return images, grads, values, positions


@pytest.mark.parametrize(
    ("layer", "block", "dtype"),
    [
        (Layer(4, 3, 4, 1, 1), PLAIN, jnp.float32),
        (Layer(4, 3, 4, 1, 2), WIDE, jnp.float32),
        (Layer(5, 3, 4, 3, 1), WIDE, jnp.float32),
        (Layer(4, 3, 4, 3, 2), WIDE, jnp.float32),  # padded at one end
        (Layer(5, 2, 3, 3, 2), PLAIN, jnp.float32),  # padded at both, an odd number of channels
        (Layer(4, 3, 4, 3, 1), WIDE, jnp.bfloat16),
    ],
    ids=str,
)
def test_outputs_and_gradients_are_those_of_xla(layer, block, dtype):
    images, grads, values, positions = a_case(layer, 6, dtype)
    flat = np.asarray(positions.flat)[: int(positions.num)]
    lists = make_lists(flat, layer, positions.capacity)
    sparse = lambda images, values: convolve(layer, block, True, images, values, lists)
    exact = lambda images, values: dense(layer, images, to_dense(values, positions))
    found = jax.jit(results, static_argnums=0)(sparse, images, values, grads)
    full = (x.astype(jnp.float32) for x in (images, values, grads))
    expected = jax.jit(results, static_argnums=0)(exact, *full)
    assert found[0].dtype == found[1].dtype == dtype
    tolerance = 1e-5 if dtype == jnp.float32 else 2e-2
    for one, other in zip(found, expected, strict=True):
        one = np.asarray(one, np.float32)
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance)


def results(function, images, values, grads):
    out, backward = jax.vjp(function, images, values)
    return out, *backward(grads)


@pytest.mark.skipif(jax.__version_info__ >= (0, 11), reason="asks for a GPU's description")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_kernels_lower_for_cuda(dtype):
    layer, block = Layer(14, 32, 64, 3, 2), Block(4, 128, 16, 4, 1)
    kernel = draw_kernel(layer, 0.9, 2000)
    images = jax.ShapeDtypeStruct((32, 14, 14, 256), dtype)
    grads = jax.ShapeDtypeStruct((64, 7, 7, 256), dtype)

    def step(images, values, lists, grads):
        sparse = lambda images, values: convolve(layer, block, False, images, values, lists)
        return results(sparse, images, values, grads)

    traced = jax.jit(step).trace(images, kernel.values, kernel.lists, grads)
    assert traced.lower(lowering_platforms=("cuda",)).as_text().count("xla.gpu.triton") == 3


@pytest.mark.parametrize("block", [None, PLAIN])
def test_a_program_returns_what_one_call_does(block):
    layer = Layer(4, 3, 4, 3, 1)
    kernel = draw_kernel(layer, 0.5, 60)
    images = jax.random.normal(jax.random.key(0), (3, 4, 4, 8))
    program = compile_case(Case(layer, False, "float32", block, 60), 8, True)
    args = (kernel.values, images, kernel.lists)
    if block is None:
        args = (jnp.asarray(kernel.dense), images.transpose(3, 1, 2, 0), None)
    (out,) = run_once(program, *args)
    expected = dense(layer, images, jnp.asarray(kernel.dense))
    found = out if block is not None else out.transpose(3, 1, 2, 0)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_the_layers_are_those_of_resnet50_without_the_first():
    layers = resnet50()
    weights = {layer: layer.columns * layer.outputs for layer in layers}
    assert (len(layers), sum(layers.values())) == (22, 52)
    # 25,502,912 with the first convolution and the dense layer.
    total = sum(weights[layer] * count for layer, count in layers.items())
    assert total == 25_502_912 - 7 * 7 * 3 * 64 - 2048 * 1000


def test_where_sparse_and_dense_take_as_long():
    assert break_even(2.0, 1.0, 0.1) == "2.00%"
    assert break_even(1.0, 2.0, 1.5) == "none"
