"""Weights that move between layers: exact sums, the shares by hand, room, what is refused."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxsparse
from jaxsparse.redistribution import shared_out
from jaxsparse.sparse.states import count_active
from jaxsparse.types import Observed

pytestmark = pytest.mark.variants  # our own code, which knows little of versions

ALL = ((r".", True),)
RUN = {"sparsity": 0.8, "total_steps": 40, "update_interval": 4, "drop_fraction": 0.5}


@settings(deadline=None, max_examples=40, derandomize=True)
@given(st.data())
def test_shares_add_up_and_fit(data):
    room = np.array(data.draw(st.lists(st.integers(0, 3_000_000), min_size=4, max_size=4)))
    worth = np.array(
        data.draw(st.lists(st.sampled_from([0.0, 1e-12, 0.5, 7.0]), min_size=4, max_size=4))
    )
    total = data.draw(st.integers(0, int(room.sum())))
    found = np.asarray(_shared_out(total, worth.astype(np.float32), room))
    assert found.sum() == total
    assert (found >= 0).all() and (found <= room).all()
    wanted = total * worth / max(worth.sum(), 1e-30)
    if worth.any() and (wanted <= room).all():
        np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=len(room))


_shared_out = jax.jit(shared_out)


def test_what_has_no_room_goes_to_the_others_by_their_worth():
    found = shared_out(100, jnp.array([6.0, 3.0, 1.0]), jnp.array([20, 1000, 1000]))
    np.testing.assert_array_equal(found, [20, 60, 20])  # 80 by 3 to 1


def test_counts_that_float32_does_not_hold_add_up():
    room = jnp.array([2**30, 2**30 - 1])
    found = shared_out(2**30 + 3, jnp.array([1.0, 2.0]), room)
    assert int(found.sum()) == 2**30 + 3


def test_event_by_hand():
    """Half of 4 and of 4 are dropped; means of 3 and 1 share 4 grown weights as 3 and 1."""
    params = {
        "a": jnp.array([4.0, 3, 2, 1, 0, 0, 0, 0]),
        "b": jnp.array([1.0, 2, 3, 4, 0, 0, 0, 0]),
    }
    masks = {path: leaf != 0 for path, leaf in params.items()}
    grads = {
        "a": jnp.array([3.0, 3, 3, 3, 9, 8, 7, 0]),
        "b": jnp.array([1.0, -1, 1, 1, 0, 0, 5, -6]),
    }
    stage = jaxsparse.redistribute(rounding="floor")
    timetable = jaxsparse.make_timetable(
        total_steps=10, update_interval=1, initial_density=0.5, drop_fraction=lambda step: 0.5
    )
    method = jaxsparse.compose("moving", [stage], timetable, prunable=ALL)
    event = method.update(params, grads, masks, 1)
    np.testing.assert_array_equal(event.masks["a"], np.array([1, 1, 0, 0, 1, 1, 1, 0], bool))
    np.testing.assert_array_equal(event.masks["b"], np.array([0, 0, 1, 1, 0, 0, 0, 1], bool))


NETWORK = {
    "embed": np.zeros((50, 8)), "dense": np.zeros((8, 40)), "head": np.zeros((40, 6)),
}  # fmt: skip


def _params(dtype=jnp.float32, seed=0):
    rng = np.random.default_rng(seed)
    return {p: jnp.asarray(rng.normal(size=x.shape), dtype) for p, x in NETWORK.items()}


@pytest.mark.parametrize(("dtype", "min_keep"), [(jnp.float32, None), (jnp.bfloat16, 30)])
def test_training_keeps_the_sum_and_moves_weights(dtype, min_keep):
    """A step of training for every event; the layer with the largest gradients gains."""
    params = _params(dtype)
    dense = jaxsparse.with_overrides(jaxsparse.uniform(), {"embed": 0.0})
    method = jaxsparse.snfs(
        **RUN, distribution=dense, redistribute=True, min_keep=min_keep, prunable=ALL,
        stop_step=40,
    )  # fmt: skip
    state = jaxsparse.TrainState.create(
        apply_fn=lambda: None, params=params, tx=optax.sgd(0.01), method=method,
        key=jax.random.key(1),
    )  # fmt: skip
    start = count_active(state.masks, ALL)
    step = jax.jit(lambda state, grads, event: state.apply_gradients(grads=grads, event=event),
                   static_argnames="event")  # fmt: skip
    scale = {"embed": 1.0, "dense": 0.01, "head": 1.0}
    for number in range(1, 41):
        grads = _params(dtype, seed=number)
        grads = {path: scale[path] * leaf for path, leaf in grads.items()}
        state = step(state, grads=grads, event=method.is_due(number))
        found = count_active(state.masks, ALL)
        assert sum(found.values()) == sum(start.values())
        assert found["embed"] == start["embed"] == 400  # a dense layer stays dense
        assert found["dense"] >= (min_keep or 1)
        assert found["head"] < 240
    assert found["head"] > start["head"]
    assert found["dense"] < start["dense"]
    jaxsparse.check(state.params, state.opt_state, state.masks)


def test_an_event_equals_its_slow_form():
    """Shares and choices in NumPy, sorted."""
    params, grads = _params(), _params(seed=5)
    method = jaxsparse.snfs(**RUN, redistribute=True, prunable=ALL, momentum=0.0)
    masks = method.init(jax.random.key(0), params)
    params = jaxsparse.apply_masks(params, masks)
    observed, _ = method.observe.update(grads, method.observe.init(params), params)
    event = method.update(params, observed, masks, 4)
    fraction = 0.5 * 0.5 * (1 + np.cos(np.pi * 4 / 30))
    n = {p: int(fraction * m.sum()) for p, m in masks.items()}
    means = {p: np.abs(np.asarray(grads[p]))[np.asarray(m)].mean() for p, m in masks.items()}
    counts = count_active(event.masks, ALL)
    for path, mask in masks.items():
        wanted = int(mask.sum()) - n[path] + sum(n.values()) * means[path] / sum(means.values())
        assert abs(counts[path] - wanted) < len(masks), path
        w, g = np.abs(np.asarray(params[path])).ravel(), np.abs(np.asarray(grads[path])).ravel()
        active = np.flatnonzero(np.asarray(mask).ravel())
        stay = active[np.argsort(-w[active])][: len(active) - n[path]]
        others = np.setdiff1d(np.arange(w.size), stay)
        grow = others[np.argsort(-g[others])][: counts[path] - len(stay)]
        slow = np.zeros(w.size, bool)
        slow[stay] = slow[grow] = True
        np.testing.assert_array_equal(np.asarray(event.masks[path]).ravel(), slow)


def test_plan_and_equality():
    """The sum is known, layers are estimates; equal arguments make equal methods."""
    method = jaxsparse.snfs(**RUN, redistribute=True)
    assert not method.has_known_counts and jaxsparse.snfs(**RUN).has_known_counts
    plan = method.plan({"a": {"kernel": jnp.zeros((30, 40))}, "b": {"kernel": jnp.zeros((40, 30))}})
    assert plan.layers_are_estimates
    assert {row.num_active for row in plan.rows} == {480}
    assert method == jaxsparse.snfs(**RUN, redistribute=True)
    assert method != jaxsparse.snfs(**RUN)


def test_all_masks_are_fine_without_a_gradient():
    """Gradients of 0 give no layer a share: the first ones with room take what was dropped."""
    params = _params()
    method = jaxsparse.snfs(**RUN, redistribute=True, prunable=ALL)
    masks = method.init(jax.random.key(0), params)
    zeros = Observed(jax.tree.map(jnp.zeros_like, params))
    event = method.update(params, zeros, masks, 4)
    chex.assert_trees_all_equal_shapes(event.masks, masks)
    assert sum(count_active(event.masks, ALL).values()) == sum(count_active(masks, ALL).values())


def test_patterns_are_refused():
    method = jaxsparse.snfs(**RUN, redistribute=True)
    params = {"a": {"kernel": jnp.zeros((16, 16))}}
    for pattern in (jaxsparse.block((4, 4)), jaxsparse.n_of_m(2, 4)):
        patterned = jaxsparse.with_pattern(method, pattern)
        with pytest.raises(ValueError, match="a/kernel is .* redistribute moves single weights"):
            patterned.init(jax.random.key(0), params)


def test_rounding_is_a_choice_of_two():
    with pytest.raises(ValueError, match="rounding 'round' must be 'floor' or 'ceil'"):
        jaxsparse.redistribute(rounding="round")
