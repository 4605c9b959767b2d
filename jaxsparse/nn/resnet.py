"""Residual networks, for ImageNet and for CIFAR.

`resnet` has four stages of widths 64-128-256-512, `cifar_resnet` three of 16-32-64. Every stage
after the first starts with stride 2. If a block changes the shape, its shortcut is a 1 x 1
convolution with a norm (option B of the paper); otherwise it is the identity.

Parameters, and those in kernels:

    resnet(18)       11,689,512    11,678,912    stem "imagenet", 1,000 classes
    resnet(34)       21,797,672    21,779,648
    resnet(50)       25,557,032    25,502,912
    resnet(101)      44,549,160    44,442,816
    cifar_resnet(8)      78,042        77,360    10 classes
    cifar_resnet(20)    272,474       270,896
    cifar_resnet(32)    466,906       464,432
    cifar_resnet(56)    855,770       851,504

The paper pads the shortcut with zeros for CIFAR (option A: 269,722 parameters for ResNet-20,
853,018 for ResNet-56). Published code of sparse training has option B, as here: that of GraNet, the
lottery tickets, GraSP and ResRep.

Layers are "conv1", "norm1" (the stem), "stage2_block1/conv1", ".../norm1", ..., the shortcut's
"stage2_block1/shortcut_conv" and ".../shortcut_norm", and "fc".

Reference: He et al., "Deep residual learning for image recognition", 2015. The stride of a
bottleneck is on its 3 x 3 convolution, not on the 1 x 1 before it ("v1.5"), as in PyTorch.

The inner convolutions of a block are all but its last, which the shortcut is added to. Structured
pruning makes them narrower: `widths` gives the channels of single convolutions by name, and
`after_inner` what follows the inner ones. See `jaxsparse.nn.resrep`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_args

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.core import FrozenDict
from jax.typing import DTypeLike

from jaxsparse.checks import check_whole
from jaxsparse.integers import whole_number
from jaxsparse.nn.dyrelu import DyReLUOptions
from jaxsparse.nn.layers import (
    CONV_INIT,
    FC_INIT,
    Activation,
    Convs,
    Initializer,
    conv,
    head,
    norm,
    to_layout,
)
from jaxsparse.nn.residual_blocks import AfterInner, BasicBlock, Bottleneck
from jaxsparse.nn.widths import block_name, full_widths, with_widths
from jaxsparse.sparse import Layout


class ResNet(nn.Module):
    """A stem, stages of blocks and a linear classifier; `resnet` and `cifar_resnet` make them.

    Attributes:
      stage_sizes: blocks per stage.
      block: `BasicBlock` or `Bottleneck`.
      width: of the first stage; it doubles from stage to stage.
      stem: "imagenet" (7 x 7 convolution with stride 2, max-pooling with stride 2) or "cifar"
        (3 x 3 convolution with stride 1, no pooling).
      num_classes: width of the output.
      fc_bias: whether the classifier has a bias; GraNet's CIFAR ResNet-50 has none.
      kernel_init: of the convolutions.
      fc_init: of the classifier.
      dtype: of activations; parameters, statistics of norms and logits are float32.
      layout: of images between layers: "NHWC", or "CHWN" for sparse execution on CPU.
      dyrelu: DyReLU in place of every ReLU, phased out in training; None for ReLU.
      num_owners: number of blocks of a stage that have their own kernels, at least 2. Later blocks
        share those of the last owner, see `jaxsparse.nn.sharing`. None for all.
      axis_name: of the mesh in a `jax.shard_map`, over which norms average their statistics. None
        takes those of each device. Under `jax.jit` alone norms are over the whole batch anyway.
      widths: output channels of single convolutions by name, such as {"stage2_block1/conv1": 24};
        the others have those that follow from `width`. Convolutions whose outputs are added need
        equal ones.
      after_inner: what follows the inner convolutions of blocks: "norm"; "compactor" for a norm and
        the matrix that ResRep trains; or "bias" for their own bias and no norm, as ResRep's merge
        leaves them.

    Raises:
      ValueError: another stem, a width below 1, or fewer than 2 owners; `widths` of convolutions
        that are not there, or of unequal ones that are added; compactors before DyReLU, which does
        not map 0 to 0; or widths, compactors or biases with shared kernels.
    """

    stage_sizes: Sequence[int]
    block: Callable[..., BasicBlock | Bottleneck]
    width: int = 64
    stem: str = "imagenet"
    num_classes: int = 1000
    fc_bias: bool = True
    kernel_init: Initializer = CONV_INIT
    fc_init: Initializer = FC_INIT
    dtype: DTypeLike = jnp.float32
    layout: Layout = "NHWC"
    dyrelu: DyReLUOptions | None = None
    num_owners: int | None = None
    axis_name: str | None = None
    widths: Mapping[str, int] | None = None
    after_inner: AfterInner = "norm"

    def __post_init__(self):
        if self.stem not in ("imagenet", "cifar"):
            raise ValueError(f"stem {self.stem!r} must be 'imagenet' or 'cifar'")
        check_whole("width", self.width, 1)
        if self.num_owners is not None:  # the first block of a stage has another stride or width
            check_whole("num_owners", self.num_owners, 2)
        if self.after_inner not in get_args(AfterInner):
            raise ValueError(
                f"after_inner {self.after_inner!r} must be 'norm', 'compactor' or 'bias'"
            )
        if self.after_inner == "compactor" and self.dyrelu is not None:
            raise ValueError(
                "after_inner 'compactor' needs ReLU: DyReLU does not map 0 to 0, so channels that "
                "are 0 cannot be removed"
            )
        if self.num_owners is not None and (self.widths or self.after_inner != "norm"):
            raise ValueError(
                f"num_owners {self.num_owners} shares kernels, which keep their widths"
            )
        if self.widths is not None:
            self.conv_widths()  # checks them
            object.__setattr__(self, "widths", FrozenDict(self.widths))  # a module is hashable
        super().__post_init__()

    @nn.nowrap  # it is no layer: what intercepts layers would see it before the module has a place
    def conv_widths(self) -> dict[str, int]:
        """Returns the output channels of every convolution, by the name of its layer."""
        block: Any = self.block
        full = full_widths(self.stage_sizes, self.width, block.CONVS, block.EXPANSION)
        return with_widths(full, self.widths or {}, self.stage_sizes, block.CONVS[-1])

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Maps float[batch, height, width, 3] images to float32[batch, num_classes] logits."""
        size, stride = (7, 2) if self.stem == "imagenet" else (3, 1)
        of_all = {"dtype": self.dtype, "layout": self.layout}
        options = {"kernel_init": self.kernel_init, **of_all}
        of_norms = {"train": train, "axis_name": self.axis_name, **of_all}
        x = to_layout(x, self.layout)
        activation = Activation.of(self, self.layout)
        widths = {} if self.widths is None else self.conv_widths()
        # Numbers of channels may change (`Narrowed`), and shortcuts stay as they are. A function in
        # place of a class of blocks does not say how many channels come out: its blocks decide.
        expansion = getattr(self.block, "EXPANSION", None)
        stem = conv(widths.get("conv1", self.width), size, stride=stride, name="conv1", **options)
        x = activation.after_norm(stem, norm(name="norm1", **of_norms), x, name="dyrelu")
        if self.stem == "imagenet":
            padding: Any = ((1, 1), (1, 1))  # Flax takes pairs and is annotated for names only
            x = nn.max_pool(x, window_shape=(3, 3), strides=(2, 2), padding=padding)
        for stage, num_blocks in enumerate(self.stage_sizes):
            convs: Convs = ()
            for number in range(num_blocks):
                name = block_name(stage, number)
                own = {
                    path.rpartition("/")[2]: channels
                    for path, channels in widths.items()
                    if path.startswith(f"{name}/")
                }
                block = self.block(
                    width=self.width * 2**stage,
                    stride=2 if stage > 0 and number == 0 else 1,
                    name=name,
                    axis_name=self.axis_name,
                    widths=FrozenDict(own) or None,
                    after_inner=self.after_inner,
                    projects=None if expansion is None else number == 0 and stage + expansion > 1,
                    **options,
                )
                owns = number < (self.num_owners or num_blocks)
                x, convs = block.with_convs(x, () if owns else convs, activation, train=train)
        return head(
            x,
            self.num_classes,
            use_bias=self.fc_bias,
            kernel_init=self.fc_init,
            layout=self.layout,
        )


