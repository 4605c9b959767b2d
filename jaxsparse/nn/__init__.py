"""Networks in Flax linen; each layer takes its kernel as a value, so masks apply from outside.

All are called alike. `train` is a keyword, False by default:

    variables = model.init(key, images)
    params = variables.pop("params")        # variables are then {"batch_stats": ...}, or {}
    logits = model.apply({"params": params, **variables}, images)
    logits, variables = model.apply(
        {"params": params, **variables}, images, train=True, mutable=["batch_stats"]
    )

In training, norms use the statistics of the batch and update the running ones in "batch_stats". A
network without norms computes the same in training and has no such collection, so its update is
empty. Images are [batch, height, width, channels], logits float32[batch, num_classes].

With `dtype=jnp.bfloat16` activations are bfloat16, and parameters, statistics and logits stay
float32. On CPU some of these networks give NaN when jax 0.12.0 compiles them for inference; with
`XLA_FLAGS=--xla_cpu_experimental_ynn_fusion_type=` in the environment they do not.

Methods prune the kernels of all convolutions and linear layers by default. The first convolution is
"conv1" and the classifier "fc" in all networks but the LeNets.

In all networks but the LeNets, convolutions start as normals of variance 2 / fan_out, and the
classifier as normals of standard deviation 0.01; `kernel_init` and `fc_init` change that.
`PYTORCH_INIT` is the start of PyTorch's layers. The scale of a layer at the start decides how many
of its weights one threshold over all layers prunes. So to reproduce a published table, read
"Differs from the official code" of its network.
"""

from jaxsparse.nn.compacting import Compacted, compact_module
from jaxsparse.nn.compactor import Compactor
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
from jaxsparse.nn.layers import PYTORCH_INIT, pytorch_bias, zero_bias
from jaxsparse.nn.lenet import LeNet5, LeNet300100
from jaxsparse.nn.narrow import Narrowed, narrow_module
from jaxsparse.nn.narrow_nnx import narrow_nnx
from jaxsparse.nn.residual_blocks import BasicBlock, Bottleneck
from jaxsparse.nn.resnet import ResNet, cifar_resnet, resnet
from jaxsparse.nn.resrep import (
    compactor_costs,
    compactor_targets,
    insert_compactors,
    merge_compactors,
)
from jaxsparse.nn.shapes import layer_shapes
from jaxsparse.nn.sharing import Sharing, sharing_of, stored_sparsity, without_sharing
from jaxsparse.nn.sparse import sparse_execution
from jaxsparse.nn.torchvision_names import torchvision_name
from jaxsparse.nn.vgg import VGG
from jaxsparse.nn.wide_resnet import WideResNet

__all__ = [
    "PYTORCH_INIT",
    "VGG",
    "BasicBlock",
    "Bottleneck",
    "Compacted",
    "Compactor",
    "DyReLU",
    "DyReLUOptions",
    "Forms",
    "LayerForm",
    "LeNet300100",
    "LeNet5",
    "Narrowed",
    "ResNet",
    "Sharing",
    "WideResNet",
    "beta_of",
    "choose_forms",
    "cifar_resnet",
    "compact_module",
    "compactor_costs",
    "compactor_targets",
    "freeze_dyrelu",
    "insert_compactors",
    "layer_shapes",
    "merge_compactors",
    "narrow_module",
    "narrow_nnx",
    "phase_out",
    "pytorch_bias",
    "resnet",
    "sharing_of",
    "sparse_execution",
    "stored_sparsity",
    "torchvision_name",
    "with_beta",
    "without_dyrelu",
    "without_sharing",
    "zero_bias",
]
