"""RigL, SET, SNFS and their ITOP forms: events by hand, keys, averages, wrong input."""

from fractions import Fraction

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsparse

ALL = ((r".", True),)
OPTIONS = {"sparsity": 0.5, "total_steps": 100, "update_interval": 25}

# Position        0    1    2     3    4     5    6     7
W = {"w": jnp.array([1.0, -0.8, 0.6, -0.4, 0.2, 0.0, 0.0, 0.0])}
G = {"w": jnp.array([9.0, -9.0, 0.1, 0.3, -0.05, 0.2, -0.4, 0.01])}
MASKS = {"w": jnp.array([True] * 5 + [False] * 3)}


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize(
    ("method", "masks", "kept", "values"),
    [
        (
            # ceil(.5 * 5) = 3: drops 2 3 4, grows 6 3 5; 3 was never gone
            jaxsparse.rigl_itop(
                sparsity=0.375, total_steps=9, update_interval=1, final_drop_fraction=0.5,
                prunable=ALL,
            ),
            [1, 1, 0, 1, 0, 1, 1, 0],
            [1, 1, 0, 1, 0, 0, 0, 0],
            [1.0, -0.8, 0.0, -0.4, 0.0, 0.0, 0.0, 0.0],
        ),
        (
            # floor(.5 * 5) = 2: drops 3 4, grows 6 3. r = .5 at half of T_end with alpha 1.
            jaxsparse.rigl(
                sparsity=0.375, total_steps=9, update_interval=1, stop_step=2, drop_fraction=1.0,
                prunable=ALL,
            ),
            [1, 1, 1, 1, 0, 0, 1, 0],
            [1, 1, 1, 1, 0, 0, 0, 0],
            [1.0, -0.8, 0.6, -0.4, 0.0, 0.0, 0.0, 0.0],
        ),
    ],
    ids=["ceil", "floor"],
)  # fmt: skip
def test_event(method, masks, kept, values, jit):
    event = (jax.jit if jit else lambda f: f)(method.update)(W, G, MASKS, 1)
    np.testing.assert_array_equal(event.masks["w"], np.array(masks, bool))
    np.testing.assert_array_equal(event.kept["w"], np.array(kept, bool))
    tx = jaxsparse.masked(optax.sgd(0.1))
    params, _ = jaxsparse.apply_event(tx, event, W, tx.init(W))
    np.testing.assert_array_equal(params["w"], np.array(values, np.float32))


# Evci et al. 2020, section 3: alpha / 2 (1 + cos(pi t / T_end)) with alpha .3 and T_end 75 is .225
# and .075; at T_end and after it there is no update.
def test_rigl_timetable():
    method = jaxsparse.rigl(**OPTIONS)
    assert [(e.step, e.drop_fraction) for e in method.timetable.events] == [
        (25, Fraction(9, 40)),
        (50, Fraction(3, 40)),
    ]
    assert [n for n in range(102) if method.is_due(n)] == [25, 50]


def test_itop_explores_to_the_end():
    method = jaxsparse.rigl_itop(**OPTIONS)
    shares = {e.step: float(e.drop_fraction) for e in method.timetable.events}
    # From .5 to .005, without the last step, where what is grown could not train.
    assert shares == pytest.approx({25: 0.427509, 50: 0.2525, 75: 0.077491}, abs=1e-6)


def test_names_and_published_defaults():
    steps = 20_000
    rigl, set_, snfs, rigl_itop, set_itop = methods = [
        factory(sparsity=0.9, total_steps=steps)
        for factory in (
            jaxsparse.rigl,
            jaxsparse.set_,
            jaxsparse.snfs,
            jaxsparse.rigl_itop,
            jaxsparse.set_itop,
        )
    ]
    assert [m.name for m in methods] == ["rigl", "set", "snfs", "rigl_itop", "set_itop"]
    assert [m.timetable.events[0].step for m in methods] == [100, 100, 100, 4000, 1500]
    assert [m.timetable.events[-1].step for m in methods] == [14_900] * 3 + [16_000, 19_500]
    assert [m.skip_step for m in methods] == [True, True, True, False, False]


# At an event RigL leaves the optimizer step out, or not, as asked.
@pytest.mark.parametrize(("skip_step", "survivor"), [(True, 1.0), (False, 0.9)])
def test_rigl_skips_the_step(skip_step, survivor, key):
    method = jaxsparse.rigl(**OPTIONS | {"update_interval": 1}, skip_step=skip_step, prunable=ALL)
    state = jaxsparse.TrainState.create(
        apply_fn=None, params=W, tx=optax.sgd(0.1), method=method, key=key, masks=MASKS
    )
    state = state.apply_gradients(grads={"w": jnp.ones(8)}, event=method.is_due(1))
    assert state.params["w"][0] == pytest.approx(survivor)
    assert state.step == 1


