"""Global sparse momentum (GSM): dense training in which only the best weights see the gradient.

At every step the weights with the largest |w * gradient| over all layers are active: they receive
the gradient of the loss. All others are passive: weight decay and momentum alone move them, towards
0. At the end one global magnitude prune removes them, and no fine-tuning follows:

    tx = optax.chain(
        jaxsparse.gsm(density=0.1),
        optax.add_decayed_weights(1e-4),
        optax.sgd(learning_rate, momentum=0.98),
    )
    ...                                                        # train, densely
    masks = jaxsparse.magnitude_masks(params, sparsity=0.9)
    params = jaxsparse.apply_masks(params, masks)
"""

import math
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxsparse.checks import check_in, check_whole
from jaxsparse.comparable import comparable
from jaxsparse.masks import all_finite, apply_mask, dense_masks
from jaxsparse.paths import check_like, check_rules, prunable_leaves, prunable_paths, with_leaves
from jaxsparse.rates import rates_of
from jaxsparse.selection.top_k import top_k
from jaxsparse.types import OptionError, PyTree, Rules


def gsm(density: float, *, prunable: Rules | None = None) -> optax.GradientTransformation:
    """Sets the gradient of all but the Q best prunable weights to 0, anew at every step.

        B_i = 1 if |w_i g_i| is among the Q = floor(density * N) largest of N, else 0;   g <- B * g

    Put it first in the chain, before weight decay and momentum. Together with them it is

        z <- mu z + lambda w + B * g;      w <- w - lr z

    Weight decay thus reaches every weight, and a passive weight can come back at any step. The
    selection is exact, over all layers together and without a sort; ties are cut by a hash of the
    index. Weights are ranked in float32 whatever their dtype is: the product of two bfloat16 or
    float16 numbers is exact in it. Leaves that are not prunable (biases, norms) keep their
    gradient.

    A gradient with an entry that is not finite passes as it is, in all leaves: nothing is ranked,
    and `optax.apply_if_finite`, loss scaling or the loss itself see what happened.

    On a mesh weights are ranked where they lie; the result is that of one device, to the bit. Put
    GSM inside `optax.partition` or `optax.masked` if parts of the network are frozen: N then counts
    the leaves that are trained, and `prunable` has to match those alone. To train densely first,
    take `optax.conditionally_transform(gsm(0.1), lambda step: step >= 1000)`.

    Args:
      density: share of the prunable weights that are active, in (0, 1]. 1 returns the gradient as
        it is. The prune at the end has sparsity 1 - density; where density * N is no whole number,
        it keeps one weight more than were active.
      prunable: as in `prunable_paths`.

    Returns:
      A transformation without state. Its `update` needs params.

    Raises:
      ValueError: the density is out of its range; `update` is called without params, with trees
        that differ, or with so few weights that none would be active.

    Differs from the official code in: exactly Q weights are active, where the code keeps every
    weight that ties with the Q-th. It also has density * N rounded as a decimal number: 0.29 of 100
    weights are 29, where the code's int(0.29 * 100) is 28.

    Reference: Ding et al., "Global Sparse Momentum SGD for Pruning Very Deep Neural Networks",
    NeurIPS 2019.

    >>> tx = gsm(density=0.5)
    >>> params = {"kernel": jnp.array([[1.0, -4.0, 3.0, 0.5]]), "bias": jnp.array([2.0])}
    >>> grads = {"kernel": jnp.array([[2.0, 1.0, 1.0, 2.0]]), "bias": jnp.array([0.25])}
    >>> tx.update(grads, tx.init(params), params)[0]
    {'bias': Array([0.25], dtype=float32), 'kernel': Array([[0., 1., 1., 0.]], dtype=float32)}
    """
    density, rules = check_in("density", density, "(0, 1]"), check_rules(prunable)
    return optax.GradientTransformation(_init, _update_of(density, rules))


def _init(params: PyTree) -> optax.EmptyState:
    del params  # not looked at: `optax.tree.map_params` calls with a placeholder
    return optax.EmptyState()


@comparable
def _update_of(density: float, prunable: Rules | None) -> Callable[..., Any]:
    def update(
        updates: PyTree, state: optax.EmptyState, params: PyTree | None = None
    ) -> tuple[PyTree, optax.EmptyState]:
        if params is None:
            raise ValueError("gsm needs params: tx.update(grads, state, params)")
        grads = check_like(updates, params, name="grads", like="params")
        if density == 1.0:
            return updates, state
        active = active_masks(params, grads, density, prunable=prunable)
        return jax.tree.map(apply_mask, grads, active), state

    return update


