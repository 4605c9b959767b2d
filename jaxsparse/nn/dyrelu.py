"""DyReLU, an activation whose coefficients depend on the image, and its phase-out into ReLU.

EAST trains with it at first. The coefficients depend on the mean of each channel, so that gradients
flow where the ReLU of a network with few weights would block them. A number beta between 1 and 0
leads from DyReLU to ReLU. When it is 0, `phase_out` removes the parameters of DyReLU, and the
result *is* the ReLU network.

Our networks use it if their field `dyrelu` is set. Beta is a variable in a collection of its own,
{"dyrelu": {"beta": float32[]}}, so that the variables of a step are enough to evaluate the network
of that step:

    model = cifar_resnet(20, dyrelu=DyReLUOptions())
    variables = model.init(key, images)
    params = variables.pop("params")
    beta = beta_of(step, start_step=1000, stop_step=2000)
    logits, variables = model.apply(
        {"params": params, **with_beta(variables, beta)}, images, train=True,
        mutable=["batch_stats", "dyrelu"],
    )

Its parameters are no kernels, so no method prunes or counts them by default. They are dense, and
they may outnumber the weights of the network: training with DyReLU is not sparse training.

References:
  Chen et al., "Dynamic ReLU", ECCV 2020: DyReLU-B.
  Li et al., "Pushing the Limits of Sparsity: A Bag of Tricks for Extreme Pruning", TMLR
  2025 (EAST).
"""

import re
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, TypeAlias, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax.training import train_state
from jax.core import Tracer

from jaxsparse.checks import check_whole
from jaxsparse.paths import leaves_by_path, with_leaves
from jaxsparse.sparse import Layout, larger_line
from jaxsparse.types import PyTree

Blend: TypeAlias = Literal["coefficient", "output"]
Tree = TypeVar("Tree")
Model = TypeVar("Model", bound=nn.Module)
State = TypeVar("State", bound=train_state.TrainState)

_OURS = re.compile(r"(?i)dyrelu_?\d*")


class DyReLUOptions(NamedTuple):
    """Options of all DyReLUs of a network.

    Attributes:
      reduction: channels divided by the width of the hidden layer, at least 1; 8 in the paper of
        DyReLU.
      blend: see `DyReLU`.
    """

    reduction: int = 4
    blend: Blend = "coefficient"


