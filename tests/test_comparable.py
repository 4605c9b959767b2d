"""Objects made of equal parts are equal: functions, methods, optimizers, train states."""

import chex
import jax
import jax.numpy as jnp
import optax
import pytest

import jaxsparse
from jaxsparse.comparable import comparable

RUN = {"sparsity": 0.8, "total_steps": 400, "update_interval": 20}
PARAMS = {"a": {"kernel": jnp.ones((8, 8)), "bias": jnp.ones(8)}, "b": {"kernel": jnp.ones((8, 4))}}
MASKS = jaxsparse.dense_masks(PARAMS)
TX = optax.adam(1e-3)
AXES = lambda: {"a/kernel": jaxsparse.KernelAxes((0,), (1,))}


def movement(w, g, key):
    return -w * g


# Each makes an equal object at every call, from new arguments.
MADE = {
    "dense": lambda: jaxsparse.dense(total_steps=9),
    "static": lambda: jaxsparse.static(sparsity=0.5, total_steps=9),
    "static with masks": lambda: jaxsparse.static(masks=MASKS, total_steps=9),
    "gmp": lambda: jaxsparse.gmp(**RUN, score=movement),
    "granet": lambda: jaxsparse.granet(**RUN),
    "granet_st": lambda: jaxsparse.granet_st(**RUN),
    "rigl": lambda: jaxsparse.rigl(**RUN, prunable=[("kernel", True)]),
    "rigl with a distribution": lambda: jaxsparse.rigl(
        **RUN,
        distribution=jaxsparse.stacked(
            jaxsparse.with_overrides(jaxsparse.erk(power=0.5), {"b": 0.5}), {"a": 1}
        ),
    ),
    "set": lambda: jaxsparse.set_(**RUN),
    "snfs": lambda: jaxsparse.snfs(**RUN, momentum=0.8),
    "set_itop": lambda: jaxsparse.set_itop(**RUN),
    "east": lambda: jaxsparse.east(**RUN, cycle_interval=5),
    "cycles": lambda: jaxsparse.with_cycles(
        jaxsparse.granet(**RUN), num_cycles=1, cycle_interval=5
    ),
    "2:4": lambda: jaxsparse.with_pattern(jaxsparse.rigl(**RUN), jaxsparse.n_of_m(2, 4)),
    "rules": lambda: jaxsparse.with_pattern(
        jaxsparse.rigl(**RUN),
        [("a", jaxsparse.block(4, 2)), ("b", jaxsparse.channels("inputs", axes=AXES()))],
    ),
    "axes": lambda: jaxsparse.rigl(**RUN, distribution=jaxsparse.erk(axes=AXES())),
    "masked": lambda: jaxsparse.masked(TX),
    "sparse optimizer": lambda: jaxsparse.sparse_optimizer(jaxsparse.rigl(**RUN), TX),
}


@pytest.mark.parametrize("name", MADE)
def test_equal_arguments_make_equal_objects(name):
    one, other = MADE[name](), MADE[name]()
    assert one == other and hash(one) == hash(other)
    rest = [make() for key, make in MADE.items() if key != name]
    assert one not in rest


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (jaxsparse.rigl(**RUN), jaxsparse.rigl(**RUN | {"sparsity": 0.7})),
        (jaxsparse.rigl(**RUN), jaxsparse.rigl(**RUN, drop=movement)),
        (jaxsparse.rigl(**RUN), jaxsparse.rigl(**RUN, drop_fraction=0.2)),
        (jaxsparse.rigl(**RUN), jaxsparse.rigl(**RUN, skip_step=False)),
        (jaxsparse.rigl(**RUN), jaxsparse.rigl(**RUN, distribution=jaxsparse.uniform())),
        (jaxsparse.snfs(**RUN), jaxsparse.snfs(**RUN, momentum=0.8)),
        (jaxsparse.masked(TX), jaxsparse.masked(optax.adam(1e-3))),
        (
            jaxsparse.static(masks=MASKS, total_steps=9),
            jaxsparse.static(masks=jaxsparse.dense_masks(PARAMS), total_steps=9),
        ),
    ],
)
def test_other_arguments_make_other_objects(one, other):
    assert one != other


def test_a_factory_that_hands_on_anothers_function_leaves_it_as_it_is():
    inner = comparable(lambda n: lambda x: x + n)
    outer = comparable(lambda n: inner(2 * n))
    assert outer(1) == inner(2) and outer(1)(1) == 3


def test_what_errors_print_is_one_line():
    method = jaxsparse.rigl(sparsity=0.9, total_steps=32_000)
    assert repr(method) == "Method(rigl, 239 events in 32,000 steps)"
    assert repr(method.timetable) == "Timetable(239 events in 32,000 steps)"
    for x in (method, method.recipe, method.update, jaxsparse.masked(TX)):
        assert len(repr(x)) < 400 and "\n" not in repr(x)


def test_equal_methods_share_what_is_compiled():
    one, other = MADE["rigl"](), MADE["rigl"]()
    assert one.update.function is other.update.function


def make(seed, tx=TX):
    return jaxsparse.TrainState.create(
        apply_fn=None,
        params=PARAMS,
        tx=tx,
        method=jaxsparse.rigl(**RUN),
        key=jax.random.key(seed),
    )


def train_step(state, event):
    grads = jax.tree.map(jnp.cos, state.params)
    return state.apply_gradients(grads=grads, event=event)


def test_states_of_the_same_parts_stack_and_are_compiled_once():
    """Seeds under vmap, and one compiled step per kind for all of them."""
    step = jax.jit(chex.assert_max_traces(train_step, n=2), static_argnums=1)
    states = [make(seed) for seed in range(3)]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *states)
    together = jax.jit(jax.vmap(train_step, in_axes=(0, None)), static_argnums=1)
    for event in (False, True, False):
        states = [step(state, event) for state in states]
        stacked = together(stacked, event)
    for i, state in enumerate(states):
        chex.assert_trees_all_close(
            jax.tree.map(lambda x, i=i: x[i], stacked.params), state.params, rtol=1e-6
        )
        chex.assert_trees_all_equal(jax.tree.map(lambda x, i=i: x[i], stacked.masks), state.masks)


def test_seeds_start_under_vmap():
    """Seeds drawn together have the masks that each has alone, and one step trains all of them."""

    def create(key):
        return jaxsparse.TrainState.create(
            apply_fn=None, params=PARAMS, tx=TX, method=jaxsparse.set_(**RUN), key=key
        )

    keys = jax.random.split(jax.random.key(1), 3)
    states = jax.jit(jax.vmap(create))(keys)
    step = jax.jit(jax.vmap(train_step, in_axes=(0, None)), static_argnums=1)
    after = step(states, True)
    for i in range(3):
        alone = create(keys[i])
        for together, one in ((states, alone), (after, train_step(alone, True))):
            ith = jax.tree.map(lambda x, i=i: x[i], together.masks)
            chex.assert_trees_all_equal(ith, one.masks)
