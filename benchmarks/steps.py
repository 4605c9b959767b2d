"""The cost of masks in a training step without an event: `masked` against the optimizer alone.

    python -m benchmarks.steps

Bytes are those of `cost_analysis` with donated buffers. An optimizer step alone is bound by memory,
so its time should follow its bytes. A mask is one byte for each weight, beside the 20 bytes of SGD
with momentum (reads weight, gradient, slot; writes weight, slot) or the 28 of AdamW. A training
step of a network also has the forward and backward pass, so the difference is small: look at the
control first.
"""

import argparse
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

import jaxsparse
from benchmarks import resnet50, timing
from jaxsparse.nn import LeNet5, cifar_resnet

BATCH = 128
EPOCH = {"LeNet-5": 54_000, "ResNet-20": 45_000}  # training images, as the experiments split them
OPTIMIZERS = {
    "sgd, momentum": optax.sgd(0.1, momentum=0.9),
    "adamw": optax.adamw(1e-3),
}


class Stepper:
    """Calls a step that donates its state again and again, each time with the last state."""

    def __init__(self, step: Callable[..., Any], state: Any, *args: Any):
        own = jax.tree.map(lambda x: jnp.array(x, copy=True), state)
        self.compiled, self.compile_seconds = timing.compile_with_time(
            step, own, *args, donate_argnums=0
        )
        self.state, self.args = own, args

    def __call__(self) -> Any:
        """One step."""
        self.state = self.compiled(self.state, *self.args)
        return self.state

    @property
    def bytes_accessed(self) -> float:
        """Bytes as XLA counts them."""
        return self.compiled.cost_analysis()["bytes accessed"]


def optimizer_steps(tx: optax.GradientTransformation) -> tuple[Stepper, Stepper]:
    """The optimizer steps of `masked(tx)` and of `tx`, for ResNet-50 at 90 % sparsity."""
    params, grads = resnet50.params(0), resnet50.params(1)
    method = jaxsparse.static(sparsity=0.9, total_steps=1)
    masks = jax.jit(method.init)(jax.random.key(2), params)
    masked = jaxsparse.masked(tx)

    def plain_step(state: Any, grads: Any) -> Any:
        updates, opt_state = tx.update(grads, state[1], state[0])
        return optax.apply_updates(state[0], updates), opt_state

    def masked_step(state: Any, grads: Any, masks: Any) -> Any:
        updates, opt_state = masked.update(grads, state[1], state[0], masks=masks)
        return optax.apply_updates(state[0], updates), opt_state

    params = jaxsparse.apply_masks(params, masks)
    return (
        Stepper(masked_step, (params, masked.init(params)), grads, masks),
        Stepper(plain_step, (params, tx.init(params)), grads),
    )


class Kind(NamedTuple):
    """A network in training: the shape of its images, its method, its optimizers."""

    model: nn.Module
    image: tuple[int, ...]
    method: jaxsparse.Method
    optimizers: tuple[str, ...]


NETWORKS = {
    "LeNet-5": Kind(
        LeNet5(), (28, 28, 1), jaxsparse.rigl(sparsity=0.9, total_steps=1000), tuple(OPTIMIZERS)
    ),
    "ResNet-20": Kind(
        cifar_resnet(20),
        (32, 32, 3),
        jaxsparse.granet_st(sparsity=0.9, total_steps=56_160),
        ("sgd, momentum",),
    ),
}


def training_steps(kind: Kind, tx: optax.GradientTransformation) -> tuple[Stepper, Stepper]:
    """The training step of batch 128 with the masks of a method, and without masks."""
    model = kind.model
    images = jax.random.normal(jax.random.key(0), (BATCH, *kind.image))
    labels = jnp.arange(BATCH) % 10
    variables = model.init(jax.random.key(1), images[:1])
    params = variables.pop("params")
    state = jaxsparse.TrainState.create(
        apply_fn=model.apply, params=params, tx=tx, method=kind.method, key=jax.random.key(2)
    )

    def loss(params: Any, collections: Any) -> tuple[jax.Array, Any]:
        logits, updated = model.apply(
            {"params": params, **collections}, images, train=True, mutable=list(collections)
        )
        logits = jnp.asarray(logits)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), updated

    def sparse_step(both: Any) -> Any:
        state, collections = both
        grads, collections = jax.grad(loss, has_aux=True)(state.params, collections)
        return state.apply_gradients(grads=grads), collections

    def dense_step(state: Any) -> Any:
        params, opt_state, collections = state
        grads, collections = jax.grad(loss, has_aux=True)(params, collections)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, collections

    return (
        Stepper(sparse_step, (state, variables)),
        Stepper(dense_step, (params, tx.init(params), variables)),
    )


def main() -> None:
    """Prints one line per comparison."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=200, help="interleaved pairs per ratio")
    parser.add_argument("--only", default="", help="steps whose name holds this")
    arguments = parser.parse_args()
    pairs = arguments.pairs
    print(f"{timing.machine()}; medians [quartiles] over {pairs} interleaved pairs")
    print("ratios are masked / plain; the control is plain / plain, and what lies within its")
    print("quartiles is no difference\n")
    print(
        f"{'step':<26} {'optimizer':<13} {'masked ms':>9} {'plain ms':>9} "
        f"{'bytes ratio':>11} {'time ratio':>21} {'control':>21}",
        flush=True,
    )
    for label, name, make, images in comparisons():
        if arguments.only not in label:
            continue
        masked, plain = make()
        result = timing.compare(masked, plain, pairs=pairs)
        masked_ms, plain_ms = (1e3 * value for value in result.seconds)
        print(
            f"{label:<26} {name:<13} {masked_ms:>9.2f} {plain_ms:>9.2f} "
            f"{masked.bytes_accessed / plain.bytes_accessed:>11.3f} "
            f"{result.ratio!s:>21} {result.control!s:>21}",
            flush=True,
        )
        if images:
            speeds = [1e3 * BATCH / ms for ms in (masked_ms, plain_ms)]
            epochs = [images / speed for speed in speeds]
            print(
                f"{'':<26} images/s {speeds[0]:,.0f} masked, {speeds[1]:,.0f} plain; an epoch of "
                f"{images:,} takes {epochs[0]:,.0f} and {epochs[1]:,.0f} s",
                flush=True,
            )
        del masked, plain


def comparisons() -> Iterator[tuple[str, str, Callable[[], tuple[Stepper, Stepper]], int]]:
    """Yields label, optimizer, the makers of the masked and plain step, and images per epoch."""
    for name, tx in OPTIMIZERS.items():
        yield "optimizer, 25.5M weights", name, functools.partial(optimizer_steps, tx), 0
    for network, kind in NETWORKS.items():
        for name in kind.optimizers:
            make = functools.partial(training_steps, kind, OPTIMIZERS[name])
            yield f"{network} training", name, make, EPOCH[network]


if __name__ == "__main__":
    main()
