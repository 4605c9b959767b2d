"""Sparse training of an Equinox model: masks beside its parameters, and an average to evaluate.

    python examples/equinox_training.py

Trains a small multilayer perceptron on the Fashion-MNIST sample with GraNet-ST at 95 %, and tests
an exponential moving average of its parameters. Lines that sparse training adds are marked.
"""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxsparse
from experiments.data import fashion_mnist
from jaxsparse.metrics import Summary

STEPS, BATCH = 1000, 128


class MLP(eqx.Module):
    """784-300-100-10 with ReLU."""

    layers: list[eqx.nn.Linear]

    def __init__(self, key: jax.Array):
        sizes, keys = (784, 300, 100, 10), jax.random.split(key, 3)
        self.layers = [
            eqx.nn.Linear(n_in, n_out, key=k)
            for n_in, n_out, k in zip(sizes[:-1], sizes[1:], keys, strict=True)
        ]

    def __call__(self, image: jax.Array) -> jax.Array:
        """Maps float[28, 28, 1] to float[10] logits."""
        x = image.ravel()
        for layer in self.layers[:-1]:
            x = jax.nn.relu(layer(x))
        return self.layers[-1](x)


def main(steps: int = STEPS) -> tuple[float, Summary]:
    """Trains, prints and returns the test accuracy and the table of layers."""
    data = fashion_mnist.load(None)
    # Arrays to the left, everything else to the right: the core works on the left one.
    params, static = eqx.partition(MLP(jax.random.key(0)), eqx.is_inexact_array)

    method = jaxsparse.granet_st(sparsity=0.95, total_steps=steps, update_interval=25)  # sparse
    optimizer = jaxsparse.sparse_optimizer(method, optax.adam(1e-3))  # sparse
    params, state = optimizer.init(params, key=jax.random.key(1))  # sparse: key
    average = params

    def logits(params, images):
        return jax.vmap(eqx.combine(params, static))(images / 255.0)

    def loss(params, images, labels):
        losses = optax.softmax_cross_entropy_with_integer_labels(logits(params, images), labels)
        return losses.mean()

    @functools.partial(jax.jit, static_argnames="event")  # sparse: event
    def step(params, state, average, images, labels, event):
        grads = jax.grad(loss)(params, images, labels)
        params, state = optimizer.update(grads, state, params, event=event)  # sparse: event
        return params, state, optax.incremental_update(params, average, 0.02)

    order = np.random.default_rng(0)
    for n in range(1, steps + 1):
        batch = order.integers(len(data.train.labels), size=BATCH)
        images, labels = (
            jnp.asarray(data.train.images[batch]),
            jnp.asarray(data.train.labels[batch]),
        )
        event = method.is_due(n)  # sparse
        params, state, average = step(params, state, average, images, labels, event=event)

    # Weights that were dropped on the way live on in the average: it is masked where it is used.
    average = jaxsparse.apply_masks(average, state.masks)  # sparse
    predicted = jnp.argmax(logits(average, jnp.asarray(data.test.images)), -1)
    accuracy = float((predicted == jnp.asarray(data.test.labels)).mean())
    table = optimizer.summary(params, state)
    print(f"test accuracy {accuracy:.4f}\n{table}")
    return accuracy, table


if __name__ == "__main__":
    main()
