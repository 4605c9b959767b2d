"""`with_masks` adds masks to a train state class of a script, which keeps its own fields."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import struct
from flax.training import train_state

import jaxsparse

TOTAL, EVERY = 8, 2
PARAMS = {"kernel": jnp.asarray(np.random.default_rng(0).normal(size=(6, 5)), jnp.float32)}
X = jnp.asarray(np.random.default_rng(1).normal(size=(16, 6)), jnp.float32)


class Plain(train_state.TrainState):
    """A class as in scripts: a key for dropout, and an average that its own step updates."""

    key: jax.Array
    average: Any
    note: str = struct.field(pytree_node=False, default="mine")

    def apply_gradients(self, *, grads, **kwargs):
        state = super().apply_gradients(grads=grads, **kwargs)
        average = optax.incremental_update(state.params, self.average, 0.5)
        return state.replace(average=average)


State = jaxsparse.with_masks(Plain)


def loss(params):
    return jnp.mean((X @ params["kernel"] - X[:, :5]) ** 2)


def make(cls, method, **fields):
    return cls.create(
        apply_fn=None,
        params=PARAMS,
        tx=optax.adam(0.1),
        method=method,
        key=jax.random.key(3),
        **fields,
    )


def run(state, step, steps=TOTAL):
    for n in range(1, steps + 1):
        state = step(state.replace(event=state.method.is_due(n)))
    return state


@jax.jit
def step(state):
    return state.apply_gradients(grads=jax.grad(loss)(state.params))


METHODS = {
    "granet_st": jaxsparse.granet_st(sparsity=0.8, total_steps=TOTAL, update_interval=EVERY),
    "rigl": jaxsparse.rigl(sparsity=0.8, total_steps=TOTAL, update_interval=EVERY),
}


@pytest.mark.parametrize("name", METHODS)
def test_it_trains_as_our_own_state_and_keeps_the_overrides(name):
    method = METHODS[name]
    ours = run(make(jaxsparse.TrainState, method), step)
    theirs = run(make(State, method, average=PARAMS), step)
    for field in ("step", "params", "opt_state", "masks", "event_metrics"):
        chex.assert_trees_all_equal(getattr(theirs, field), getattr(ours, field))
    assert jaxsparse.num_active(theirs.masks) == 6
    jaxsparse.check(theirs.params, theirs.opt_state, theirs.masks)

    last, by_hand = make(State, method, average=PARAMS), PARAMS
    for n in range(1, 4):
        last = step(last.replace(event=method.is_due(n)))
        by_hand = optax.incremental_update(last.params, by_hand, 0.5)
    chex.assert_trees_all_close(last.average, by_hand, rtol=1e-6)
    assert last.note == "mine"


def test_the_event_of_the_state_is_the_event_of_the_argument():
    method = METHODS["rigl"]
    state = run(make(State, method, average=PARAMS), step, EVERY - 1)
    grads = jax.grad(loss)(state.params)
    by_argument = state.apply_gradients(grads=grads, event=True)
    by_state = state.replace(event=True).apply_gradients(grads=grads)
    chex.assert_trees_all_equal(by_state, by_argument)
    assert int(by_state.event_metrics.num_grown.sum()) > 0
    refused = state.replace(event=True).apply_gradients(grads=grads, event=False)
    chex.assert_trees_all_equal(refused.masks, state.masks)


def test_an_event_is_over_when_it_has_happened():
    state = make(State, METHODS["rigl"], average=PARAMS)
    assert state.event is False
    after = step(state.replace(event=True))
    assert after.event is False
    chex.assert_trees_all_equal(step(after).masks, after.masks)


def test_there_are_two_compiled_steps_and_no_more():
    traced = []

    @jax.jit
    def counted(state):
        traced.append(state.event)
        return step.__wrapped__(state)

    run(make(State, METHODS["granet_st"], average=PARAMS), counted)
    assert sorted(traced) == [False, True]


def test_it_is_still_the_scripts_class():
    assert issubclass(State, Plain)
    assert issubclass(State, jaxsparse.TrainState)
    same = ("__name__", "__qualname__", "__module__", "__doc__")
    assert [getattr(State, x) for x in same] == [getattr(Plain, x) for x in same]
    assert not issubclass(Plain, jaxsparse.TrainState)


def test_classes_that_need_nothing_new():
    assert jaxsparse.with_masks(train_state.TrainState) is jaxsparse.TrainState
    assert jaxsparse.with_masks(jaxsparse.TrainState) is jaxsparse.TrainState
    assert jaxsparse.with_masks(State) is State


@pytest.mark.parametrize("other", [dict, train_state, lambda: None], ids=["class", "module", "fn"])
def test_other_things_are_refused(other):
    with pytest.raises(TypeError, match=r"takes a subclass of flax.training.train_state.TrainStat"):
        jaxsparse.with_masks(other)


@pytest.mark.parametrize(
    ("name", "annotation", "default"),
    [
        ("method", str, "adam"),
        ("masks", Any, None),
        ("event", int, 0),
        ("explored", Any, struct.field()),
        ("key", Any, struct.field(pytree_node=False, default=None)),
        ("event_metrics", None, property(lambda self: {})),
    ],
)
def test_names_that_are_taken(name, annotation, default):
    body = {name: default} | ({"__annotations__": {name: annotation}} if annotation else {})
    own = type("Own", (train_state.TrainState,), body)
    with pytest.raises(TypeError, match=f"with_masks: Own.{name} has the name of a field that it"):
        jaxsparse.with_masks(own)


def test_a_step_that_goes_around_it_is_told_what_is_missing():
    class Own(train_state.TrainState):
        def apply_gradients(self, *, grads, **kwargs):
            updates, _ = self.tx.update(grads, self.opt_state, self.params)
            return self.replace(params=optax.apply_updates(self.params, updates))

    state = make(jaxsparse.with_masks(Own), METHODS["rigl"])
    with pytest.raises(TypeError, match="needs masks="):
        state.apply_gradients(grads=PARAMS)