_STAGES = {
    18: ((2, 2, 2, 2), BasicBlock),
    34: ((3, 4, 6, 3), BasicBlock),
    50: ((3, 4, 6, 3), Bottleneck),
    101: ((3, 4, 23, 3), Bottleneck),
}


def resnet(depth: int, **fields: Any) -> ResNet:
    """Returns ResNet-18, 34, 50 or 101, for ImageNet unless `fields` say otherwise.

    GraNet's network for CIFAR, of 23,520,832 parameters, is

        resnet(50, stem="cifar", num_classes=10, fc_bias=False,
               kernel_init=PYTORCH_INIT, fc_init=PYTORCH_INIT)

    Args:
      depth: 18, 34, 50 or 101.
      **fields: of `ResNet`.

    Raises:
      ValueError: another depth, or a field out of its range.

    Differs from the official code in: the initial weights. They are torchvision's here, except for
    the classifier (there `PYTORCH_INIT`, with its bias). GraNet's network for CIFAR starts as
    PyTorch's layers do, as above; its ImageNet network starts with normals of variance 2 / fan_in.
    RigL's starts with truncated normals of variance 1 / fan_in and a scale of 0 in the last norm of
    every block; no field here gives that scale. The start matters: one threshold at 90 % sparsity
    leaves the CIFAR stem 26 % of its weights here, and 84 % with PyTorch's start.

    >>> resnet(50).stage_sizes
    (3, 4, 6, 3)
    """
    if depth not in _STAGES:
        raise ValueError(
            f"depth {depth!r} must be 18, 34, 50 or 101; cifar_resnet makes those of 6n + 2 layers"
        )
    stage_sizes, block = _STAGES[depth]
    return ResNet(stage_sizes=stage_sizes, block=block, **fields)


