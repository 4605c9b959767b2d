"""The memory traffic of a step, counted by hand."""

import jax
import jax.numpy as jnp

from benchmarks.memory_traffic import step_bytes
from jaxsparse.nn import cifar_resnet, layer_shapes


def test_bytes_of_resnet8():
    model = cifar_resnet(8, layout="CHWN")
    images = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    layers = layer_shapes(
        model.apply, jax.eval_shape(model.init, jax.random.key(0), images), images
    )
    # Activations of one image after the stem and the three blocks, and the image itself.
    image, a, b, c = 3 * 32 * 32, 16 * 32 * 32, 32 * 16 * 16, 64 * 8 * 8
    read = image + 2 * a + (2 * a + b) + (2 * b + c)  # by convolutions: shortcuts read too
    with_relu, shortcuts = a + 2 * a + 2 * b + 2 * c, b + c
    blocks_out, blocks_in = a + b + c, a + a + b
    train = 3 * read + 8 * with_relu + 7 * shortcuts + 2 * blocks_out + 3 * blocks_in
    infer = read + 3 * (with_relu + shortcuts) + blocks_out
    assert step_bytes(layers, train=True) == 2 * 4 * train
    assert step_bytes(layers, train=False) == 2 * 4 * infer
