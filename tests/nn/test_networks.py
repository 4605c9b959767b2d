"""Networks of the papers: published sizes and FLOPs, names of layers, and errors.

Nothing is compiled here; shapes are enough.
"""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsparse
from experiments.records.cost import shapes_and_flops
from jaxsparse.nn import (
    PYTORCH_INIT,
    VGG,
    LeNet5,
    LeNet300100,
    WideResNet,
    cifar_resnet,
    resnet,
)
from jaxsparse.nn.layers import CONV_INIT
from jaxsparse.paths import leaf_paths, prunable_leaves

GRANET_RESNET50 = resnet(50, stem="cifar", num_classes=10, fc_bias=False)

# Network, side of the image, parameters, those in kernels, kernels, multiply-adds of one image.
TABLE = {
    "resnet18": (resnet(18), 224, 11_689_512, 11_678_912, 21, 1_814_073_344),
    "resnet34": (resnet(34), 224, 21_797_672, 21_779_648, 37, 3_663_761_408),
    "resnet50": (resnet(50), 224, 25_557_032, 25_502_912, 54, 4_089_184_256),
    "resnet101": (resnet(101), 224, 44_549_160, 44_442_816, 105, 7_801_405_440),
    "granet resnet50": (GRANET_RESNET50, 32, 23_520_832, 23_467_712, 54, 1_297_829_888),
    "resnet8": (cifar_resnet(8), 32, 78_042, 77_360, 10, 12_501_632),
    "resnet20": (cifar_resnet(20), 32, 272_474, 270_896, 22, 40_813_184),
    "resnet32": (cifar_resnet(32), 32, 466_906, 464_432, 34, 69_124_736),
    "resnet56": (cifar_resnet(56), 32, 855_770, 851_504, 58, 125_747_840),
    "grasp resnet32": (cifar_resnet(32, width=32), 32, 1_860_522, 1_855_584, 34, 275_612_928),
    "wrn22-2": (WideResNet(22, 2), 32, 1_079_642, 1_076_912, 23, 157_730_048),
    "wrn16-8": (WideResNet(16, 8), 32, 10_961_370, 10_954_160, 17, 1_548_145_664),
    "wrn28-10": (WideResNet(28, 10), 32, 36_479_194, 36_461_232, 29, 5_243_328_768),
    "vgg16": (VGG(16), 32, 14_724_042, 14_715_584, 14, 313_201_664),
    "vgg19": (VGG(19), 32, 20_035_018, 20_024_000, 17, 398_136_320),
}


@functools.cache
def variables_of(name):
    model, side, *_ = TABLE[name]
    image = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    return jax.eval_shape(model.init, jax.random.key(0), image)


@pytest.mark.parametrize("name", TABLE)
def test_size_and_flops(name):
    model, side, num_params, num_prunable, num_kernels, multiply_adds = TABLE[name]
    image = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    params, flops = shapes_and_flops(model, image)
    prunable = prunable_leaves(params)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == num_params
    assert sum(leaf.size for leaf in prunable.values()) == num_prunable
    assert sum(flops.values()) == 2 * multiply_adds
    # Exactly the convolutions and the classifier are prunable, and have all the products.
    assert len(prunable) == num_kernels and set(flops) == set(prunable)
    assert all(path.endswith("/kernel") for path in prunable)
    assert {leaf.ndim for path, leaf in prunable.items() if not path.startswith("fc/")} == {4}


def test_the_shortcuts_of_the_paper_on_cifar():
    # Option A pads with zeros, so it has neither shortcut_conv nor shortcut_norm.
    for name, expected in (("resnet20", 269_722), ("resnet56", 853_018)):
        params = variables_of(name)["params"]
        sizes = zip(leaf_paths(params), jax.tree.leaves(params), strict=True)
        assert sum(leaf.size for path, leaf in sizes if "shortcut" not in path) == expected


@pytest.mark.parametrize("name", TABLE)
def test_names_for_rules(name):
    paths = jaxsparse.prunable_paths(variables_of(name)["params"])
    for rule in (r"^conv1/", r"^fc/"):
        assert len([path for path in paths if re.search(rule, path)]) == 1
    part = r"(stage\d_block\d+/)?(conv\d+|norm\d*|shortcut_conv|shortcut_norm|fc)/[a-z]+"
    assert [p for p in leaf_paths(variables_of(name)["params"]) if not re.fullmatch(part, p)] == []


def test_names_of_a_block():
    assert jaxsparse.prunable_paths(variables_of("resnet50")["params"])[:6] == [
        "conv1/kernel",
        "fc/kernel",
        "stage1_block1/conv1/kernel",
        "stage1_block1/conv2/kernel",
        "stage1_block1/conv3/kernel",
        "stage1_block1/shortcut_conv/kernel",
    ]


