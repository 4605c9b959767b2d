"""Weight sharing inside the stages of a residual network, its effect on sparsity, and its end.

With `num_owners=2` the first two blocks of a stage have their own kernels. Every later block uses
the kernels of the second, each times a number that the later block learns; it starts uniform in
[0, 1) and is never pruned. (The first block has another stride or width, so its kernels cannot be
shared.) A kernel and its mask exist once; norms and DyReLUs belong to each block. A network whose
stages have two blocks, such as ResNet-18, shares nothing.

    ResNet for 10 classes     kernels' weights    written out    ratio
    resnet(34, stem="cifar")        11,164,352     21,265,088    1.905
    cifar_resnet(20)                   174,128        270,896    1.556
    WideResNet(22, 2)                  689,840      1,076,912    1.561

A sparsity refers to the network without sharing, so that both networks have the same number of
active weights. The sparsity of the stored weights is then lower; `stored_sparsity` computes it.
Active weights are used several times, and FLOPs count every use. `without_sharing` writes a trained
network out.

Differs from the official code in: the number of active weights is exact, while the code adds the
rounded-down numbers of the layers; DyReLU is in all blocks or in none, while one version leaves it
out of the first two blocks of each stage of ResNet-50; wide networks can share too.

Reference: Li et al., "Pushing the Limits of Sparsity: A Bag of Tricks for Extreme Pruning", TMLR
2025 (EAST); the mapping is that of the authors' code.
"""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
from flax import linen as nn

from jaxsparse.checks import check_in
from jaxsparse.paths import prunable_leaves
from jaxsparse.rounded_counts import total_count
from jaxsparse.types import OptionError, PyTree, Rules


class Sharing(NamedTuple):
    """The numbers of prunable weights of a network.

    Attributes:
      stored: with sharing, each shared weight counted once.
      unshared: of the same network without sharing.
    """

    stored: int
    unshared: int


def sharing_of(model: nn.Module, images: Any, prunable: Rules | None = None) -> Sharing:
    """Counts the prunable weights of a network with and without sharing; nothing is computed.

    Args:
      model: called as `jaxsparse.nn` says; one without a field `num_owners` shares nothing.
      images: a batch as the model takes it, or its `jax.ShapeDtypeStruct`.
      prunable: as in `prunable_paths`.
    """
    stored = _num_prunable(model, images, prunable)
    if getattr(model, "num_owners", None) is None:
        return Sharing(stored, stored)
    return Sharing(stored, _num_prunable(model.clone(num_owners=None), images, prunable))


def stored_sparsity(sparsity: float, sharing: Sharing) -> float:
    """Returns the sparsity of the stored weights that keeps the number of active weights.

    Args:
      sparsity: of the network without sharing, in [0, 1).
      sharing: of the network, from `sharing_of`.

    Raises:
      ValueError: the sparsity is outside of [0, 1), or so low that it needs more weights than are
        stored.

    >>> round(stored_sparsity(0.999, Sharing(stored=11_164_352, unshared=21_265_088)), 6)
    0.998095
    """
    check_in("sparsity", sparsity, "[0, 1)")
    active = total_count(sharing.unshared, 1.0 - sparsity)
    if active > sharing.stored:
        least = math.ceil((1 - sharing.stored / sharing.unshared) * 1e6) / 1e6
        raise OptionError(
            "sparsity",
            sparsity,
            f"needs {active:,} active weights, and with sharing there are {sharing.stored:,}; it "
            f"must be at least {least:.6g}",
        )
    return 1.0 - active / sharing.stored


def without_sharing(
    model: nn.Module, variables: Mapping[str, Any], masks: PyTree | None = None
) -> tuple[nn.Module, dict[str, Any], PyTree | None]:
    """Returns the same function as a network whose blocks all have kernels of their own.

    A block that shares gets the owner's kernels times its numbers, and the owner's masks. Such a
    network can become narrower, block by block, and is stored like any other.

    Args:
      model: a `ResNet` or `WideResNet`; one that shares nothing comes back as it is.
      variables: as from `model.init`: {"params": ..., ...}.
      masks: of the params, or None.

    Raises:
      ValueError: params or masks lack a kernel or a number that the model shares.
    """
    num_owners = getattr(model, "num_owners", None)
    if num_owners is None:
        return model, dict(variables), masks
    params = _written_out(variables["params"], num_owners, "params", lambda x, by: x * by)
    if masks is not None:
        masks = _written_out(masks, num_owners, "masks", lambda mask, by: mask)
    return model.clone(num_owners=None), {**variables, "params": params}, masks


def _written_out(
    tree: Mapping[str, Any], num_owners: int, name: str, of_use: Callable[[Any, Any], Any]
) -> dict[str, Any]:
    """Returns a tree of a network with the kernels of owners in the blocks that share them."""
    found = dict(tree)
    for block in tree:
        place = re.fullmatch(r"(stage\d+_block)(\d+)", block)
        if place is None or int(place[2]) <= num_owners:
            continue
        owner, layers = f"{place[1]}{num_owners}", dict(tree[block])
        convs = [layer for layer in tree.get(owner, ()) if re.fullmatch(r"conv\d", layer)]
        for conv in convs:
            number = conv.removeprefix("conv")
            if f"scale{number}" not in layers:
                raise ValueError(f"{name}: {block} has no scale{number} for {owner}/{conv}")
            by = layers.pop(f"scale{number}")
            layers[conv] = jax.tree.map(lambda x, by=by: of_use(x, by), tree[owner][conv])
        if not convs:
            raise ValueError(f"{name}: {owner}, whose kernels {block} shares, has none")
        found[block] = layers
    return found


def _num_prunable(model: nn.Module, images: Any, prunable: Rules | None) -> int:
    params = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
    return sum(leaf.size for leaf in prunable_leaves(params, prunable).values())
