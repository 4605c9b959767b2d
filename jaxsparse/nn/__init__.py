"""Networks in Flax linen; each layer takes its kernel as a value, so masks apply from outside.

All are called alike, with `train` as a keyword that is False unless said otherwise:

    variables = model.init(key, images)
    params = variables.pop("params")        # what is left is {"batch_stats": ...}, or {}
    logits = model.apply({"params": params, **variables}, images)
    logits, variables = model.apply(
        {"params": params, **variables}, images, train=True, mutable=["batch_stats"]
    )

In training, norms take the statistics of the batch and move the running ones, which "batch_stats"
holds; a network without norms is the same in training, has no such collection, and its update is
empty. Images are [batch, height, width, channels], logits float32[batch, num_classes].

With `dtype=jnp.bfloat16` activations are bfloat16, and parameters, statistics and logits stay
float32. On CPU some of these networks give NaN when jax 0.12.0 compiles them for inference; with
`XLA_FLAGS=--xla_cpu_experimental_ynn_fusion_type=` in the environment they do not.

The leaves that methods prune by default are the kernels of all convolutions and linear layers; the
first convolution is "conv1" and the classifier "fc" in all networks but the LeNets.

In all networks but the LeNets convolutions start as normals of variance 2 / fan_out and the
classifier as one of deviation 0.01, unless `kernel_init` and `fc_init` say otherwise. A layer's
scale at the start decides what one threshold over all layers takes of it, so for a published table
look at "Differs from the official code"; `PYTORCH_INIT` is what PyTorch's layers start with.
"""

from jaxsparse.nn.dyrelu import (
    DyReLU,
    DyReLUOptions,
    beta_of,
    freeze_dyrelu,
    phase_out,
    with_beta,
    without_dyrelu,
)
from jaxsparse.nn.forms import Forms, LayerForm, choose_forms
from jaxsparse.nn.layers import PYTORCH_INIT
from jaxsparse.nn.lenet import LeNet5, LeNet300100
from jaxsparse.nn.resnet import (
    BasicBlock,
    Bottleneck,
    ResNet,
    cifar_resnet,
    resnet,
    torchvision_name,
)
from jaxsparse.nn.shapes import layer_shapes
from jaxsparse.nn.sharing import Sharing, sharing_of, stored_sparsity
from jaxsparse.nn.sparse import sparse_execution
from jaxsparse.nn.vgg import VGG
from jaxsparse.nn.wide_resnet import WideResNet

__all__ = [
    "DyReLU",
    "DyReLUOptions",
    "Sharing",
    "beta_of",
    "freeze_dyrelu",
    "phase_out",
    "sharing_of",
    "stored_sparsity",
    "with_beta",
    "without_dyrelu",
    "PYTORCH_INIT",
    "VGG",
    "BasicBlock",
    "Bottleneck",
    "Forms",
    "LayerForm",
    "LeNet5",
    "LeNet300100",
    "ResNet",
    "WideResNet",
    "choose_forms",
    "cifar_resnet",
    "layer_shapes",
    "resnet",
    "sparse_execution",
    "torchvision_name",
]