def cifar_resnet(depth: int, *, width: int = 16, num_classes: int = 10, **fields: Any) -> ResNet:
    """Returns ResNet-8, 14, 20, 32, 56, ...: three stages of n basic blocks, for 32 x 32 images.

    Args:
      depth: 6n + 2 layers, at least 8; 8 for small machines.
      width: of the first stage; the stages have 1, 2 and 4 times this width. GraSP's ResNet-32 has
        32.
      num_classes: width of the output.
      **fields: of `ResNet`.

    Raises:
      ValueError: another depth, or a field out of its range.

    Differs from the official code in: the initial weights, which are GraSP's here. The code of the
    lottery tickets (OpenLTH, whose network GraNet uses) starts all kernels, also the classifier's,
    as normals of variance 2 / fan_in: `jax.nn.initializers.variance_scaling(2.0, "fan_in",
    "normal")`.

    >>> cifar_resnet(20).stage_sizes
    (3, 3, 3)
    """
    number = whole_number(depth)
    if number is None or number < 8 or number % 6 != 2:
        raise ValueError(f"depth {depth!r} must be 6n + 2, at least 8, such as 8, 20, 32 or 56")
    options = {"stem": "cifar", **fields}
    return ResNet(
        stage_sizes=((number - 2) // 6,) * 3,
        block=BasicBlock,
        width=width,
        num_classes=num_classes,
        **options,
    )
