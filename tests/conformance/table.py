"""The table of all methods, and the loop of the README that the conformance tests run them in."""

import functools
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import optax
import pytest

import jaxsparse
from jaxsparse.paths import leaf_paths
from jaxsparse.schedules import constant
from jaxsparse.scores import random, saliency
from jaxsparse.types import Observed
from tests.trees import FIXED, every_other, fill

TOTAL, EVERY, SPARSITY = 12, 2, 0.7


class Case(NamedTuple):
    """One row.

    Attributes:
      make: params -> method.
      sparsities: what the masks have at the start, and after each event in turn.
      steps: of the events.
      scope: what keeps its count at an event or reaches its target: "leaf", or only all "together".
      random_start: whether the initial masks depend on the key.
      random_events: whether events do.
    """

    make: Callable[[Any], jaxsparse.Method]
    sparsities: tuple[float, ...]
    steps: tuple[int, ...] = ()
    scope: str = "leaf"
    random_start: bool = False
    random_events: bool = False


def cubic(initial: float, stop: int, last: int) -> tuple[tuple[float, ...], tuple[int, ...]]:
    """Sparsities and steps, with no part of the library: s_i + (s_f - s_i) (1 - (1 - i/T)^3)."""
    num = stop // EVERY
    rise = lambda i: 1 - (1 - min(i / num, 1.0)) ** 3
    events = range(1, last // EVERY + 1)
    sparsities = tuple(initial + (SPARSITY - initial) * rise(i) for i in (0, *events))
    return sparsities, tuple(i * EVERY for i in events)


def held(last: int, **options: bool) -> dict[str, Any]:
    steps = tuple(range(EVERY, last + 1, EVERY))
    return {"sparsities": (SPARSITY,) * (len(steps) + 1), "steps": steps, "random_start": True} | (
        options
    )


def composed(params: Any) -> jaxsparse.Method:
    """What a user might write: prune by |w g|, then a SET exchange by |w g|, on averaged grads."""
    timetable = jaxsparse.make_timetable(
        total_steps=TOTAL,
        update_interval=EVERY,
        initial_density=0.6,
        density=lambda step: 0.6 - 0.3 * min(step / 6, 1.0),
        drop_fraction=constant(0.4),
    )
    return jaxsparse.compose(
        "composed",
        [
            jaxsparse.prune(saliency),
            jaxsparse.exchange(drop=saliency, grow=random, rounding="floor"),
        ],
        timetable,
        distribution=jaxsparse.uniform(),
        scope="global",
        observe=optax.ema(0.5),
    )


def patterned(method: jaxsparse.Method, params: Any, by_shape: dict) -> jaxsparse.Method:
    """One rule for each prunable leaf, by its shape."""
    leaves = dict(zip(leaf_paths(params), jax.tree.leaves(params), strict=True))
    paths = jaxsparse.prunable_paths(params)
    rules = [(f"^{re.escape(path)}$", by_shape[leaves[path].shape]) for path in paths]
    return jaxsparse.with_pattern(method, rules)


# Half of every leaf but of the single weight, which stays: 6 + 12 + 1 + 12 = 31 of 61.
RATIOS = {
    (3, 4): jaxsparse.n_of_m(2, 4, axis=-1),
    (2, 2, 2, 3): jaxsparse.n_of_m(1, 2),
    (1, 1): None,
    (2, 3, 4): jaxsparse.n_of_m(1, 2, axis=0),
}
# 2 + 4 + 4 blocks of 6, and the single weight.
BLOCKS = {
    (3, 4): jaxsparse.block((3, 2)),
    (2, 2, 2, 3): jaxsparse.block((2, 3)),
    (1, 1): None,
    (2, 3, 4): jaxsparse.block((3, 2)),
}
# 4 channels of 3, 3 of 8, 1 of 1, 3 (input) channels of 8.
CHANNELS = {
    (3, 4): jaxsparse.channels(),
    (2, 2, 2, 3): jaxsparse.channels(),
    (1, 1): jaxsparse.channels(),
    (2, 3, 4): jaxsparse.channels(-2),
}


_RUN = {"total_steps": TOTAL, "update_interval": EVERY}
_PRUNED = {"sparsity": SPARSITY, "stop_step": 6, **_RUN}
_FIXED = {"sparsity": SPARSITY, **_RUN}

CASES = {
    "dense": Case(lambda p: jaxsparse.dense(total_steps=TOTAL), (0.0,)),
    "static": Case(
        lambda p: jaxsparse.static(sparsity=SPARSITY, total_steps=TOTAL),
        (SPARSITY,),
        random_start=True,
    ),
    "static_given": Case(
        lambda p: jaxsparse.static(masks=every_other(p), total_steps=TOTAL), (30 / 61,)
    ),
    "gmp": Case(lambda p: jaxsparse.gmp(**_PRUNED), *cubic(0.0, 6, 6), scope="together"),
    "gmp_layer": Case(lambda p: jaxsparse.gmp(scope="layer", **_PRUNED), *cubic(0.0, 6, 6)),
    "gmp_sparse_start": Case(
        lambda p: jaxsparse.gmp(scope="layer", initial_sparsity=0.3, **_PRUNED),
        *cubic(0.3, 6, 6),
        random_start=True,
    ),
    "granet": Case(lambda p: jaxsparse.granet(**_PRUNED), *cubic(0.0, 6, 10), scope="together"),
    "granet_to_the_end": Case(
        lambda p: jaxsparse.granet(**_PRUNED | {"stop_step": TOTAL}),
        *cubic(0.0, TOTAL, TOTAL),
        scope="together",
    ),
    "granet_layer": Case(lambda p: jaxsparse.granet(scope="layer", **_PRUNED), *cubic(0.0, 6, 10)),
    "granet_min_keep": Case(
        lambda p: jaxsparse.granet(min_keep=2, **_PRUNED), *cubic(0.0, 6, 10), scope="together"
    ),
    "granet_st": Case(
        lambda p: jaxsparse.granet_st(initial_sparsity=0.5, **_PRUNED),
        *cubic(0.5, 6, 10),
        scope="together",
        random_start=True,
    ),
    "rigl": Case(lambda p: jaxsparse.rigl(**_FIXED), **held(8)),
    "set": Case(lambda p: jaxsparse.set_(**_FIXED), **held(8, random_events=True)),
    "snfs": Case(lambda p: jaxsparse.snfs(**_FIXED), **held(8)),
    "rigl_itop": Case(lambda p: jaxsparse.rigl_itop(**_FIXED), **held(10)),
    "set_itop": Case(lambda p: jaxsparse.set_itop(**_FIXED), **held(10, random_events=True)),
    # 1 - 31/61; the method's own sparsity only concerns the single weight, which it keeps.
    "rigl_n_of_m": Case(
        lambda p: patterned(
            jaxsparse.rigl(**_FIXED | {"sparsity": 0.5, "drop_fraction": 0.6}), p, RATIOS
        ),
        (30 / 61,) * 5,
        (2, 4, 6, 8),
        random_start=True,
    ),
    # 11 units at density .3 are 4, one a leaf: 6 + 6 + 6 + 1 = 19 of 61.
    "set_itop_block": Case(
        lambda p: patterned(
            jaxsparse.set_itop(distribution=jaxsparse.uniform(), **_FIXED), p, BLOCKS
        ),
        (42 / 61,) * 6,
        (2, 4, 6, 8, 10),
        random_start=True,
        random_events=True,
    ),
    # Of 11 units s_i = .4926, .6741, .7 leave 6, 4, 4: blocks 1, 2, 2 and the weight, then 1 each.
    "gmp_block": Case(
        lambda p: patterned(
            jaxsparse.gmp(scope="layer", distribution=jaxsparse.uniform(), **_PRUNED), p, BLOCKS
        ),
        (0.0, 30 / 61, 42 / 61, 42 / 61),
        (2, 4, 6),
    ),
    # Of 11 channels s_i leave 6, 4, 4: 2, 2 (in the order of the tree), 1, 1, then 1 each.
    "granet_channels": Case(
        lambda p: patterned(
            jaxsparse.granet(scope="layer", distribution=jaxsparse.uniform(), **_PRUNED),
            p,
            CHANNELS,
        ),
        (0.0, 1 - 31 / 61, 1 - 20 / 61, 1 - 20 / 61, 1 - 20 / 61, 1 - 20 / 61),
        (2, 4, 6, 8, 10),
    ),
    # Twice as many in the middle of a cycle of 4 steps; after the second one RigL-ITOP's events.
    "east": Case(
        lambda p: jaxsparse.east(cycle_steps=4, multiplier=2.0, cycle_interval=2, **_FIXED),
        (0.7, 0.4, 0.7, 0.4, 0.7, 0.7),
        (2, 4, 6, 8, 10),
        random_start=True,
    ),
    # A third of the way up and down: 1 + (1 - cos 2 pi / 3) = 2.5; from 2 to 4 nothing changes.
    "static_cycles": Case(
        lambda p: jaxsparse.with_cycles(
            jaxsparse.static(sparsity=SPARSITY, total_steps=TOTAL),
            num_cycles=1,
            cycle_steps=6,
            cycle_interval=2,
        ),
        (0.7, 0.25, 0.7),
        (2, 6),
        random_start=True,
    ),
    # 5/4, 3/2, 5/4 and 1 times GraNet-ST's own, which changes at 2, 4 and 6.
    "granet_st_cycles": Case(
        lambda p: jaxsparse.with_cycles(
            jaxsparse.granet_st(initial_sparsity=0.5, **_PRUNED),
            num_cycles=1,
            cycle_steps=4,
            multiplier=1.5,
            shape="triangular",
            cycle_interval=1,
        ),
        (
            0.5,
            1 - 1.25 * 0.5,
            1 - 1.5 * (0.3 + 0.2 * 8 / 27),
            1 - 1.25 * (0.3 + 0.2 * 8 / 27),
            1 - (0.3 + 0.2 / 27),
            0.7,
            0.7,
            0.7,
        ),
        (1, 2, 3, 4, 6, 8, 10),
        scope="together",
        random_start=True,
    ),
    # Of 11 units density .6 leaves 7: blocks 1, 3, 2 and the weight; .3 leaves one each.
    "itop_block_cycles": Case(
        lambda p: jaxsparse.with_cycles(
            patterned(jaxsparse.rigl_itop(distribution=jaxsparse.uniform(), **_FIXED), p, BLOCKS),
            num_cycles=1,
            cycle_steps=4,
            multiplier=2.0,
            cycle_interval=2,
        ),
        (42 / 61, 24 / 61, 42 / 61, 42 / 61, 42 / 61, 42 / 61),
        (2, 4, 6, 8, 10),
        random_start=True,
    ),
    "composed": Case(
        composed,
        (0.4, 0.5, 0.6, 0.7, 0.7, 0.7),
        (2, 4, 6, 8, 10),
        scope="together",
        random_start=True,
        random_events=True,
    ),
}

OPTIMIZERS = {
    "momentum": jaxsparse.masked(optax.sgd(0.1, momentum=0.9)),
    "adamw": jaxsparse.masked(optax.adamw(0.01, weight_decay=0.1)),
    "multi_steps": jaxsparse.masked(
        optax.MultiSteps(
            optax.sgd(0.1, momentum=0.9), every_k_schedule=EVERY
        ).gradient_transformation()
    ),
}


# Rows that differ from another one in an option. What takes long leaves them to `make test-long`.
ALIKE = (
    "static_given gmp_layer gmp_sparse_start gmp_block granet granet_to_the_end granet_layer set "
    "rigl_itop set_itop static_cycles granet_st_cycles itop_block_cycles"
).split()


def alike_are_long(names: Iterable[str]) -> list[Any]:
    """Returns names of rows, those of `ALIKE` marked as long."""
    return [pytest.param(x, marks=pytest.mark.long) if x in ALIKE else x for x in names]


@functools.cache
def method_of(name: str) -> jaxsparse.Method:
    """The method of a row, for the fixed tree; one object each, so that jit's caches serve all."""
    return CASES[name].make(fill(FIXED, 0))


class Step(NamedTuple):
    """What a step of `train` left behind; `old_masks` are those it was taken with."""

    n: int
    params: Any
    opt_state: Any
    masks: Any
    old_masks: Any
    event: jaxsparse.Event | None
    observe_state: Any


def train(
    method: jaxsparse.Method, params: Any, tx: Any, key: jax.Array, after: Step | None = None
) -> Iterator[Step]:
    """Trains on gradients drawn by seed, from the start or after a step; yields every step."""
    if after is None:
        masks = init(method, key, params)
        params = jaxsparse.apply_masks(params, masks)
        done, opt_state, observe_state = 0, tx.init(params), method.observe.init(params)
    else:
        done, params, opt_state, masks, *_, observe_state = after
    for n in range(done + 1, TOTAL + 1):
        grads = fill(params, 1000 + n, jax.tree.leaves(params)[0].dtype)
        signal, observe_state = method.observe.update(grads, observe_state, params)
        due, event, old_masks = method.is_due(n), None, masks
        if not (due and method.skip_step):
            params, opt_state = _optimize(tx, grads, opt_state, params, masks)
        if due:
            event = update(method, params, signal, masks, n, key)
            params, opt_state = _apply_event(tx, event, params, opt_state)
            masks = event.masks
        yield Step(n, params, opt_state, masks, old_masks, event, observe_state)


@functools.partial(jax.jit, static_argnums=0)
def init(method, key, params) -> Any:
    return method.init(key, params)


@functools.partial(jax.jit, static_argnums=0)
def update(method, params, signal, masks, step, key) -> jaxsparse.Event:
    # A gradient may stand for what was observed of it, whatever the method.
    signal = signal if isinstance(signal, Observed) else Observed(signal)
    return method.update(params, signal, masks, step, key=key)


@functools.partial(jax.jit, static_argnums=0)
def _optimize(tx, grads, opt_state, params, masks):
    updates, opt_state = tx.update(grads, opt_state, params, masks=masks)
    return optax.apply_updates(params, updates), opt_state


@functools.partial(jax.jit, static_argnums=0)
def _apply_event(tx, event, params, opt_state):
    return jaxsparse.apply_event(tx, event, params, opt_state)
