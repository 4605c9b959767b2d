"""The cost of a step of GSM beside plain SGD with momentum, on ResNet-50's prunable weights.

    python benchmarks/gsm.py --pairs=20

The optimizer's step alone, without a forward pass: weight decay, momentum, and for GSM the global
selection of the best tenth of 25.5 million weights by |w g|. "limit" is the bytes that a step has
to move, at the rate at which this machine negates an array in place: SGD reads w, g and z and
writes w and z. GSM reads w and g once more, writes the scores and reads them at least once.
"""

import argparse
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

import jaxsparse
from benchmarks import resnet50, timing
from jaxsparse.sparse import backend

DENSITY = 0.1
RATE, MOMENTUM, DECAY = 5e-3, 0.98, 1e-4  # of ResNet-56 in the paper

# Passes over arrays of the size of the weights.
PASSES = {"sgd": 5, "gsm": 5 + 2 + 1 + 1}


def optimizers() -> dict[str, optax.GradientTransformation]:
    """SGD with decay and momentum, and the same behind GSM."""
    plain = (optax.add_decayed_weights(DECAY), optax.sgd(RATE, momentum=MOMENTUM))
    return {"sgd": optax.chain(*plain), "gsm": optax.chain(jaxsparse.gsm(DENSITY), *plain)}


def step_of(tx: optax.GradientTransformation, params: Any, grads: Any) -> timing.Run:
    """Returns a call of the compiled step, whose state is donated as in training."""

    def step(state: Any, grads: Any) -> Any:
        params, opt_state = state
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    own = jax.tree.map(jnp.copy, params)
    return in_place(step, (own, tx.init(own)), grads)


def in_place(function: Callable[..., Any], state: Any, *args: Any) -> timing.Run:
    """Returns a call that takes a state to the next one and donates the last."""
    reached = [state]
    compiled = jax.jit(function, donate_argnums=0).lower(state, *args).compile()

    def run() -> Any:
        reached[0] = compiled(reached[0], *args)
        return reached[0]

    return run


def main() -> None:
    """Prints times, their ratio with its control, and how far each is from the limit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=50, help="interleaved pairs of steps")
    pairs = parser.parse_args().pairs
    print(f"{timing.machine()}, kernels: {' '.join(backend())}")
    params, grads = resnet50.params(0), resnet50.params(1)
    nbytes = sum(x.nbytes for x in params.values())
    print(f"{len(params)} leaves, {nbytes // 4:,} weights, {DENSITY:.0%} active, {pairs} pairs")
    negate = in_place(functools.partial(jax.tree.map, jnp.negative), jax.tree.map(jnp.copy, params))
    per_pass = timing.median_seconds(negate, times=pairs) / 2
    steps = {name: step_of(tx, params, grads) for name, tx in optimizers().items()}
    found = timing.compare(steps["gsm"], steps["sgd"], pairs=pairs)
    for name, seconds in zip(("gsm", "sgd"), found.seconds, strict=True):
        limit = PASSES[name] * per_pass
        print(
            f"{name}: {seconds * 1e3:6.1f} ms, {seconds / limit:.2f} x the limit "
            f"({PASSES[name]} passes, {limit * 1e3:.1f} ms)"
        )
    print(f"gsm / sgd: {found.ratio}, sgd / sgd: {found.control}")


if __name__ == "__main__":
    main()