def active_masks(
    params: PyTree, grads: PyTree, density: float, *, prunable: Rules | None = None
) -> PyTree:
    """Returns the weights that `gsm` lets the gradient reach at one step.

    Args:
      params: any pytree of arrays.
      grads: the gradient, a tree like params.
      density: as in `gsm`.
      prunable: as in `gsm`.

    Returns:
      A tree of bool like params. Exactly floor(density * N) of the N prunable weights are True, and
      everything else; or all, if an entry of the gradient is not finite.

    >>> active_masks({"kernel": jnp.ones((1, 3))}, {"kernel": jnp.array([[1.0, 3.0, 2.0]])}, 0.4)
    {'kernel': Array([[False,  True, False]], dtype=bool)}
    """
    paths = prunable_paths(params, prunable)
    weights, signal = (prunable_leaves(tree, paths=paths) for tree in (params, grads))
    # Stored, not computed at every pass of the search: the kernel for CPUs reads scores in memory.
    product = lambda path: weights[path].astype(jnp.float32) * signal[path].astype(jnp.float32)
    scores = {path: jnp.abs(product(path)) for path in paths}
    passes = ~all_finite(grads)
    chosen = top_k(scores, _num_active(weights, density)).masks
    return with_leaves(dense_masks(params), {path: m | passes for path, m in chosen.items()})


def _num_active(weights: dict[str, Any], density: float) -> int:
    """Q = floor(density * N), where a density such as 0.29 is meant as a decimal number."""
    size = sum(int(np.size(w)) for w in weights.values())
    found = math.floor(density * size + 1e-6)
    if not found:
        raise OptionError(
            "density", density, f"leaves none of {size:,} weights active", "take a larger one"
        )
    return found


class GsmPreflight(NamedTuple):
    """How far a passive weight shrinks in a run of GSM.

    Attributes:
      exponent: lambda * sum(lr) / (1 - mu), at least 0.
      total_steps: of the run.
      enough: the largest factor with which a prune at the end is harmless.
    """

    exponent: float
    total_steps: int
    enough: float

    @property
    def factor(self) -> float:
        """What is left of a weight that is passive from the first step to the last, in (0, 1]."""
        return math.exp(-self.exponent)

    @property
    def is_long_enough(self) -> bool:
        """Whether such a weight ends at `enough` of its size or below."""
        return self.factor <= self.enough

    def __str__(self) -> str:
        """A line on the factor, and on what to change if the run is too short."""
        line = (
            f"gsm: in {self.total_steps:,} steps a passive weight shrinks to {self.factor:.3g} of "
            f"its size (e^-{self.exponent:.3g})"
        )
        if self.is_long_enough:
            return line
        times = math.log(self.enough) / -self.exponent
        return (
            f"{line}, and should to {self.enough:g}: the prune at the end would cut weights that "
            f"still count; take {times:.3g} times the steps, learning rate or weight decay, or a "
            "momentum nearer to 1"
        )


def gsm_preflight(
    learning_rate: float | optax.Schedule,
    *,
    weight_decay: float,
    momentum: float,
    total_steps: int,
    start_step: int = 0,
    enough: float = 0.01,
) -> GsmPreflight:
    """Says before a run whether it is long enough for GSM, and warns if it is not.

    A weight that is passive all the time shrinks by about

        exp(-lambda * sum_t lr_t / (1 - mu)),

    for lr * lambda far below (1 - sqrt(mu))^2. A short run with the published constants leaves
    every weight as large as it was, and the prune at the end then destroys the network.

    Args:
      learning_rate: number or schedule over steps, as the optimizer has it.
      weight_decay: lambda.
      momentum: mu, in [0, 1). Nesterov's form shrinks weights by the same factor.
      total_steps: length of the run, at least 1.
      start_step: completed steps when GSM starts; earlier steps do not count.
      enough: the factor that is small enough, in (0, 1). The default is ours, not the paper's.

    Returns:
      The factor; print it.

    Warns:
      UserWarning: a passive weight ends above `enough` of its size.

    Raises:
      ValueError: a number out of its range, or weights that do not shrink at all (a weight decay or
        learning rate of 0).

    The formula is ours. With the constants of Ding et al. 2019 for ResNet-56, up to the first drop
    of the learning rate (400 epochs of 782 steps):

    >>> print(gsm_preflight(5e-3, weight_decay=1e-4, momentum=0.98, total_steps=400 * 782))
    gsm: in 312,800 steps a passive weight shrinks to 0.000402 of its size (e^-7.82)
    """
    total_steps = check_whole("total_steps", total_steps, 1, of="steps")
    start_step = check_whole("start_step", start_step, 0, total_steps - 1, of="steps")
    check_in("weight_decay", weight_decay, "(0, inf)")
    check_in("momentum", momentum, "[0, 1)")
    check_in("enough", enough, "(0, 1)")
    total = float(np.sum(rates_of(learning_rate, start_step, total_steps)))
    if not (math.isfinite(total) and total > 0):
        raise ValueError(
            f"the learning rates of {total_steps} steps add up to {total}, not above 0"
        )
    found = GsmPreflight(weight_decay * total / (1.0 - momentum), total_steps, enough)
    if not found.is_long_enough:
        warnings.warn(str(found), stacklevel=2)
    return found
