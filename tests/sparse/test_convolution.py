"""Sparse layers against XLA's dense ones: outputs, and the gradients of images and values."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse
from jax import lax

from jaxsparse.nn import cifar_resnet, layer_shapes, resnet
from jaxsparse.sparse import Window, sparse_conv, sparse_dot, to_sparse
from jaxsparse.sparse.positions import positions_of

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


def close(ours, theirs, what=""):
    scale = max(np.abs(theirs).max(initial=0), 1e-6)
    np.testing.assert_allclose(ours / scale, theirs / scale, rtol=0, atol=1e-5, err_msg=what)


@pytest.mark.parametrize("layout", ["NHWC", "CHWN"])
@pytest.mark.parametrize("case", CASES)
def test_a_convolution_and_its_gradients(case, layout, engine):
    images, kernel, mask, grads, dense = drawn(case, layout)
    values, positions = to_sparse(kernel, mask, capacity=min(int(mask.sum()) + 3, mask.size))
    sparse = functools.partial(sparse_conv, window=CASES[case][1], layout=layout)

    out, pull = jax.vjp(lambda x, v: sparse(x, v, positions), images, values)
    expected, dense_pull = jax.vjp(dense, images, kernel)
    close(out, expected)
    (grad_images, grad_values), (images_ref, kernel_ref) = pull(grads), dense_pull(grads)
    close(grad_images, images_ref)
    close(grad_values, to_sparse(kernel_ref, mask, capacity=positions.capacity)[0])


NETWORKS = {"resnet20": cifar_resnet(20), "resnet34": resnet(34), "resnet50": resnet(50)}
# By batch: the largest side of the images. With larger images the reference takes minutes.
SIDES = {1: 14, 7: 9, 32: 6, 128: 4}
# Density of most layers is 1 %. These have more, so that channel-major batches are copied, with a
# stride and without, and that a task has only some of the input channels.
DENSER = {(3, 3, 64, 64): 0.3, (3, 3, 128, 256): 0.25, (3, 3, 16, 32): 0.5}


@functools.cache
def layers_of(name):
    """The layers of a network that differ, at one image."""
    side = 32 if name == "resnet20" else 224
    images = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    variables = jax.eval_shape(NETWORKS[name].init, jax.random.key(0), images)
    return tuple(dict.fromkeys(layer_shapes(NETWORKS[name].apply, variables, images).values()))


def layers_with(name, batch):
    """Every other layer at a batch, as (images, kernel, window, layouts); so each has two batches.

    It has one layout with one batch, and the other layout with the other batch.
    """
    place = list(SIDES).index(batch)
    for i, layer in enumerate(layers_of(name)[place % 2 :: 2]):
        _, height, width, channels = layer.images
        images = (batch, min(height, SIDES[batch]), min(width, SIDES[batch]), channels)
        layouts = ("NHWC", "CHWN")
        if layer.kernel not in DENSER:
            layouts = layouts[(i + place // 2) % 2 :][:1]
        yield images, layer.kernel, layer.window, layouts


def by_taps(images, kernel, mask, grads, window):
    """Outputs, and gradients of images and kernel where it is active; channel-major, in float64."""
    images, grads = (np.asarray(x, np.float64) for x in (images, grads))
    padded = np.pad(images, ((0, 0), *window.padding, (0, 0)))
    grad_padded, grad_kernel = np.zeros_like(padded), np.zeros(kernel.shape)
    flat_grads = grads.reshape(len(grads), -1)
    out = np.zeros_like(flat_grads)
    for tap in np.ndindex(*window.taps):
        rows, columns = (
            slice(at, at + (num - 1) * stride + 1, stride)
            for at, num, stride in zip(tap, grads.shape[1:3], window.strides, strict=True)
        )
        read = padded[:, rows, columns].reshape(len(padded), -1)
        matrix = scipy.sparse.csr_array(np.asarray(kernel[tap], np.float64).T)
        out += matrix @ read
        grad_padded[:, rows, columns] += (matrix.T @ flat_grads).reshape(-1, *grads.shape[1:])
        inputs, outputs = np.nonzero(mask[tap])
        grad_kernel[tap][inputs, outputs] = np.einsum("np,np->n", read[inputs], flat_grads[outputs])
    (top, _), (left, _) = window.padding
    _, height, width, _ = images.shape
    grad_images = grad_padded[:, top : top + height, left : left + width]
    return out.reshape(grads.shape), grad_images, grad_kernel


def with_gradients(conv, images, values, positions, grads):
    out, pull = jax.vjp(lambda images, values: conv(images, values, positions), images, values)
    return out, *pull(grads)


@pytest.mark.slow
@pytest.mark.parametrize("batch", SIDES)
@pytest.mark.parametrize(
    "name", ["resnet20", "resnet34", pytest.param("resnet50", marks=pytest.mark.long)]
)
def test_the_layers_of_resnets(name, batch, compiled):
    for shape, kernel_shape, window, layouts in layers_with(name, batch):
        rng = np.random.default_rng(0)
        normal = functools.partial(rng.standard_normal, dtype=np.float32)
        num, height, width, channels = shape
        images = normal((channels, height, width, num))
        mask = rng.random(kernel_shape) < DENSER.get(kernel_shape, 0.01)
        kernel = normal(kernel_shape) * mask
        grads = normal((kernel_shape[-1], *window.out_size((height, width)), num))
        out, grad_images, grad_kernel = by_taps(images, kernel, mask, grads, window)
        by_row = lambda x: x.reshape(-1, x.shape[-1]).T
        values, of_values = (by_row(x)[by_row(mask)] for x in (kernel, grad_kernel))
        for layout in layouts:
            in_layout = (lambda x: x) if layout == "CHWN" else (lambda x: x.transpose(3, 1, 2, 0))
            conv = functools.partial(sparse_conv, window=window, layout=layout)
            found = jax.jit(functools.partial(with_gradients, conv))(
                in_layout(images), values, positions_of(mask), in_layout(grads)
            )
            expected = (in_layout(out), in_layout(grad_images), of_values)
            for ours, theirs in zip(found, expected, strict=True):
                close(ours, theirs, f"{name}, {shape}, {kernel_shape}, {window}, {layout}")


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