# With a stride of 2 and an even image, "SAME" pads one side only: the shapes agree, the numbers
# do not.
@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnet20", "wrn22-2", "vgg19"])
def test_windows_are_padded_alike_on_all_sides(name):
    model, side, *_ = TABLE[name]
    image = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    windows = {}
    for eqn in jax.make_jaxpr(model.apply)(variables_of(name), image).eqns:
        if eqn.primitive.name == "conv_general_dilated":
            size = eqn.invars[1].aval.shape[0]
            windows.setdefault(("conv", size), set()).add(eqn.params["padding"])
        elif eqn.primitive.name == "reduce_window_max":
            size = eqn.params["window_dimensions"][1]
            windows.setdefault(("pool", size), set()).add(eqn.params["padding"][1:3])
    assert ("conv", 3) in windows
    for (_, size), paddings in windows.items():
        assert paddings == {(((size - 1) // 2,) * 2,) * 2}


CALLS = {
    "resnet18": (resnet(18, num_classes=7), (2, 64, 64, 3)),
    "resnet50, cifar stem": (resnet(50, stem="cifar", num_classes=7), (2, 32, 32, 3)),
    "resnet8": (cifar_resnet(8, num_classes=7), (2, 32, 32, 3)),
    "resnet8, other sides": (cifar_resnet(8, num_classes=7), (2, 33, 20, 1)),
    "wrn10-1": (WideResNet(10, 1, num_classes=7), (2, 32, 32, 3)),
    "vgg16": (VGG(16, num_classes=7), (2, 64, 64, 3)),
    "vgg19 at its smallest": (VGG(19, num_classes=7), (2, 16, 16, 3)),
    "lenet5": (LeNet5(num_classes=7), (2, 28, 28, 1)),
    "lenet-300-100": (LeNet300100(num_classes=7), (2, 28, 28, 1)),
}


@pytest.mark.parametrize("name", CALLS)
def test_all_are_called_alike(name):
    model, shape = CALLS[name]

    def both(key, images):
        variables = model.init(key, images)
        params = variables.pop("params")
        logits = model.apply({"params": params, **variables}, images)
        trained, updates = model.apply(
            {"params": params, **variables}, images, train=True, mutable=["batch_stats"]
        )
        return logits, trained, variables, updates

    images = jax.ShapeDtypeStruct(shape, jnp.float32)
    logits, trained, variables, updates = jax.eval_shape(both, jax.random.key(0), images)
    assert logits == trained == jax.ShapeDtypeStruct((2, 7), jnp.float32)
    assert variables == updates
    assert list(variables) == ([] if "lenet" in name else ["batch_stats"])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: resnet(21), "depth 21 must be 18, 34, 50 or 101; cifar_resnet makes"),
        (lambda: resnet(50, stem="tiny"), "stem 'tiny' must be 'imagenet' or 'cifar'"),
        (lambda: resnet(50, width=0), "width 0 must be a whole number, at least 1"),
        (lambda: cifar_resnet(18), r"depth 18 must be 6n \+ 2, at least 8, such as 8, 20, 32 or"),
        (lambda: cifar_resnet(2), r"depth 2 must be 6n \+ 2, at least 8"),
        (lambda: cifar_resnet(20.0), r"depth 20.0 must be 6n \+ 2"),
        (lambda: WideResNet(21, 2), r"depth 21 must be 6n \+ 4, at least 10, such as 16 or 22"),
        (lambda: WideResNet(4, 2), r"depth 4 must be 6n \+ 4, at least 10"),
        (lambda: WideResNet(22, 0), "width 0 must be a whole number, at least 1"),
        (lambda: WideResNet(22, 1.5), "width 1.5 must be a whole number, at least 1"),
        (lambda: WideResNet(22, 2, dropout_rate=1.0), r"dropout_rate 1.0 must be in \[0, 1\)"),
        (lambda: VGG(17), "depth 17 must be 16 or 19"),
        (
            lambda: jax.eval_shape(VGG(16).init, jax.random.key(0), jnp.zeros((1, 8, 32, 3))),
            "images of 8 x 32 must be at least 16 x 16",
        ),
    ],
)
def test_what_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_convolutions_start_with_the_variance_of_kaiming_fan_out():
    kernel = np.asarray(CONV_INIT(jax.random.key(0), (3, 3, 64, 128), jnp.float32))
    # 73,728 draws: the standard error of the variance is 0.5 %.
    assert kernel.var() == pytest.approx(2 / (3 * 3 * 128), rel=0.02)
    assert abs(kernel).max() > 3 * kernel.std()  # a normal that is not truncated at 2


@pytest.mark.parametrize("shape", [(3, 3, 64, 128), (512, 100)])
def test_pytorch_init_is_uniform_to_one_over_the_root_of_fan_in(shape):
    kernel = np.asarray(PYTORCH_INIT(jax.random.key(0), shape, jnp.float32))
    bound = np.prod(shape[:-1]) ** -0.5
    assert 0.999 * bound < abs(kernel).max() <= bound * (1 + 1e-6)
    assert kernel.var() == pytest.approx(bound**2 / 3, rel=0.02)


def test_networks_start_as_they_are_told(key):
    ones = jax.nn.initializers.ones
    for make in (cifar_resnet, WideResNet, VGG):
        network = {cifar_resnet: (8,), WideResNet: (10, 1), VGG: (16,)}[make]
        model = make(*network, kernel_init=ones, fc_init=ones)
        image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
        drawn = str(jax.make_jaxpr(model.init)(key, image))
        assert "random_bits" not in drawn and "erf_inv" not in drawn
