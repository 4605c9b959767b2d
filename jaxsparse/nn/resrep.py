"""ResRep for our residual networks: compactors in, costs by widths, and a narrower network out.

    model, variables = insert_compactors(resnet(50), variables)        # same outputs
    costs = compactor_costs(model, images)
    check_target(costs, costs.widths, target=0.455)
    ...                                                                # train with resrep_optimizer
    model, variables = merge_compactors(model, variables)              # narrower, no compactors

A compactor stands behind the norm of every inner convolution, before ReLU: behind the first
convolution of a basic block, and the first two of a bottleneck. Outputs of blocks are added, so
their channels stay; so do those of the stem and the shortcuts.

The merged network has convolutions with a bias and no norm in their place. It is a `ResNet` with
`widths` and `after_inner="bias"`; it initialises, trains and exports like any other.
`torchvision_name` serves its leaves too, but torchvision has no such network.

Networks with the norm before the convolution (`WideResNet`) cannot have compactors: a norm between
the compactor and the next convolution would turn dead channels into constants.

Reference: Ding et al., "ResRep", ICCV 2021; see `jaxsparse.structured.resrep`.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxsparse.nn.resnet import ResNet
from jaxsparse.nn.widths import block_name
from jaxsparse.paths import leaves_by_path
from jaxsparse.structured.channel_costs import CostTable, group_costs
from jaxsparse.structured.channel_groups import channel_groups
from jaxsparse.structured.compactors import BatchNorm, Target, kept_rows, merge_compactor
from jaxsparse.tracing.flops import layer_flops
from jaxsparse.types import PyTree


def compactor_targets(model: nn.Module) -> tuple[Target, ...]:
    """Returns where the compactors of a network stand, in the order of its layers.

    Args:
      model: a `ResNet`, with compactors or without.

    Raises:
      ValueError: another network (says why it has no place for compactors), DyReLU, or shared
        kernels.

    >>> from jaxsparse.nn import cifar_resnet
    >>> compactor_targets(cifar_resnet(8))[0]
    Target(compactor='stage1_block1/compactor1/matrix', conv='stage1_block1/conv1/kernel',
           norm='stage1_block1/norm1', consumer='stage1_block1/conv2/kernel')
    """
    model = _resnet(model)
    block: Any = model.block
    return tuple(
        Target(
            compactor=f"{name}/compactor{i + 1}/matrix",
            conv=f"{name}/{conv}/kernel",
            norm=f"{name}/norm{i + 1}",
            consumer=f"{name}/{block.CONVS[i + 1]}/kernel",
        )
        for stage, num_blocks in enumerate(model.stage_sizes)
        for name in (block_name(stage, number) for number in range(num_blocks))
        for i, conv in enumerate(block.CONVS[:-1])
    )


def insert_compactors(model: ResNet, variables: PyTree) -> tuple[ResNet, PyTree]:
    """Returns the network with compactors, and its variables: outputs are the same.

    A compactor at its start returns its inputs to the bit. XLA may compile the norms around it in
    another way, which rounds otherwise; run operation by operation, logits are equal to the bit.

    Args:
      model: a `ResNet` with `after_inner="norm"`.
      variables: {"params": ..., "batch_stats": ...} of a trained network, or their shapes.

    Raises:
      ValueError: as `compactor_targets`; or a network that has compactors or none of its norms.
    """
    if model.after_inner != "norm":
        raise ValueError(f"after_inner {model.after_inner!r} must be 'norm' to insert compactors")
    targets, leaves = compactor_targets(model), leaves_by_path(variables["params"])
    identities = {
        target.compactor: jnp.eye(leaves[target.conv].shape[-1], dtype=jnp.float32)
        for target in targets
    }
    params = _edited(variables["params"], identities)
    return model.clone(after_inner="compactor"), {**variables, "params": params}


def compactor_costs(model: ResNet, images: Any) -> CostTable:
    """Returns the multiply-adds of an image as a function of the widths behind compactors.

    The full cost is that of the network without compactors, by `jaxsparse.layer_flops`; at other
    widths it is the cost of the merged network.

    Args:
      model: a `ResNet`, with compactors or without.
      images: one image as the model takes it, [1, height, width, channels], or its
        `jax.ShapeDtypeStruct`. A batch of n counts n times.

    Raises:
      ValueError: as `compactor_targets`.
    """
    targets = compactor_targets(model)
    plain = model.clone(after_inner="norm", layout="NHWC")
    variables = jax.eval_shape(plain.init, jax.random.key(0), images)
    flops = layer_flops(plain.apply, variables, images)
    groups = channel_groups(plain.apply, variables, images)
    of = lambda target: groups.of(f"params/{target.conv}", -1)[0].name
    names = {of(target): target.compactor for target in targets}
    return group_costs(groups, flops).ruled_by(names)


def merge_compactors(
    model: ResNet, variables: PyTree, *, threshold: float = 1e-5
) -> tuple[ResNet, PyTree]:
    """Returns the narrower network without compactors, and its variables.

    Rows below the threshold go, with the inputs of the next convolution that they make. The outputs
    are those of the network with compactors in inference, but for rounding and for what the removed
    rows put out: rows of 1e-5 are not 0, so snap them or let the learning rate anneal.

    Args:
      model: a `ResNet` with compactors.
      variables: {"params": ..., "batch_stats": ...}, trained. The optimizer's state and masks of
        other methods do not carry over: start the optimizer afresh.
      threshold: rows with a smaller norm are removed, at least one stays in each layer.

    Returns:
      A `ResNet` with `widths` and `after_inner="bias"`, and variables like those of its `init`.

    Raises:
      ValueError: as `compactor_targets`, or a network without compactors.
    """
    if model.after_inner != "compactor":
        raise ValueError(f"after_inner {model.after_inner!r} must be 'compactor' to merge them")
    targets = compactor_targets(model)
    params, stats = (leaves_by_path(variables[name]) for name in ("params", "batch_stats"))
    widths = {} if model.widths is None else model.conv_widths()
    new: dict[str, Any] = {}
    for target in targets:
        keep = kept_rows(params[target.compactor], threshold=threshold)
        norm = BatchNorm(
            *(params[f"{target.norm}/{name}"] for name in ("scale", "bias")),
            *(stats[f"{target.norm}/{name}"] for name in ("mean", "var")),
        )
        kernel = new.get(target.conv, params[target.conv])
        matrix, layer = params[target.compactor], target.conv.removesuffix("/kernel")
        new[target.conv], new[f"{layer}/bias"] = merge_compactor(kernel, norm, matrix, keep)
        new[target.consumer] = params[target.consumer][..., np.flatnonzero(keep), :]
        widths[layer] = int(keep.sum())
    gone = [f"{target.norm}/" for target in targets] + [target.compactor for target in targets]
    merged = {
        **variables,
        "params": _edited(variables["params"], new, gone),
        "batch_stats": _edited(variables["batch_stats"], {}, gone),
    }
    return model.clone(after_inner="bias", widths=widths), merged


def _resnet(model: nn.Module) -> ResNet:
    """The model, if it has a place for compactors; else says why it has none."""
    kind = type(model).__name__
    if not isinstance(model, ResNet):
        raise ValueError(
            f"{kind} has no place for compactors that we know: behind one, every operation up to "
            "the next convolution has to map 0 to 0, and a norm before the convolution (as in "
            "WideResNet) does not; jaxsparse.nn.Compactor goes into a network of your own"
        )
    if model.dyrelu is not None:
        raise ValueError("DyReLU does not map 0 to 0, so it cannot stand behind a compactor")
    if model.num_owners is not None:
        raise ValueError(f"num_owners {model.num_owners} shares kernels, which keep their widths")
    return model


def _edited(tree: PyTree, new: dict[str, Any], gone: list[str] | None = None) -> PyTree:
    """Nested dicts with leaves added or replaced, and without those whose paths start so."""
    leaves = {**leaves_by_path(tree), **new}
    result: dict[str, Any] = {}
    for path, leaf in leaves.items():
        if not any(path.startswith(start) for start in gone or ()):
            *above, name = path.split("/")
            node = result
            for key in above:
                node = node.setdefault(key, {})
            node[name] = leaf
    return result
