"""GSM: which weights the gradient reaches, what becomes of the others, what the prune removes."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

import jaxsparse
from jaxsparse.gsm import active_masks
from tests.trees import FIXED, NUM_WEIGHTS, fill, others, prunable


def chain(density, *, learning_rate=0.1, momentum=0.9, decay=0.01, **options):
    return optax.chain(
        jaxsparse.gsm(density, **options),
        optax.add_decayed_weights(decay),
        optax.sgd(learning_rate, momentum=momentum),
    )


def update(density, grads, params):
    return jaxsparse.gsm(density).update(grads, optax.EmptyState(), params)


def train(tx, params, gradient_at, steps):
    """Params after so many steps; `gradient_at` gives the gradient of step 0, 1, ..."""

    @jax.jit
    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    for n in range(steps):
        params, state = step(params, state, gradient_at(n))
    return params


def test_three_steps_by_hand():
    """Mask, decay, momentum: rate 1, decay 1/2, momentum 1/2, one of two weights active.

    step  w            |w g|       active  z = z/2 + w/2 + B g             w - z
    1     (4, 2)       (4, 6)      second  (2, 1 + 3)       = (2, 4)       (2, -2)
    2     (2, -2)      (2, 6)      second  (1 + 1, 2 - 1 + 3) = (2, 4)     (0, -6)
    3     (0, -6)      (0, 18)     second  (1 + 0, 2 - 3 + 3) = (1, 2)     (-1, -8)
    """
    tx = chain(0.5, learning_rate=1.0, momentum=0.5, decay=0.5)
    params, grads = {"kernel": jnp.array([[4.0, 2.0]])}, {"kernel": jnp.array([[1.0, 3.0]])}
    for steps, expected in enumerate([[4, 2], [2, -2], [0, -6], [-1, -8]]):
        found = train(tx, params, lambda n: grads, steps)
        np.testing.assert_array_equal(found["kernel"][0], expected)


def test_a_passive_weight_follows_the_closed_form():
    """Of w' = w - lr z with z' = mu z + lambda w, from the roots of its recurrence in float64."""
    rate, momentum, decay, steps = 0.1, 0.9, 0.01, 200
    start = fill(FIXED, 0)
    params = train(chain(0.1), start, lambda n: jax.tree.map(jnp.zeros_like, start), steps)
    # w_(n+1) = (1 + mu - lr lambda) w_n - mu w_(n-1), and w_1 = (1 - lr lambda) w_0
    first, second = np.roots([1.0, -(1 + momentum - rate * decay), momentum])
    share = (1 - rate * decay - second) / (first - second)
    factor = share * first**steps + (1 - share) * second**steps
    for before, after in zip(*map(jax.tree.leaves, (start, params)), strict=True):
        np.testing.assert_allclose(after, factor * before, rtol=1e-4)
    told = jaxsparse.gsm_preflight(
        rate, weight_decay=decay, momentum=momentum, total_steps=steps, enough=0.2
    )
    assert told.factor == pytest.approx(np.exp(-2.0))
    assert factor == pytest.approx(told.factor, rel=0.12)  # the formula forgets the first steps


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("density", [0.02, 0.5])
def test_the_active_weights_are_the_best_of_a_sort(density, dtype):
    params, grads = fill(FIXED, 0, dtype), fill(FIXED, 1, dtype)
    active = jax.jit(active_masks, static_argnums=2)(params, grads, density)
    scores = np.concatenate(
        [
            np.abs(w.astype(np.float64) * g.astype(np.float64)).ravel()
            for w, g in zip(prunable(params), prunable(grads), strict=True)
        ]
    )
    chosen = np.concatenate([mask.ravel() for mask in prunable(active)])
    count = int(density * NUM_WEIGHTS)
    assert chosen.sum() == count
    assert scores[chosen].min() >= scores[~chosen].max()
    assert all(mask.all() for mask in others(active))
    updates, _ = update(density, grads, params)
    chex.assert_trees_all_equal(updates, jaxsparse.apply_masks(grads, active))


def test_ties_are_cut_to_the_exact_count():
    ones = jax.tree.map(lambda x: jnp.ones(x.shape), FIXED)
    for density in (0.05, 0.3, 0.7):
        active = active_masks(ones, ones, density)
        assert jaxsparse.num_active(active) == int(density * NUM_WEIGHTS)
    assert jaxsparse.num_active(active_masks(*[{"kernel": jnp.ones((10, 10))}] * 2, 0.29)) == 29


def test_density_1_is_plain_sgd_to_the_bit():
    plain = optax.chain(optax.add_decayed_weights(0.01), optax.sgd(0.1, momentum=0.9))
    found, expected = (
        train(tx, fill(FIXED, 0), lambda n: fill(FIXED, n), 5) for tx in (chain(1.0), plain)
    )
    chex.assert_trees_all_equal(found, expected)


def test_the_prune_at_the_end_removes_only_what_lies_below_the_gap():
    """A loss with its minimum off 0: the active weights stay there, the others come to nothing."""
    target = jax.tree.map(jnp.sign, fill(FIXED, 3))
    params = fill(FIXED, 0)
    tx, gradient = chain(0.2), jax.grad(lambda p: optax.tree.norm(optax.tree.sub(p, target), True))
    state = tx.init(params)

    @jax.jit
    def step(carry, _):
        params, state = carry
        updates, state = tx.update(gradient(params), state, params)
        return (optax.apply_updates(params, updates), state), active_masks(
            params, gradient(params), 0.2
        )

    (params, _), active = jax.lax.scan(step, (params, state), length=2000)
    last = jax.tree.map(lambda m: m[-1], active)
    weights = np.concatenate([np.abs(w).ravel() for w in prunable(params)])
    passive = ~np.concatenate([m.ravel() for m in prunable(last)])
    low, high = weights[passive].max(), weights[~passive].min()
    assert low < 1e-3 < 0.5 < high
    masks = jaxsparse.magnitude_masks(params, sparsity=0.8)
    kept = np.concatenate([m.ravel() for m in prunable(masks)])
    assert weights[~kept].max() <= low and not (~kept & ~passive).any()
    # 0.2 * 61 is 12.2: 12 are active, and a sparsity of 0.8 keeps 13.
    assert kept.sum() == (~passive).sum() + 1 == 13


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_a_gradient_that_is_not_finite_passes_as_it_is(bad):
    params, grads = fill(FIXED, 0), fill(FIXED, 1)
    grads["conv"]["bias"] = grads["conv"]["bias"].at[0].set(bad)
    updates, _ = update(0.1, grads, params)
    chex.assert_trees_all_equal(updates, grads)
    tx = optax.apply_if_finite(chain(0.1), max_consecutive_errors=3)
    updates, _ = tx.update(grads, tx.init(params), params)
    assert not any(u.any() for u in jax.tree.leaves(updates))


def test_frozen_leaves_and_rules_do_not_count():
    params, grads = fill(FIXED, 0), fill(FIXED, 1)
    frozen = {"conv": "off", "norm": "on", "blocks": "on", "pair": "on"}
    tx = optax.partition({"on": chain(0.25), "off": optax.set_to_zero()}, frozen)
    assert jaxsparse.frozen_paths(tx, params) == ["conv/bias", "conv/kernel"]
    updates, _ = tx.update(grads, tx.init(params), params)
    assert not updates["conv"]["kernel"].any()
    rest = {name: tree for name, tree in params.items() if name != "conv"}
    own = chain(0.25)
    expected, _ = own.update({n: grads[n] for n in rest}, own.init(rest), rest)
    chex.assert_trees_all_equal({name: updates[name] for name in rest}, expected)
    active = active_masks(params, grads, 0.25, prunable=((r"^conv/", False), (r"", None)))
    assert active["conv"]["kernel"].all()
    assert sum(m.sum() for m in prunable(active)) == 24 + int(0.25 * (NUM_WEIGHTS - 24))


def test_eight_devices_choose_as_one_does():
    mesh = jax.make_mesh((8,), ("x",))
    draw = lambda seed: {
        name: {"kernel": jnp.round(fill(jax.ShapeDtypeStruct(s, jnp.float32), seed), 1)}
        for name, s in {"a": (64, 32), "b": (8, 16)}.items()
    }
    place = lambda tree: jax.device_put(tree, NamedSharding(mesh, PartitionSpec(None, "x")))
    of = jax.jit(active_masks, static_argnums=2)
    one, eight = of(draw(0), draw(1), 0.1), of(place(draw(0)), place(draw(1)), 0.1)
    chex.assert_trees_all_equal(jax.device_get(one), jax.device_get(eight))
    assert jaxsparse.num_active(eight) == 217  # of 2,176


def test_nnx_models_and_train_states():
    model = nnx.Linear(4, 5, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, chain(0.2), wrt=nnx.Param)
    grads = jax.tree.map(jnp.ones_like, nnx.state(model, nnx.Param))
    before = jnp.array(model.kernel[...])
    optimizer.update(model, grads)
    moved = np.abs(np.asarray(model.kernel[...] - before)) > 0.05  # decay moves the others by less
    assert moved.sum() == 4
    state = jaxsparse.TrainState.create(
        apply_fn=None,
        params={"kernel": before},
        tx=chain(0.2),
        method=jaxsparse.dense(total_steps=1),
        key=jax.random.key(0),
    )
    state = state.apply_gradients(grads={"kernel": jnp.ones((4, 5))})
    np.testing.assert_array_equal(np.abs(np.asarray(state.params["kernel"] - before)) > 0.05, moved)


def test_equal_arguments_make_equal_transformations():
    assert jaxsparse.gsm(0.1) == jaxsparse.gsm(0.1) != jaxsparse.gsm(0.2)


def test_the_preflight_adds_up_the_rates_of_the_schedule():
    schedule = optax.piecewise_constant_schedule(0.1, {60: 0.1})
    options = {"weight_decay": 0.05, "momentum": 0.9, "total_steps": 100}
    told = jaxsparse.gsm_preflight(schedule, **options, enough=0.05)
    assert told.exponent == pytest.approx(0.05 * (60 * 0.1 + 40 * 0.01) / 0.1, rel=1e-5)
    assert told.is_long_enough and "should" not in str(told)
    late = jaxsparse.gsm_preflight(schedule, **options, start_step=20, enough=0.5)
    assert late.exponent == pytest.approx(0.05 * (40 * 0.1 + 40 * 0.01) / 0.1, rel=1e-5)
    with pytest.warns(UserWarning, match=r"100 steps .* to 0.0408 .* take 1.44 times the steps"):
        jaxsparse.gsm_preflight(schedule, **options)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: jaxsparse.gsm(0.0), r"density 0.0 must be in \(0, 1\]"),
        (
            lambda: update(0.01, fill(FIXED, 1), fill(FIXED, 0)),
            "density 0.01 leaves none of 61 weights active",
        ),
        (lambda: update(0.5, {}, None), "gsm needs params"),
        (lambda: update(0.5, {}, fill(FIXED, 0)), "grads has no leaf blocks"),
        (
            lambda: jaxsparse.gsm_preflight(0.1, weight_decay=0, momentum=0.9, total_steps=10),
            r"weight_decay 0 must be in \(0, inf\)",
        ),
        (
            lambda: jaxsparse.gsm_preflight(0.0, weight_decay=0.1, momentum=0.9, total_steps=10),
            "rates of 10 steps add up to 0.0",
        ),
    ],
    ids=["density", "too few", "no params", "other trees", "no decay", "no rate"],
)
def test_what_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
