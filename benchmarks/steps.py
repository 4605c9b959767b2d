"""What a mask costs a training step: `masked` against the optimizer alone, where there is no event.

    python -m benchmarks.steps

Bytes are those of `cost_analysis`, buffers donated. An optimizer step alone is bound by memory, so
time should follow bytes; a mask is one byte a weight beside the 20 that SGD with momentum needs
(reads weight, gradient, slot, writes weight, slot) or the 28 of AdamW. In a training step of a
network the forward and backward passes are in both, and what is left to see is small: look at the
control first.
"""

import argparse
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

import jaxsparse
from benchmarks import resnet50, timing
from jaxsparse.nn import LeNet5

OPTIMIZERS = {
    "sgd, momentum": optax.sgd(0.1, momentum=0.9),
    "adamw": optax.adamw(1e-3),
}


class Stepper:
    """Calls a step that donates its state, over and over, on the state it returned."""

    def __init__(self, step: Callable[..., Any], state: Any, *args: Any):
        own = jax.tree.map(lambda x: jnp.array(x, copy=True), state)
        self.compiled, _ = timing.compile_with_time(step, own, *args, donate_argnums=0)
        self.state, self.args = own, args

    def __call__(self) -> Any:
        """One step."""
        self.state = self.compiled(self.state, *self.args)
        return self.state

    @property
    def bytes_accessed(self) -> float:
        """By XLA's own count."""
        return self.compiled.cost_analysis()["bytes accessed"]


def optimizer_steps(tx: optax.GradientTransformation) -> tuple[Stepper, Stepper]:
    """The step of `masked(tx)` and of `tx`, on the shapes of ResNet-50 at 90 % sparsity."""
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


def training_steps(tx: optax.GradientTransformation) -> tuple[Stepper, Stepper]:
    """A training step of LeNet-5, batch 128, with RigL's state and without any mask."""
    model = LeNet5()
    images = jax.random.normal(jax.random.key(0), (128, 28, 28, 1))
    labels = jnp.arange(128) % 10
    params = model.init(jax.random.key(1), images)["params"]
    state = jaxsparse.TrainState.create(
        apply_fn=model.apply,
        params=params,
        tx=tx,
        method=jaxsparse.rigl(sparsity=0.9, total_steps=1000),
        key=jax.random.key(2),
    )

    def loss(params: Any) -> jax.Array:
        logits = jnp.asarray(model.apply({"params": params}, images))
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    def sparse_step(state: jaxsparse.TrainState) -> jaxsparse.TrainState:
        return state.apply_gradients(grads=jax.grad(loss)(state.params))

    def dense_step(state: Any) -> Any:
        updates, opt_state = tx.update(jax.grad(loss)(state[0]), state[1], state[0])
        return optax.apply_updates(state[0], updates), opt_state

    return Stepper(sparse_step, state), Stepper(dense_step, (params, tx.init(params)))


def main() -> None:
    """Prints one line per comparison."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=200, help="interleaved pairs per ratio")
    pairs = parser.parse_args().pairs
    print(f"{timing.machine()}; medians [quartiles] over {pairs} interleaved pairs")
    print("ratios are masked / plain; the control is plain / plain, and what lies within its")
    print("quartiles is no difference\n")
    print(
        f"{'step':<26} {'optimizer':<13} {'masked ms':>9} {'plain ms':>9} "
        f"{'bytes ratio':>11} {'time ratio':>21} {'control':>21}",
        flush=True,
    )
    kinds = {"optimizer, 25.5M weights": optimizer_steps, "LeNet-5 training": training_steps}
    for kind, make in kinds.items():
        for name, tx in OPTIMIZERS.items():
            masked, plain = make(tx)
            result = timing.compare(masked, plain, pairs=pairs)
            masked_ms, plain_ms = (1e3 * value for value in result.seconds)
            print(
                f"{kind:<26} {name:<13} {masked_ms:>9.2f} {plain_ms:>9.2f} "
                f"{masked.bytes_accessed / plain.bytes_accessed:>11.3f} "
                f"{result.ratio!s:>21} {result.control!s:>21}",
                flush=True,
            )
            del masked, plain


if __name__ == "__main__":
    main()
