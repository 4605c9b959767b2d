"""Widths of single convolutions: their shapes, and sums of unequal ones refused."""

import jax
import jax.numpy as jnp
import pytest

from jaxsparse.nn import cifar_resnet, layer_shapes, resnet, sparse_execution
from jaxsparse.paths import leaves_by_path

pytestmark = pytest.mark.variants  # our own code, which knows little of versions


def kernels(model, side=16):
    image = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
    return {p: x.shape for p, x in leaves_by_path(params).items() if p.endswith("kernel")}


@pytest.mark.parametrize("model", [cifar_resnet(20), resnet(50).clone(stage_sizes=(1, 2))])
def test_the_widths_are_those_of_the_network(model):
    widths = model.conv_widths()
    found = kernels(model)
    assert {f"{name}/kernel" for name in widths} == set(found) - {"fc/kernel"}
    assert all(found[f"{name}/kernel"][-1] == width for name, width in widths.items())
    assert kernels(model.clone(widths=widths)) == found


def test_narrow_inner_and_residual_channels():
    outputs = {"conv1": 9, "stage1_block1/conv2": 9}
    model = cifar_resnet(8, widths={**outputs, "stage2_block1/conv1": 5})
    found = kernels(model)
    assert found["stage1_block1/conv1/kernel"] == (3, 3, 9, 16)
    assert found["stage1_block1/conv2/kernel"] == (3, 3, 16, 9)
    assert "stage1_block1/shortcut_conv/kernel" not in found
    assert found["stage2_block1/conv1/kernel"] == (3, 3, 9, 5)
    assert found["stage2_block1/conv2/kernel"] == (3, 3, 5, 32)
    assert found["stage2_block1/shortcut_conv/kernel"] == (1, 1, 9, 32)


def test_the_check_of_widths_is_no_layer_to_what_looks_for_layers():
    """The module's copy at call time has no path yet when it checks its widths."""
    model = cifar_resnet(8, widths={"stage2_block1/conv1": 5})
    image = jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    with sparse_execution({}):
        assert jax.eval_shape(model.apply, variables, image).shape == (1, 10)
    shapes = layer_shapes(model.apply, variables, image)
    assert shapes["stage2_block1/conv1/kernel"].kernel == (3, 3, 16, 5)


def test_a_shortcut_stays_when_its_channels_come_to_be_equal():
    """A bottleneck's first shortcut has 4 * 16 outputs; narrowed to 16, as many as its inputs."""
    full = resnet(50, stem="cifar", width=16).clone(stage_sizes=(2, 1))
    names = [name for name in full.conv_widths() if name.startswith("stage1_") and "conv3" in name]
    narrow = full.clone(widths=dict.fromkeys([*names, "stage1_block1/shortcut_conv"], 16))
    assert kernels(narrow)["stage1_block1/shortcut_conv/kernel"] == (1, 1, 16, 16)


@pytest.mark.parametrize(
    ("widths", "message"),
    [
        ({"stage4_block1/conv1": 3}, "no convolution is called stage4_block1/conv1; there are"),
        ({"fc": 3}, "no convolution is called fc"),
        ({"stage1_block1/conv1": 0}, "stage1_block1/conv1 0 must be a whole number of channels"),
        (
            {"stage1_block1/conv2": 9},
            "conv1 has 16 channels and stage1_block1/conv2 9, but their outputs are added",
        ),
        (
            {"stage2_block1/shortcut_conv": 9},
            "stage2_block1/shortcut_conv has 9 channels and stage2_block1/conv2 32",
        ),
    ],
)
def test_what_is_refused(widths, message):
    with pytest.raises(ValueError, match=message):
        cifar_resnet(8, widths=widths)
