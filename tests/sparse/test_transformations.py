"""Sparse convolutions inside JAX's transformations give what they give outside."""

import functools

import chex
import jax
import jax.numpy as jnp
import pytest

from jaxsparse.sparse import Window, sparse_conv, to_sparse

WINDOW = Window((3, 3), (1, 2), ((1, 0), (1, 1)))
KERNEL = jax.random.normal(jax.random.key(0), (3, 3, 2, 4))
VALUES, POSITIONS = to_sparse(KERNEL, jnp.abs(KERNEL) > 0.7)
SHAPES = {"NHWC": (3, 5, 6, 2), "CHWN": (2, 5, 6, 3)}


def stack_of_images(layout):
    return jax.random.normal(jax.random.key(1), (4, *SHAPES[layout]))


def conv(images, values=VALUES, positions=POSITIONS, layout="NHWC"):
    return sparse_conv(images, values, positions, WINDOW, layout=layout)


def loss(images, values, layout):
    return jnp.sin(conv(images, values, layout=layout)).sum()


close = functools.partial(chex.assert_trees_all_close, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layout", ["NHWC", "CHWN"])
@pytest.mark.parametrize(
    "axes", [(0, None, None), (None, 0, None), (0, 0, None), (0, 0, 0), (None, None, 0)]
)
def test_vmap_over_any_argument(axes, layout, engine):
    stacked = (
        stack_of_images(layout),
        jnp.stack([VALUES, 2 * VALUES, -VALUES, 0 * VALUES]),
        jax.tree.map(lambda x: jnp.stack([x, x, x, x]), POSITIONS),
    )
    pick = lambda x, i: jax.tree.map(lambda x: x[i], x)
    at = lambda i: [
        pick(x, 0 if axis is None else i) for x, axis in zip(stacked, axes, strict=True)
    ]
    f = functools.partial(conv, layout=layout)
    given = [x if axis == 0 else pick(x, 0) for x, axis in zip(stacked, axes, strict=True)]
    found = jax.jit(jax.vmap(f, axes))(*given)
    close(found, jnp.stack([f(*at(i)) for i in range(4)]))


@pytest.mark.parametrize("layout", ["NHWC", "CHWN"])
def test_vmap_over_images_is_one_call_of_the_kernel(layout, engine):
    images = stack_of_images(layout)
    f = functools.partial(conv, layout=layout)
    twice = jax.jit(jax.vmap(jax.vmap(f)))
    close(twice(images[None]), jnp.stack([f(x) for x in images])[None])
    if engine == "compiled":
        text = twice.lower(images[None]).as_text()
        assert text.count("@jaxsparse_conv_forward") == 1
        assert "while" not in text


@pytest.mark.parametrize("layout", ["NHWC", "CHWN"])
def test_gradients_through_vmap_and_of_each_element(layout, engine):
    images = stack_of_images(layout)
    one = jax.grad(functools.partial(loss, layout=layout), (0, 1))
    grad_images, grad_values = (
        jnp.stack(x) for x in zip(*(one(x, VALUES) for x in images), strict=True)
    )
    close(jax.vmap(one, (0, None))(images, VALUES), (grad_images, grad_values))

    def total(images, values):
        return jax.vmap(lambda x: loss(x, values, layout))(images).sum()

    close(jax.grad(total, (0, 1))(images, VALUES), (grad_images, grad_values.sum(0)))


def looped(images, values):
    add = lambda total, x: (total + loss(x, values, "NHWC"), None)
    return jax.lax.scan(add, jnp.zeros(()), images)[0]


def chosen(images, values):
    take = lambda x: loss(x, values, "NHWC")
    return sum(jax.lax.cond(x.sum() < jnp.inf, take, lambda x: 0.0, x) for x in images)


def rematerialised(images, values):
    once = jax.checkpoint(lambda x: loss(x, values, "NHWC"))
    return sum(once(x) for x in images)


@pytest.mark.parametrize("f", [looped, chosen, rematerialised])
def test_scan_cond_and_remat(f, engine):
    images = stack_of_images("NHWC")[:2]
    plain = lambda images, values: sum(loss(x, values, "NHWC") for x in images)
    found = jax.jit(jax.value_and_grad(f, (0, 1)))(images, VALUES)
    close(found, jax.value_and_grad(plain, (0, 1))(images, VALUES))


def test_forward_mode_is_refused():
    images = stack_of_images("NHWC")[0]
    with pytest.raises(TypeError, match=r"forward-mode .* custom_vjp"):
        jax.jvp(conv, (images,), (images,))
    with pytest.raises(TypeError, match=r"forward-mode .* custom_vjp"):
        jax.hessian(lambda values: loss(images, values, "NHWC"))(VALUES)