# SNFS (Dettmers and Zettlemoyer 2019): m <- .9 m + .1 g at every step, and the largest |m| comes,
# not the largest |g|.
def test_snfs_grows_by_the_average():
    method = jaxsparse.snfs(**OPTIONS | {"update_interval": 2, "drop_fraction": 0.4}, prunable=ALL)
    first = {"w": jnp.array([0.0, 0.0, 0.0, 0.0, 0.0, -10.0, 2.0, 0.0])}
    second = {"w": jnp.array([0.0, 0.0, 0.0, 0.0, 0.0, 4.0, 3.0, -1.0])}
    m, state = method.observe.update(first, method.observe.init(W))
    np.testing.assert_allclose(m.signal["w"], 0.1 * first["w"], rtol=1e-6)
    m, state = method.observe.update(second, state)
    #                    .9 * -1 + .1 * 4,  .9 * .2 + .1 * 3,  .1 * -1
    np.testing.assert_allclose(m.signal["w"][5:], [-0.5, 0.48, -0.1], rtol=1e-6)
    event = method.update(W, m, MASKS, 2)  # floor(.4 * 5) = 1, a little less than .4: drops 4
    assert event.masks["w"].tolist() == [True] * 4 + [False, True, False, False]


def test_snfs_momentum_is_a_choice():
    observe = jaxsparse.snfs(**OPTIONS, momentum=0.0).observe
    g, _ = observe.update(G, observe.init(W))
    chex.assert_trees_all_close(g.signal, G)
    for momentum in (1.0, -0.1, float("nan")):
        with pytest.raises(ValueError, match=f"momentum {momentum} must be at least 0 and below 1"):
            jaxsparse.snfs(**OPTIONS, momentum=momentum)


# SET grows an exact number at random, the same with the same key.
@pytest.mark.parametrize(
    ("factory", "replaced"),
    [(jaxsparse.set_, 11), (jaxsparse.set_itop, 22)],  # floor(.225 * 50), ceil(.427509 * 50)
)
def test_random_growth(factory, replaced, key):
    method = factory(**OPTIONS, prunable=ALL)
    # Active weights 51, ..., 100: the first ones are dropped. Gradients would choose the last.
    w = {"w": jnp.where(jnp.arange(100) < 50, 51.0 + jnp.arange(100), 0.0)}
    masks = {"w": jnp.arange(100) < 50}
    update = jax.jit(method.update)
    first = update(w, {"w": jnp.arange(100.0)}, masks, 25, key=key)
    chex.assert_trees_all_equal(first, update(w, w, masks, 25, key=key))  # the gradient has no say
    assert first.masks["w"][replaced:50].all()
    assert first.masks["w"].sum() == 50
    others = [update(w, w, masks, 50, key=key), update(w, w, masks, 25, key=jax.random.key(1))]
    assert all((first.masks["w"][50:] != other.masks["w"][50:]).any() for other in others)


@pytest.mark.parametrize("factory", [jaxsparse.set_, jaxsparse.set_itop])
def test_random_growth_needs_a_key(factory):
    method = factory(**OPTIONS, prunable=ALL)
    with pytest.raises(ValueError, match=r"needs a key: call method.update\(..., key=key\)"):
        method.update(W, G, MASKS, 25)


# R_s of Liu et al. 2021 (ITOP): the union of 1100, 0110, 0011 is 3/4, then all of it.
def test_itop_rate():
    masks = [{"kernel": jnp.array([[c == "1" for c in m]])} for m in ("1100", "0110", "0011")]
    explored, rates = masks[0], [0.5]
    for after in masks[1:]:
        explored = jaxsparse.explore(explored, after)
        rates.append(float(jaxsparse.exploration_rate(explored)))
    assert rates == [0.5, 0.75, 1.0]


DYNAMIC = [jaxsparse.rigl, jaxsparse.set_, jaxsparse.snfs, jaxsparse.rigl_itop, jaxsparse.set_itop]


@pytest.mark.parametrize("factory", DYNAMIC)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sparsity": 1.0}, "sparsity 1.0 must be at least 0 and below 1"),
        ({"sparsity": -0.1}, "sparsity -0.1 must be at least 0"),
        ({"sparsity": float("nan")}, "sparsity nan must be at least 0"),
        ({"total_steps": 0}, "total_steps 0 must be a whole number of steps"),
        ({"update_interval": 2.5}, "update_interval 2.5 must be a whole number of steps"),
        ({"drop_fraction": 1.1}, r"drop_fraction 1.1 must be in \[0, 1\]"),
        ({"drop_fraction": -0.1}, "drop_fraction -0.1"),
        ({"drop_fraction": float("nan")}, "drop_fraction nan"),
        ({"start_step": -1}, "start_step -1 and stop_step .* must satisfy 0 <= start_step"),
        ({"start_step": 100}, "start_step 100 and stop_step .* must satisfy"),
    ],
)
def test_out_of_range(factory, options, message):
    with pytest.raises(ValueError, match=message):
        factory(**OPTIONS | options)


@pytest.mark.parametrize(
    ("window", "message"),
    [
        ({"stop_step": 0}, "stop_step 0 must be a whole number of steps, at least 1"),
        ({"stop_step": 101}, "stop_step 101 must satisfy .* <= total_steps 100"),
        ({"start_step": 60, "stop_step": 60}, "start_step 60 and stop_step 60 must satisfy"),
        ({"start_step": 80}, "start_step 80 and stop_step 75 must satisfy"),
    ],
)
def test_rigl_window(window, message):
    with pytest.raises(ValueError, match=message):
        jaxsparse.rigl(**OPTIONS, **window)


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_final_drop_fraction_out_of_range(value):
    with pytest.raises(ValueError, match=rf"final_drop_fraction {value} must be in \[0, 1\]"):
        jaxsparse.rigl_itop(**OPTIONS, final_drop_fraction=value)
