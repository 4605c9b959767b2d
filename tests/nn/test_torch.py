"""The networks give PyTorch's logits and statistics on PyTorch's weights, which go back unchanged.

The references are torchvision's ResNets and VGG and pytorchcv's ResNet-20 and wide ResNet, with
random weights and random statistics. All of it is skipped where torch is not installed.
"""

import collections
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsparse
from jaxsparse.nn import VGG, WideResNet, cifar_resnet, resnet, torchvision_name
from jaxsparse.paths import leaves_by_path

torch = pytest.importorskip("torch")
torchvision = pytest.importorskip("torchvision")
nn = torch.nn


def torchvision_resnet(depth):
    return getattr(torchvision.models, f"resnet{depth}")(num_classes=10)


def torchvision_resnet_with_cifar_stem(depth):
    net = torchvision_resnet(depth)
    net.conv1, net.maxpool = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity()
    net.fc = nn.Linear(net.fc.in_features, 10, bias=False)
    return net


def torchvision_vgg16():
    config = torchvision.models.vgg.cfgs["D"][:-1]  # without the last pooling
    features = torchvision.models.vgg.make_layers(config, batch_norm=True)
    for layer in features:
        if isinstance(layer, nn.Conv2d):
            layer.register_parameter("bias", None)
    head = {"pool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten(), "fc": nn.Linear(512, 10)}
    return nn.Sequential(collections.OrderedDict(features=features, **head))


def vgg16_name(path):
    first = (0, 7, 14, 24, 34)  # module of the first convolution of each stage, pooling before it
    convs = [at + 3 * i for at, num in zip(first, (2, 2, 3, 3, 3), strict=True) for i in range(num)]
    path = re.sub(r"conv(\d+)/", lambda m: f"features/{convs[int(m[1]) - 1]}/", path)
    path = re.sub(r"norm(\d+)/", lambda m: f"features/{convs[int(m[1]) - 1] + 1}/", path)
    return torchvision_name(path)


def pytorchcv_resnet20():
    module = pytest.importorskip("pytorchcv.models.resnet_cifar")
    return module.resnet20_cifar10()


def pytorchcv_wrn22_2():
    module = pytest.importorskip("pytorchcv.models.wrn_cifar")
    return module.get_wrn_cifar(num_classes=10, blocks=22, width_factor=2, model_name="WRN-22-2")


def pytorchcv_name(path):
    path = re.sub(r"^(params|batch_stats)/", "", path)
    for ours, theirs in (
        (r"stage(\d)_block(\d+)/", r"features/stage\1/unit\2/"),
        (r"(unit\d+)/(conv|norm)(\d)/", r"\1/body/conv\3/\2/"),
        (r"shortcut_(conv|norm)/", r"identity_conv/\1/"),
        (r"^(conv|norm)1/", r"features/init_block/\1/"),
        (r"^norm/", "features/post_activ/norm/"),
        (r"^fc/", "output/"),
        (r"/norm/", "/bn/"),
    ):
        path = re.sub(ours, theirs, path)
    return torchvision_name(path)


def pytorchcv_wide_name(path):
    # Plain convolutions, where ResNet-20 has units of convolution and norm.
    return re.sub(r"(init_block|identity_conv)\.conv", r"\1", pytorchcv_name(path))


CASES = {
    "resnet18": (resnet(18, num_classes=10), lambda: torchvision_resnet(18), torchvision_name, 64),
    "resnet34": (resnet(34, num_classes=10), lambda: torchvision_resnet(34), torchvision_name, 64),
    "resnet50": (resnet(50, num_classes=10), lambda: torchvision_resnet(50), torchvision_name, 64),
    "cifar resnet50": (
        resnet(50, stem="cifar", num_classes=10, fc_bias=False),
        lambda: torchvision_resnet_with_cifar_stem(50),
        torchvision_name,
        16,
    ),
    "resnet20": (cifar_resnet(20), pytorchcv_resnet20, pytorchcv_name, 32),
    "wrn22-2": (WideResNet(22, 2), pytorchcv_wrn22_2, pytorchcv_wide_name, 32),
    "vgg16": (VGG(16), torchvision_vgg16, vgg16_name, 32),
}


def randomised(net):
    """Norms with weights and statistics of their own; returns those by name."""
    norms = {name: m for name, m in net.named_modules() if isinstance(m, nn.BatchNorm2d)}
    with torch.no_grad():
        for norm in norms.values():
            for tensor in (norm.weight, norm.running_var):
                tensor.uniform_(0.5, 1.5)
            for tensor in (norm.bias, norm.running_mean):
                tensor.normal_(0.0, 0.1)
    return norms


def assert_close(ours, theirs, tolerance, name):
    """As a share of the largest entry: a logit near 0 is the difference of large numbers."""
    atol = tolerance * abs(theirs).max()
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=atol, err_msg=name)


# Of ResNet-50 in training, PyTorch itself is 6e-5 away from its logits in float64.
EVAL, TRAIN = 1e-5, 2e-4


@pytest.mark.parametrize("name", CASES)
def test_logits_and_statistics(name):
    ours, make_theirs, rename, side = CASES[name]
    torch.manual_seed(0)
    theirs = make_theirs()
    norms = randomised(theirs)
    x = torch.randn(8, 3, side, side)
    images = jnp.asarray(x.permute(0, 2, 3, 1).numpy())
    shapes = jax.eval_shape(ours.init, jax.random.key(0), images)
    variables = jaxsparse.params_from_torch(theirs.state_dict(), shapes, rename=rename)
    taken = sum(leaf.size for leaf in jax.tree.leaves(variables))
    numel = {k: v.numel() for k, v in theirs.state_dict().items() if "num_batches" not in k}
    assert taken == sum(numel.values())  # nothing of theirs is left over
    back = jaxsparse.params_to_torch(variables, rename=rename)
    assert back.keys() == numel.keys()
    assert all((x == theirs.state_dict()[k].numpy()).all() for k, x in back.items())
    theirs.load_state_dict({k: torch.from_numpy(x) for k, x in back.items()})

    with torch.no_grad():
        assert_close(
            jax.jit(ours.apply)(variables, images), theirs.eval()(x).numpy(), EVAL, "logits"
        )

    count, before = {}, {}
    for module, norm in norms.items():
        before[f"{module}.running_var"] = norm.running_var.numpy().copy()
        norm.register_forward_hook(
            lambda _, inputs, out, module=module: count.update(
                {f"{module}.running_var": inputs[0].numel() // inputs[0].shape[1]}
            )
        )
    train = jax.jit(lambda v, x: ours.apply(v, x, train=True, mutable=["batch_stats"]))
    logits, updates = train(variables, images)
    with torch.no_grad():
        assert_close(logits, theirs.train()(x).numpy(), TRAIN, "logits in training")
    after = {name: tensor.numpy() for name, tensor in theirs.state_dict().items()}
    for path, new in leaves_by_path(updates).items():
        expected = after[rename(path)]
        if n := count.get(rename(path)):  # a variance: PyTorch takes n / (n - 1) times the batch's
            kept = 0.9 * before[rename(path)]
            expected = kept + (expected - kept) * (n - 1) / n
        assert_close(new, expected, TRAIN, path)
