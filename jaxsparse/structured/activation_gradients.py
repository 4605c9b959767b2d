"""Activation-gradient pruning, as a simulation: small gradients of activations become 0 or tau.

Backward through `prune_gradient`, an entry g with |g| < tau becomes sign(g) tau with probability
|g| / tau, and 0 otherwise. Larger entries pass. The expectation is the gradient itself. If g is
normal with standard deviation sigma, and a share p of it shall lie below tau, then

    sigma = sqrt(pi / 2) mean|g|,      tau = sigma Phi^-1((1 + p) / 2).

tau is known before the backward pass: it is the mean of the last thresholds of the layer, a queue
that the caller keeps.

**This saves no time** on any device that JAX runs on: products take all entries, 0 or not. It shows
how a network trains with such gradients, and how dense they are, for hardware that would skip
zeros. The rate p is not the sparsity: p = 0.9 makes 54 % of a normal gradient 0, since the other
entries below tau are rounded up to it; see `expected_zeros`.

Put it where gradients are dense: behind the convolution of conv, batch norm, ReLU; behind the ReLU
of conv, ReLU.

    def loss(params, probe, queue, key, batch):
        x = conv(params, batch)
        x = prune_gradient(x, threshold(queue), key, probe)
        ...

    grads, seen = jax.grad(loss, argnums=(0, 1))(params, no_probe(), queue, key, batch)
    queue = push(queue, seen.mean_abs, rate=0.9)          # and seen.density is a metric

Reference: Ye et al., "Accelerating CNN Training by Pruning Activation Gradients", ECCV 2020. The
placement is from memory of the paper; the queue follows an independent code.
"""

from statistics import NormalDist
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxsparse.checks import check_in, check_whole

_NORMAL = NormalDist()


class Probe(NamedTuple):
    """Numbers of one activation's gradient, which a backward pass gives as that of the probe.

    Attributes:
      mean_abs: float32[], mean |g| before pruning.
      density: float32[], share of the entries that are not 0 after it.
    """

    mean_abs: jax.Array
    density: jax.Array


class Queue(NamedTuple):
    """The last thresholds of a layer, first in, first out.

    Attributes:
      thresholds: float32[length].
      num_pushed: int32[], how many have been pushed so far.
    """

    thresholds: jax.Array
    num_pushed: jax.Array


def no_probe() -> Probe:
    """Returns the probe to differentiate by; its value does not matter."""
    return Probe(jnp.zeros(()), jnp.zeros(()))


@jax.custom_vjp
def prune_gradient(x: jax.Array, tau: jax.Array, key: jax.Array, probe: Probe) -> jax.Array:
    """Returns x; its gradient is pruned at the threshold tau on the way back.

    Args:
      x: float[...], an activation.
      tau: float32[], at least 0. 0 prunes nothing.
      key: for the rounding; a new one for each layer and step.
      probe: from `no_probe`. Its cotangent is not a gradient: it holds what was seen.

    Returns:
      x. The cotangent of tau is 0.
    """
    del tau, key, probe
    return x


def _forward(
    x: jax.Array, tau: jax.Array, key: jax.Array, probe: Probe
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    del probe
    return x, (jnp.asarray(tau, jnp.float32), key)


def _backward(
    saved: tuple[jax.Array, jax.Array], g: jax.Array
) -> tuple[jax.Array, jax.Array, None, Probe]:
    tau, key = saved
    pruned = stochastic_prune(g, tau, key)
    mean_abs = jnp.mean(jnp.abs(g.astype(jnp.float32)))
    density = jnp.mean((pruned != 0).astype(jnp.float32))
    return pruned, jnp.zeros_like(tau), None, Probe(mean_abs, density)


prune_gradient.defvjp(_forward, _backward)


def stochastic_prune(g: jax.Array, tau: jax.Array, key: jax.Array) -> jax.Array:
    """Returns sign(g) tau with probability |g| / tau, else 0, where |g| < tau; else g.

    Args:
      g: float[...].
      tau: float32[], at least 0.
      key: for the draw.

    >>> g = jnp.array([0.0, 3.0, -2.0])
    >>> stochastic_prune(g, jnp.float32(2.0), jax.random.key(0))
    Array([ 0.,  3., -2.], dtype=float32)
    """
    size = jnp.abs(g.astype(jnp.float32))
    rises = jax.random.uniform(key, g.shape) * tau < size
    rounded = jnp.where(rises, jnp.sign(g) * tau.astype(g.dtype), 0)
    return jnp.where(size < tau, rounded, g).astype(g.dtype)


def threshold_of(mean_abs: jax.Array, *, rate: float) -> jax.Array:
    """Returns tau = sqrt(pi / 2) mean|g| Phi^-1((1 + p) / 2).

    Args:
      mean_abs: float32[], mean |g|.
      rate: p, the share of a normal gradient below tau, in [0, 1).

    >>> print(f"{threshold_of(jnp.sqrt(2 / jnp.pi), rate=0.9):.4f}")  # sigma = 1
    1.6449
    """
    rate = check_in("rate", rate, "[0, 1)")
    return np.sqrt(np.pi / 2).astype(np.float32) * mean_abs * _quantile(rate)


def expected_zeros(rate: float) -> float:
    """Returns the share of a normal gradient that becomes 0: p - (2 / z) (phi(0) - phi(z)).

    Args:
      rate: p, in [0, 1); z = Phi^-1((1 + p) / 2).

    >>> [round(expected_zeros(rate), 2) for rate in (0.0, 0.5, 0.9, 0.99)]
    [0.0, 0.26, 0.54, 0.69]
    """
    rate = check_in("rate", rate, "[0, 1)")
    z = _quantile(rate)
    return rate - 2 / z * (_NORMAL.pdf(0.0) - _NORMAL.pdf(z)) if z > 0 else 0.0


def _quantile(rate: float) -> float:
    return _NORMAL.inv_cdf((1 + rate) / 2)


def empty_queue(length: int) -> Queue:
    """Returns a queue without thresholds.

    Args:
      length: how many it holds, at least 1.
    """
    length = check_whole("length", length, 1, of="thresholds")
    return Queue(jnp.zeros(length), jnp.zeros((), jnp.int32))


def push(queue: Queue, mean_abs: jax.Array, *, rate: float) -> Queue:
    """Returns the queue with the threshold of one more backward pass, in place of the oldest.

    A mean that is not finite, as after an overflow, is left out.

    Args:
      queue: of the layer.
      mean_abs: float32[], from the probe.
      rate: p, as in `threshold_of`.
    """
    length = queue.thresholds.shape[0]
    tau = threshold_of(mean_abs, rate=rate)
    pushed = Queue(queue.thresholds.at[queue.num_pushed % length].set(tau), queue.num_pushed + 1)
    return jax.tree.map(lambda new, old: jnp.where(jnp.isfinite(tau), new, old), pushed, queue)


def threshold(queue: Queue) -> jax.Array:
    """Returns the mean of the thresholds in a queue, float32[]; 0 if there are none yet."""
    num = jnp.minimum(queue.num_pushed, queue.thresholds.shape[0])
    return jnp.sum(queue.thresholds) / jnp.maximum(num, 1)
