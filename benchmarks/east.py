"""The cost of EAST's parts: of DyReLU in a training step and after its phase-out, and of sharing.

    python -m benchmarks.east --model=resnet20,resnet34_narrow --sparsity=0.999

A step is forward, backward and SGD with momentum, with batch 128 and the shapes of CIFAR, on masked
dense kernels and by active weights. It is timed with ReLU, with DyReLU, with weight sharing, and
after `phase_out`. The last is the control: its program must be that of the ReLU network (they are
compared as text, and a difference ends the benchmark), so its ratio shows the noise. Events are
those of RigL on the same masks, with and without sharing. Numbers are medians [quartiles] of
samples that no other process disturbed; "?" marks a number without such samples.
"""

import argparse
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

import jaxsparse
from benchmarks import quiet, timing
from experiments import cifar
from jaxsparse.nn import (
    DyReLUOptions,
    choose_forms,
    phase_out,
    sharing_of,
    sparse_execution,
    stored_sparsity,
    without_dyrelu,
)
from jaxsparse.sparse import compress, count_active, find_positions, keep_memory

BATCH = 128
IMAGES = jax.ShapeDtypeStruct((BATCH, 32, 32, 3), jnp.float32)


class Begun(NamedTuple):
    """A network at the start of training.

    Attributes:
      model: the network.
      state: its train state.
      collections: its other variables.
    """

    model: nn.Module
    state: jaxsparse.TrainState
    collections: dict[str, Any]


def begin(model: nn.Module, sparsity: float) -> Begun:
    """Draws weights and ERK masks; the sparsity is that of the network without sharing."""
    variables = dict(jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, *IMAGES.shape[1:]))))
    params = variables.pop("params")
    inside = stored_sparsity(sparsity, sharing_of(model, IMAGES))
    state = jaxsparse.TrainState.create(
        apply_fn=model.apply,
        params=params,
        tx=optax.sgd(0.1, momentum=0.9),
        method=jaxsparse.rigl_itop(sparsity=inside, total_steps=88_000),
        key=jax.random.key(1),
    )
    return Begun(model, state, variables)


def ended(begun: Begun) -> Begun:
    """The network and its state after DyReLU is phased out."""
    model, state = phase_out(begun.model, begun.state)
    return Begun(model, state, without_dyrelu(begun.collections))


def training_step(begun: Begun, *, sparse: bool) -> tuple[quiet.Run, str]:
    """A compiled training step on random images, and its program as text."""
    model, state, positions = begun.model, begun.state, {}
    if sparse:
        forms = choose_forms(model, IMAGES, count_active(state.masks), exact=True)
        model, positions = forms.model, find_positions(state.masks, capacity=forms.capacity)
        state = jax.jit(compress)(state, positions)
    images = jax.random.normal(jax.random.key(2), IMAGES.shape)
    labels = jnp.arange(BATCH) % 10

    def step(state: Any, collections: Any, positions: Any, images: Any, labels: Any) -> Any:
        def loss(params: Any) -> tuple[jax.Array, Any]:
            with sparse_execution(positions):
                logits, updated = model.apply(
                    {"params": params, **collections}, images, train=True, mutable=[*collections]
                )
            losses = optax.softmax_cross_entropy_with_integer_labels(jnp.asarray(logits), labels)
            return losses.mean(), updated

        grads, collections = jax.grad(loss, has_aux=True)(state.params)
        return state.apply_gradients(grads=grads), collections

    args = (state, begun.collections, positions, images, labels)
    lowered = jax.jit(step).lower(*args)
    compiled = lowered.compile()
    return functools.partial(_wait, compiled, args), lowered.as_text()


def event(begun: Begun) -> quiet.Run:
    """A compiled mask update."""
    method, state = begun.state.method, begun.state
    grads = jax.tree.map(lambda x: jax.random.normal(jax.random.key(3), x.shape), state.params)
    update = lambda params, grads, masks: method.update(params, grads, masks, 4000)
    args = (state.params, grads, state.masks)
    return functools.partial(_wait, jax.jit(update).lower(*args).compile(), args)


def _wait(function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    jax.block_until_ready(function(*args))


def report(name: str, sparsity: float, rounds: int) -> None:
    """Prints the rows of one network.

    Raises:
      SystemExit: the step after DyReLU is another program than that of the ReLU network.
    """
    plain = cifar.MODELS[name](num_classes=10)
    relu, dyrelu = begin(plain, sparsity), begin(plain.clone(dyrelu=DyReLUOptions()), sparsity)
    kinds = {"relu": relu, "dyrelu": dyrelu, "after dyrelu": ended(dyrelu)}
    kinds["shared"] = begin(plain.clone(num_owners=2), sparsity)
    for execution in ("masked", "sparse"):
        steps = {
            kind: training_step(begun, sparse=execution == "sparse")
            for kind, begun in kinds.items()
        }
        if steps["after dyrelu"][1] != steps["relu"][1]:
            raise SystemExit(f"{name}, {execution}: what DyReLU leaves is not the ReLU program")
        found = quiet.in_turn({kind: run for kind, (run, _) in steps.items()}, rounds=rounds)
        for kind, samples in found.items():
            note = "the same program" if "after" in kind else ""
            _print(name, f"{execution} step", kind, samples, found["relu"], note)
    events = quiet.in_turn({kind: event(kinds[kind]) for kind in ("relu", "shared")}, rounds=rounds)
    for kind, samples in events.items():
        _print(name, "event", kind, samples, events["relu"], "")


def _print(name: str, what: str, kind: str, samples: Any, relu: Any, note: str) -> None:
    ratio = quiet.ratio(samples, relu)
    print(f"| {name} | {what} | {kind} | {quiet.milliseconds(samples)} | {ratio} | {note} |")


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="resnet20", help="of experiments/cifar.py")
    parser.add_argument("--sparsity", type=float, default=0.999)
    parser.add_argument("--rounds", type=int, default=7, help="samples of each program")
    arguments = parser.parse_args()
    keep_memory()
    print(f"{timing.machine()}, batch {BATCH}, sparsity {arguments.sparsity:g}\n")
    print("| network | | | ms | / relu | |\n|---|---|---|---|---|---|", flush=True)
    for name in arguments.model.split(","):
        report(name, arguments.sparsity, arguments.rounds)


if __name__ == "__main__":
    main()
