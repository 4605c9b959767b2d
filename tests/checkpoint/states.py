"""States for the tests of checkpoints, and how to compare them."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxsparse
from jaxsparse.flat_state import flatten
from tests.trees import FIXED, fill


def bits(tree) -> dict[str, tuple[str, bytes]]:
    """Type and bytes of every leaf by path; equal if and only if the trees are equal to the bit."""
    arrays, records = flatten(tree)
    return {path: (records[path].dtype, np.asarray(x).tobytes()) for path, x in arrays.items()}


def content(folder) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def small(seed=0, size=(4, 3)):
    """A small state with its masks, all of it depending on the seed."""
    rng = np.random.default_rng(seed)
    return {
        "params": {"kernel": jnp.asarray(rng.normal(size=size), jnp.float32)},
        "masks": {"kernel": jnp.asarray(rng.random(size) < 0.5)},
        "key": jax.random.key(seed),
    }


@functools.partial(jax.jit, static_argnames="event", donate_argnames="state")
def step(state, grads, event):
    return state.apply_gradients(grads=grads, event=event)


class WithMore(jaxsparse.TrainState):
    batch_stats: Any
    nothing: Any


def train_state(method=jaxsparse.snfs, seed=0, tx=None, **options):
    return WithMore.create(
        apply_fn=None,
        params=options.pop("params", None) or fill(FIXED, seed),
        tx=optax.adamw(0.01) if tx is None else tx,
        method=method(sparsity=0.7, total_steps=12, update_interval=2),
        key=jax.random.key(seed),
        track_exploration=True,
        batch_stats={"mean": jnp.ones(3)},
        nothing=None,
        **options,
    )