class DyReLU(nn.Module):
    """The larger of two lines for every channel of an image, which depend on the image's means.

        theta = 2 sigmoid(relu(m w1 + b1) w2 + b2) - 1,    m the means of the image's channels
        (a1, a2, c1, c2) = (1, 0, 0, 0) + beta (1, 1, 1/2, 1/2) theta,    of each channel
        y = max(a1 x + c1, a2 x + c2)

    At beta = 0 it is ReLU to the bit, with a gradient of 0 at x = 0. With C channels it has
    w1: [C, h], b1: [h], w2: [h, 4 C], b2: [4 C], where h = max(C // reduction, 1). These are
    1.25 C^2 + 4.25 C parameters for reduction 4. All start uniform in +-1 / sqrt(fan_in), as in
    PyTorch, so that DyReLU is close to ReLU at first, but not equal to it.

    Attributes:
      reduction: as in `DyReLUOptions`.
      blend: "coefficient" as above, or "output": beta times the result at beta = 1, plus
        (1 - beta) times ReLU. "coefficient" is nowhere larger than "output"; both are equal at beta
        0 and 1.
      layout: of inputs and outputs; "NHWC" for vectors, float[batch, C].

    Raises:
      ValueError: another blend, or a reduction below 1.

    Differs from the official code in: the gradient if both lines are equal, which PyTorch's maximum
    may give to either of them.

    Reference: the authors' code of EAST (K = 2); its paper's equations were not at hand.
    """

    reduction: int = 4
    blend: Blend = "coefficient"
    layout: Layout = "NHWC"

    def __post_init__(self):
        if self.blend not in ("coefficient", "output"):
            raise ValueError(f"blend {self.blend!r} must be 'coefficient' or 'output'")
        check_whole("reduction", self.reduction, 1)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array, beta: jax.Array | float = 1.0) -> jax.Array:
        """Maps float[...] images or vectors to the same; `beta` is in [0, 1]."""
        theta = self._theta(x)
        if self.blend == "coefficient":
            return _larger_line(x, beta * theta, self.layout)
        # Cast, or a beta that is an array would make float32 of bfloat16.
        beta = jnp.asarray(beta, x.dtype)
        return beta * _larger_line(x, theta, self.layout) + (1.0 - beta) * nn.relu(x)

    def _theta(self, x: jax.Array) -> jax.Array:
        """float32[batch, channels, 4] in [-1, 1]."""
        spatial = (1, 2) if self.layout == "CHWN" else tuple(range(1, x.ndim - 1))
        means = jnp.mean(x, spatial, dtype=jnp.float32)
        means = means.T if self.layout == "CHWN" else means
        channels = means.shape[1]
        hidden = nn.relu(self._affine("1", means, max(channels // self.reduction, 1)))
        theta = 2.0 * nn.sigmoid(self._affine("2", hidden, 4 * channels)) - 1.0
        return theta.reshape(-1, channels, 4)

    def _affine(self, which: str, x: jax.Array, width: int) -> jax.Array:
        bound = x.shape[1] ** -0.5
        start = lambda key, shape: jax.random.uniform(key, shape, jnp.float32, -bound, bound)
        w = self.param(f"w{which}", start, (x.shape[1], width))
        return x @ w + self.param(f"b{which}", start, (width,))[None]


def _larger_line(x: jax.Array, theta: jax.Array, layout: Layout) -> jax.Array:
    base, scale = jnp.array([[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 0.5, 0.5]])[:, None, None]
    coefficients = (base + scale * theta).astype(x.dtype)
    if layout == "CHWN":
        return larger_line(x, coefficients.transpose(1, 2, 0))
    between = (1,) * (x.ndim - 2)
    of_line = lambda i: coefficients[..., i].reshape(x.shape[0], *between, x.shape[-1])
    first, second = of_line(0) * x + of_line(2), of_line(1) * x + of_line(3)
    # If both are equal, the gradient goes to the second: at beta 0 it is ReLU's at 0. `maximum`
    # would share it. This case occurs: a channel without active weights is exactly 0 at first.
    return jnp.where(first > second, first, second)


def beta_of(
    step: jax.Array | float, *, start_step: float, stop_step: float, late: bool = False
) -> jax.Array:
    """Returns beta, float32[], the share of DyReLU: 1, then falling linearly to 0.

        beta(t) = 1 - (t - start) / (stop - start),    between the two steps

    Args:
      step: of training, counted from 1; may be traced. Any unit is possible that all three share.
      start_step: beta is 1 up to this step; a quarter of training in EAST.
      stop_step: beta is 0 from this step on, above `start_step`; one epoch before half of training
        in EAST.
      late: makes beta 0 up to `start_step`. DyReLU then begins there, untrained. The authors' code
        does this; the paper says otherwise.

    Differs from the official code in: `late` is an option; beta always falls, while newer versions
    keep it at 1 unless DyReLU is frozen as well; the code counts epochs.

    >>> [
    ...     round(float(beta_of(e, start_step=62.5, stop_step=124)), 3)
    ...     for e in (62, 63, 93, 123, 124)
    ... ]
    [1.0, 0.992, 0.504, 0.016, 0.0]
    """
    t = jnp.asarray(step, jnp.float32)
    beta = jnp.clip((stop_step - t) / (stop_step - start_step), 0.0, 1.0)
    return jnp.where(t > start_step, beta, 0.0 if late else 1.0)


def with_beta(variables: Mapping[str, Any], beta: jax.Array | float) -> dict[str, Any]:
    """Returns the variables of a network, with or without params, with another beta."""
    return {**variables, "dyrelu": {"beta": jnp.asarray(beta, jnp.float32)}}


def phase_out(model: Model, state: State) -> tuple[Model, State]:
    """Returns the ReLU network, and the train state without the leaves of DyReLU, once beta is 0.

        if n == stop_step:
            model, state = phase_out(model, state)

    `jit` compiles a step again for the new state. Masks and labels of the optimizer, such as those
    of weight decay, must be functions of params: a tree made for the old params no longer fits. To
    restore a checkpoint from after the phase-out, first phase out the fresh state too, with beta 0.

    Differs from the official code, where the parameters stay in the network and the optimizer.

    While beta is above 0, phasing out would change the outputs of the network. This is an error if
    the state holds the collection of beta; if beta is a variable beside the state, it is not
    noticed.

    Args:
      model: one of our networks.
      state: a Flax train state, such as `jaxsparse.TrainState`.

    Returns:
      The network with `dyrelu=None`, whose logits are those of the given one at beta = 0; and the
      state without the leaves of DyReLU in params, masks, slots of the optimizer and all other
      dicts, with the `apply_fn` of the new network.

    Raises:
      ValueError: a beta in the state is above 0; names its path and value.
    """
    for path, beta in leaves_by_path(state).items():
        known = not isinstance(beta, Tracer | jax.ShapeDtypeStruct)
        if known and f"/{path}".endswith("/dyrelu/beta") and np.any(np.asarray(beta) > 0.0):
            raise ValueError(
                f"{path} is {beta}, not 0: without DyReLU the network would compute something "
                f"else; lead beta to 0 first, with `with_beta` and `beta_of`"
            )
    relu = model.clone(dyrelu=None)
    return relu, without_dyrelu(state).replace(apply_fn=relu.apply)


def without_dyrelu(tree: Tree) -> Tree:
    """Returns a tree without those entries of its dicts, at any depth, that are named after DyReLU.

    The states of an `optax.multi_transform` stay, even under the label "dyrelu".

    >>> without_dyrelu({"params": {"dyrelu1": {"w1": 1.0}, "fc": 2.0}, "dyrelu": {"beta": 0.0}})
    {'params': {'fc': 2.0}}
    """
    is_dict = lambda node: isinstance(node, dict)
    is_state = lambda x: isinstance(x, tuple) and len(x) > 0  # `optax.MaskedNode` is empty
    stays = lambda name, x: is_state(x) or not _OURS.fullmatch(str(name))
    left = lambda node: (
        {name: without_dyrelu(x) for name, x in node.items() if stays(name, x)}
        if is_dict(node)
        else node
    )
    return jax.tree.map(left, tree, is_leaf=is_dict)


class FreezeState(NamedTuple):
    """State of `freeze_dyrelu`.

    Attributes:
      num_updates: int32[], number of updates so far.
    """

    num_updates: jax.Array


def freeze_dyrelu(after_step: int) -> optax.GradientTransformation:
    """Freezes the parameters of DyReLU after a number of updates. It must be last in a chain.

        optax.chain(optax.sgd(0.1, momentum=0.9), freeze_dyrelu(start_step))

    The authors' command lines for EAST ask for this from the start of the phase-out on; with 250
    epochs their code never does it.

    Args:
      after_step: number of the last update that changes them. Mask updates of a method with
        `skip_step` (RigL) are no updates of the optimizer, so subtract them from a number of steps.
    """

    def init(params: PyTree) -> FreezeState:
        del params
        return FreezeState(jnp.zeros((), jnp.int32))

    def update(
        updates: PyTree, state: FreezeState, params: PyTree | None = None
    ) -> tuple[PyTree, FreezeState]:
        del params
        num_updates = state.num_updates + 1
        still = lambda path, x: (
            jnp.where(num_updates > after_step, jnp.zeros_like(x), x)
            if any(_OURS.fullmatch(part) for part in path.split("/"))
            else x
        )
        moved = {path: still(path, x) for path, x in leaves_by_path(updates).items()}
        return with_leaves(updates, moved), FreezeState(num_updates)

    return optax.GradientTransformation(init, cast(Any, update))
