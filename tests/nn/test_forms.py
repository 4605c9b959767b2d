"""The shapes of a model's layers, and the form that is chosen for each."""

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn

from jaxsparse.nn import choose_forms, cifar_resnet, layer_shapes
from jaxsparse.sparse import LayerShape, Window

IMAGES = jax.ShapeDtypeStruct((128, 32, 32, 3), jnp.float32)
ACTIVE = {"conv1/kernel": 432, "stage1_block1/conv1/kernel": 20, "fc/kernel": 640}


def half(layer, train):
    return 0.5


class Mixed(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Conv(9, (3, 2), strides=2, padding="SAME", feature_group_count=3, name="a")(x)
        x = nn.Conv(4, (3, 3), padding="CIRCULAR", name="b")(x)
        return nn.Dense(7, name="c")(x)


def test_layers_of_a_model():
    model = Mixed()
    images = jax.ShapeDtypeStruct((2, 9, 8, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    model = Mixed()
    found = layer_shapes(model.apply, variables, images)
    window = Window((3, 2), (2, 2), ((1, 1), (0, 0)), (1, 1), 3)
    assert found == {
        "a/kernel": LayerShape((2, 9, 8, 3), (3, 2, 1, 9), window),
        "c/kernel": LayerShape((1, 1, 2 * 5 * 4, 4), (1, 1, 4, 7), Window((1, 1))),
    }
    assert found["a/kernel"].macs == 2 * 5 * 4 * 3 * 2 * 9


def test_channel_major_layers_say_so():
    model = cifar_resnet(8, layout="CHWN")
    variables = jax.eval_shape(model.init, jax.random.key(0), IMAGES)
    found = layer_shapes(model.apply, variables, IMAGES)
    window = Window((3, 3), (1, 1), ((1, 1), (1, 1)))
    assert found["conv1/kernel"] == LayerShape((128, 32, 32, 3), (3, 3, 3, 16), window, "CHWN")
    assert found["fc/kernel"].layout == "NHWC"


def test_mostly_sparse_networks_are_channel_major():
    model = cifar_resnet(8)
    every = {
        path: shape.size // 10
        for path, shape in layer_shapes(
            model.apply, jax.eval_shape(model.init, jax.random.key(0), IMAGES), IMAGES
        ).items()
    }
    forms = choose_forms(model, IMAGES, every, break_even=half)
    assert forms.model == model.clone(layout="CHWN")
    assert set(forms.capacity) == set(every)
    assert forms.capacity["conv1/kernel"] == 43 + 10
    table = str(forms)
    assert "10 of 10 layers" in table and "CHWN" in table

    few = choose_forms(model, IMAGES, ACTIVE, break_even=half)
    assert few.model == model
    assert few.capacity == {"stage1_block1/conv1/kernel": 25}
    assert [form.is_sparse for form in few.layers] == [False, True, False]
    assert "fc/kernel" in str(few) and "dense" in str(few)


def test_what_serves_stays():
    model = cifar_resnet(8)
    first = choose_forms(model, IMAGES, ACTIVE, break_even=half)
    fewer = ACTIVE | {"stage1_block1/conv1/kernel": 15}
    again = choose_forms(model, IMAGES, fewer, first.capacity, break_even=half)
    assert again.capacity == first.capacity
    assert again.layers[1].num_active == 15


@pytest.mark.parametrize("exact", [False, True])
def test_models_without_layouts(exact):
    model = nn.Conv(8, (3, 3))
    forms = choose_forms(model, IMAGES, {"kernel": 16}, exact=exact, break_even=half)
    assert forms.model == model
    assert forms.capacity == {"kernel": 16 if exact else 20}


def test_what_is_not_float32_stays_dense():
    forms = choose_forms(cifar_resnet(8, dtype=jnp.bfloat16), IMAGES, ACTIVE, break_even=half)
    assert forms.model.layout == "NHWC" and not any(path != "fc/kernel" for path in forms.capacity)
    why = "dtype=bfloat16"
    assert forms.others == {"conv1/kernel": why, "stage1_block1/conv1/kernel": why}
    assert str(forms).splitlines()[0].startswith("0 of 3 layers are executed by their active wei")
    assert str(forms).splitlines()[-1] == (
        "without a sparse form, for dtype=bfloat16: conv1/kernel, stage1_block1/conv1/kernel"
    )


class Upsampling(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.ConvTranspose(4, (3, 3), name="up")(Mixed()(x))


def test_every_prunable_layer_has_a_form_or_a_reason():
    active = dict.fromkeys(
        ["Mixed_0/a/kernel", "Mixed_0/b/kernel", "Mixed_0/c/kernel", "up/kernel", "lost/kernel"], 5
    )
    forms = choose_forms(Upsampling(), IMAGES, active, break_even=half)
    assert [form.path for form in forms.layers] == ["Mixed_0/a/kernel", "Mixed_0/c/kernel"]
    assert forms.others == {
        "Mixed_0/b/kernel": "padding='CIRCULAR'",
        "up/kernel": "a ConvTranspose",
        "lost/kernel": "no module of that name, or one within nn.jit",
    }
