"""Sparse layers against XLA's dense ones: outputs, and the gradients of images and values."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxsparse.sparse import Window, sparse_conv, sparse_dot, to_sparse

SAME = ((1, 1), (1, 1))
# (images, height, width, input channels, output channels), window, density.
CASES = {
    "first": ((32, 8, 8, 3, 16), Window((3, 3), padding=SAME), 0.5),
    "usual": ((32, 6, 6, 16, 16), Window((3, 3), padding=SAME), 0.05),
    "one image": ((1, 7, 5, 12, 20), Window((3, 3), padding=SAME), 0.2),
    "few images": ((7, 6, 6, 18, 33), Window((3, 3), padding=SAME), 0.2),
    "stride": ((16, 8, 8, 8, 16), Window((3, 3), (2, 2), SAME), 0.2),
    "shortcut": ((16, 8, 8, 8, 16), Window((1, 1), (2, 2)), 0.2),
    "stride 3, one image": ((1, 11, 10, 4, 5), Window((3, 2), (3, 2), ((0, 1), (1, 0))), 0.3),
    "same, stride 2": ((17, 8, 8, 4, 4), Window((3, 3), (2, 2), ((0, 1), (0, 1))), 0.3),
    "dilation": ((20, 9, 9, 4, 6), Window((3, 3), (1, 1), ((2, 2), (2, 2)), (2, 2)), 0.3),
    "dilation and stride": ((3, 9, 9, 4, 6), Window((3, 2), (2, 3), SAME, (2, 3)), 0.3),
    "groups": ((16, 5, 5, 12, 8), Window((3, 3), padding=SAME, groups=4), 0.3),
    "depthwise": ((5, 5, 5, 12, 12), Window((3, 3), padding=SAME, groups=12), 0.5),
    "wide kernel": ((16, 9, 4, 3, 4), Window((7, 5), (2, 1), ((3, 3), (2, 2))), 0.2),
    "padding wider than the kernel": (
        (16, 3, 3, 2, 2),
        Window((2, 2), padding=((4, 3), (0, 5))),
        1,
    ),
    # Some are done together.
    "many rows": ((17, 70, 12, 3, 4), Window((3, 3), padding=SAME), 0.2),
    # Backward, pixels are read so often that they are copied first.
    "few outputs": ((17, 7, 6, 80, 4), Window((5, 5), (2, 1), SAME), 0.2),
    "no weight": ((16, 4, 4, 3, 3), Window((3, 3), padding=SAME), 0),
    "every weight": ((16, 4, 4, 5, 3), Window((3, 3), padding=SAME), 1),
}


def drawn(case, layout, seed=0):
    """Images, kernel, mask, gradient of the outputs; and the dense layer."""
    (batch, height, width, inputs, outputs), window, density = CASES[case]
    rng = np.random.default_rng(seed)
    normal = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    images = normal(batch, height, width, inputs)
    kernel = normal(*window.taps, inputs // window.groups, outputs)
    mask = jnp.asarray(rng.random(kernel.shape) < density)
    kernel *= mask
    dense = functools.partial(
        lax.conv_general_dilated,
        window_strides=window.strides,
        padding=window.padding,
        rhs_dilation=window.dilation,
        feature_group_count=window.groups,
        dimension_numbers=(layout, "HWIO", layout),
        precision="highest",
    )
    images = images if layout == "NHWC" else images.transpose(3, 1, 2, 0)
    grads = normal(*jax.eval_shape(dense, images, kernel).shape)
    return images, kernel, mask, grads, dense


def close(ours, theirs):
    scale = max(np.abs(theirs).max(initial=0), 1e-6)
    np.testing.assert_allclose(ours / scale, theirs / scale, rtol=0, atol=1e-5)


@pytest.mark.parametrize("layout", ["NHWC", "CHWN"])
@pytest.mark.parametrize("case", CASES)
def test_a_convolution_and_its_gradients(case, layout, engine):
    images, kernel, mask, grads, dense = drawn(case, layout)
    values, positions = to_sparse(kernel, mask, room=min(int(mask.sum()) + 3, mask.size))
    sparse = functools.partial(sparse_conv, window=CASES[case][1], layout=layout)

    out, pull = jax.vjp(lambda x, v: sparse(x, v, positions), images, values)
    expected, dense_pull = jax.vjp(dense, images, kernel)
    close(out, expected)
    (grad_images, grad_values), (images_ref, kernel_ref) = pull(grads), dense_pull(grads)
    close(grad_images, images_ref)
    close(grad_values, to_sparse(kernel_ref, mask, room=positions.room)[0])


@pytest.mark.parametrize("rows", [(3, 5), (2, 4100)])
def test_a_dense_layer_and_its_gradients(rows, engine):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(*rows, 37)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(37, 21)), jnp.float32)
    mask = jnp.asarray(rng.random((37, 21)) < 0.2)
    values, positions = to_sparse(kernel, mask)
    out, pull = jax.vjp(lambda x, v: sparse_dot(x, v, positions), x, values)
    dense = lambda x, w: jnp.matmul(x, w, precision="highest")
    expected, dense_pull = jax.vjp(dense, x, kernel * mask)
    close(out, expected)
    grads = jnp.asarray(rng.normal(size=out.shape), jnp.float32)
    (grad_x, grad_values), (x_ref, kernel_ref) = pull(grads), dense_pull(grads)
    close(grad_x, x_ref)
    close(grad_values, to_sparse(kernel_ref, mask)[0])
