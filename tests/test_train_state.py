"""The Flax train state: donation, RigL's skipped step, SNFS's average, exploration, subclasses."""

import functools
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsparse
from jaxsparse.types import Observed

TOTAL, EVERY = 12, 3


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Dense(8)(x)
        x = nn.relu(nn.LayerNorm()(x))
        return nn.Dense(3)(x)


NET = Net()
X = jnp.asarray(np.random.default_rng(0).normal(size=(16, 5)), jnp.float32)
Y = jnp.asarray(np.random.default_rng(1).integers(0, 3, 16))


def loss(params, x=X, y=Y):
    logits = NET.apply({"params": params}, x)
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


def fresh_params():
    return NET.init(jax.random.key(3), X)["params"]


def make(method, *, tx=None, params=None, **options):
    return jaxsparse.TrainState.create(
        apply_fn=NET.apply,
        params=fresh_params() if params is None else params,
        tx=optax.sgd(0.1, momentum=0.9) if tx is None else tx,
        method=method,
        key=jax.random.key(0),
        **options,
    )


@functools.partial(jax.jit, static_argnames="event")
def step(state, event=False):
    return state.apply_gradients(grads=jax.grad(loss)(state.params), event=event)


donating_step = jax.jit(
    lambda state, event: state.apply_gradients(grads=jax.grad(loss)(state.params), event=event),
    static_argnames="event",
    donate_argnums=0,
)


def granet_st(**options):
    return jaxsparse.granet_st(sparsity=0.75, total_steps=TOTAL, update_interval=EVERY, **options)


def rigl(**options):
    return jaxsparse.rigl(sparsity=0.5, total_steps=TOTAL, update_interval=EVERY, **options)


def kernels(tree):
    return [np.asarray(tree[layer]["kernel"]) for layer in ("Dense_0", "Dense_1")]


def test_it_starts_masked_and_counts_from_zero():
    state = make(granet_st())
    assert (int(state.step), state.step.dtype) == (0, jnp.int32)
    jaxsparse.check(state.params, state.opt_state, state.masks)
    assert jaxsparse.num_active(state.masks) == 32  # of 40 + 24
    chex.assert_trees_all_equal(state.params, jaxsparse.apply_masks(fresh_params(), state.masks))
    chex.assert_trees_all_equal(state.masks, granet_st().init(jax.random.key(0), fresh_params()))
    assert state.explored is None
    assert [np.asarray(x).tolist() for x in state.event_metrics] == [[0, 0]] * 5 + [0]
    assert [int(x) for x in state.events] == [0, 0]


def test_a_run_learns_and_ends_at_its_sparsity():
    state = make(granet_st())
    start = float(loss(state.params))
    for n in range(1, TOTAL + 1):
        state = step(state, event=state.method.is_due(n))
        jaxsparse.check(state.params, state.opt_state, state.masks)
    assert float(loss(state.params)) < start
    assert int(state.step) == TOTAL
    assert jaxsparse.num_active(state.masks) == 16
    assert np.asarray(state.event_metrics.num_active).tolist() == [
        m.sum() for m in kernels(state.masks)
    ]


@pytest.mark.parametrize("given", [False, True], ids=["drawn", "given"])
@pytest.mark.parametrize(
    "method",
    [
        granet_st(),
        jaxsparse.dense(total_steps=10),
        jaxsparse.snfs(sparsity=0.5, total_steps=9, update_interval=3),
    ],
)
def test_the_state_can_be_donated_and_the_callers_arrays_live_on(method, given):
    params, key = fresh_params(), jax.random.key(0)
    masks = jax.tree.map(lambda x: jnp.ones(x.shape, bool), params) if given else None
    if given and not method.timetable.events:
        method = jaxsparse.static(masks=masks, total_steps=10)
    state = jaxsparse.TrainState.create(
        apply_fn=NET.apply,
        params=params,
        tx=optax.adamw(0.01),
        method=method,
        key=key,
        masks=masks,
        track_exploration=True,
    )
    buffers = [
        x.unsafe_buffer_pointer() for x in jax.tree.leaves(state) if x.dtype != state.key.dtype
    ]
    assert len(set(buffers)) == len(buffers), "one buffer twice"
    for event in (False, True, False):
        old, state = state, donating_step(state, event=event)
        assert old.params["Dense_0"]["kernel"].is_deleted()
    mine = [params, jax.random.key_data(key), *([masks] if given else [])]
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(mine))
    jax.block_until_ready(jax.tree.map(lambda x: x + 0, mine))
    chex.assert_tree_all_finite(state.params)
    assert int(state.step) == 3


def test_rigl_skips_the_optimizer_step_but_not_the_count():
    state = make(rigl())
    for _ in range(EVERY - 1):
        state = step(state)
    after = step(state, event=True)
    assert int(after.step) == EVERY
    assert int(np.asarray(after.event_metrics.num_grown).sum()) > 0
    event = state.method.update(
        state.params, jax.grad(loss)(state.params), state.masks, EVERY, key=state.key
    )
    chex.assert_trees_all_equal(after.masks, event.masks)
    chex.assert_trees_all_equal(after.params, jaxsparse.apply_masks(state.params, event.kept))
    old, new = state.opt_state[0].trace, after.opt_state[0].trace
    chex.assert_trees_all_equal(new, jaxsparse.apply_masks(old, event.kept))


def test_rigl_can_take_the_step_as_well():
    state = make(rigl(skip_step=False))
    for _ in range(EVERY - 1):
        state = step(state)
    plain, after = step(state), step(state, event=True)
    kept = jax.tree.map(lambda w, m: jnp.where(m, w, 0) != 0, after.params, after.masks)
    for old, new, mask in zip(*map(kernels, (plain.params, after.params, kept)), strict=True):
        np.testing.assert_allclose(new[mask], old[mask], rtol=1e-6)


def test_the_event_sees_the_gradient_of_this_batch_at_the_weights_before_the_step():
    """The loss is linear in w: the largest coefficient of this batch wins, not of the last one."""
    params = {"kernel": jnp.array([[1.0, 0.5, 2.0, 3.0]])}
    masks = {"kernel": jnp.array([[True, True, False, False]])}
    method = rigl(drop_fraction=0.7, skip_step=False)
    state = jaxsparse.TrainState.create(
        apply_fn=None,
        params=params,
        tx=optax.sgd(0.01),
        method=method,
        key=jax.random.key(0),
        masks=masks,
    )
    old, new = jnp.array([[0.0, 0.0, 9.0, 1.0]]), jnp.array([[0.0, 0.0, 1.0, 9.0]])
    for n in (1, 2, 3):
        coefficients = new if n == 3 else old
        grads = jax.grad(lambda p, c=coefficients: (p["kernel"] * c).sum())(state.params)
        state = state.apply_gradients(grads=grads, event=method.is_due(n))
    assert np.asarray(state.masks["kernel"]).tolist() == [[True, False, False, True]]
    assert np.asarray(state.params["kernel"]).tolist() == [[1, 0, 0, 0]]


def test_the_event_sees_the_gradient_before_the_step_not_after():
    """At a learning rate of 5 the two gradients choose different weights."""
    state = make(granet_st(), tx=optax.sgd(5.0))
    for _ in range(EVERY - 1):
        state = step(state)
    grads = jax.grad(loss)(state.params)
    updates, _ = state.tx.update(grads, state.opt_state, state.params, masks=state.masks)
    moved = optax.apply_updates(state.params, updates)
    event = state.method.update(moved, grads, state.masks, EVERY, key=state.key)
    late = state.method.update(moved, jax.grad(loss)(moved), state.masks, EVERY, key=state.key)
    chex.assert_trees_all_equal(step(state, event=True).masks, event.masks)
    assert any(
        (a != b).any() for a, b in zip(*map(kernels, (event.masks, late.masks)), strict=True)
    )


def test_snfs_averages_the_dense_gradient_of_every_step():
    """m <- 0.9 m + 0.1 g, events and skipped steps included."""
    method = jaxsparse.snfs(sparsity=0.5, total_steps=TOTAL, update_interval=EVERY)
    state = make(method)
    average = jax.tree.map(jnp.zeros_like, state.params)
    for n in range(1, 2 * EVERY + 1):
        grads = jax.grad(loss)(state.params)
        average = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, average, grads)
        before, state = state, state.apply_gradients(grads=grads, event=method.is_due(n))
        chex.assert_trees_all_close(state.observe_state.ema, average, rtol=1e-5, atol=1e-7)
    signal = Observed(state.observe_state.ema)
    event = method.update(before.params, signal, before.masks, n, key=state.key)
    chex.assert_trees_all_equal(state.masks, event.masks)
    inactive = ~kernels(state.masks)[0]
    assert kernels(state.observe_state.ema)[0][inactive].any(), "the average must stay dense"


def test_exploration_is_tracked_on_request():
    state = make(
        jaxsparse.set_itop(sparsity=0.75, total_steps=TOTAL, update_interval=EVERY),
        track_exploration=True,
    )
    union, rates = kernels(state.masks), []
    for n in range(1, TOTAL + 1):
        state = step(state, event=state.method.is_due(n))
        union = [a | b for a, b in zip(union, kernels(state.masks), strict=True)]
        rates.append(float(jaxsparse.exploration_rate(state.explored)))
        assert rates[-1] == sum(u.sum() for u in union) / 64
    assert rates[0] == 0.25 and rates == sorted(rates) and rates[-1] > 0.3


def test_a_subclass_carries_batch_statistics():
    class WithBatchStats(jaxsparse.TrainState):
        batch_stats: Any

    stats = {"mean": jnp.zeros(3)}
    state = WithBatchStats.create(
        apply_fn=NET.apply,
        params=fresh_params(),
        tx=optax.sgd(0.1),
        method=granet_st(),
        key=jax.random.key(0),
        batch_stats=stats,
    )
    update = jax.jit(
        lambda state, event: state.apply_gradients(
            grads=jax.grad(loss)(state.params),
            event=event,
            batch_stats={"mean": state.batch_stats["mean"] + 1},
        ),
        static_argnames="event",
    )
    state = update(update(state, event=False), event=True)
    assert isinstance(state, WithBatchStats)
    assert np.asarray(state.batch_stats["mean"]).tolist() == [2, 2, 2]


def test_given_masks_take_the_place_of_drawn_ones():
    masks = jaxsparse.dense_masks(fresh_params())
    masks["Dense_0"]["kernel"] = jnp.zeros((5, 8), bool).at[0].set(True)
    state = make(rigl(), masks=masks)
    chex.assert_trees_all_equal(state.masks, masks)
    state = step(state, event=True)
    assert [m.sum() for m in kernels(state.masks)] == [8, 24]


def test_given_masks_that_do_not_fit_are_refused():
    masks = jaxsparse.dense_masks(fresh_params())
    masks["Dense_1"]["kernel"] = masks["Dense_1"]["kernel"].T
    with pytest.raises(ValueError, match=r"masks at Dense_1/kernel has shape \(3, 8\)"):
        make(rigl(), masks=masks)


def test_given_masks_have_the_pattern():
    params, rules = fresh_params(), [("Dense_0", jaxsparse.block((5, 2))), ("", None)]
    method = jaxsparse.with_pattern(rigl(), rules)
    good = jaxsparse.pattern_masks(params, rules, sparsity=0.5)
    chex.assert_trees_all_equal(make(method, params=params, masks=good).masks, good)
    bad = rigl().init(jax.random.key(0), params)
    with pytest.raises(ValueError, match="masks at Dense_0/kernel: .* 5x2 allows 0 or 10 "):
        make(method, params=params, masks=bad)
    # The pattern of traced masks cannot be checked.
    jax.eval_shape(lambda masks: make(method, params=params, masks=masks), bad)


def test_a_step_without_event_holds_no_trace_of_one():
    state = make(granet_st())
    jaxprs = {
        event: str(jax.make_jaxpr(lambda s, e=event: step.__wrapped__(s, e))(state))
        for event in (False, True)
    }
    searches = ("while", "jaxsparse_on_one_cpu")  # in JAX and by the kernel, and what they count
    for operation in (*searches, "reduce", "cond"):
        assert f" {operation}[" not in jaxprs[False]
    assert any(f" {operation}[" in jaxprs[True] for operation in searches)


def test_training_on_from_a_sparse_model_keeps_its_counts():
    state = make(granet_st())
    for n in range(1, TOTAL + 1):
        state = step(state, event=state.method.is_due(n))
    params = jax.tree.map(lambda w, m: jnp.where(m & (w == 0), 1e-3, w), state.params, state.masks)
    masks = jaxsparse.masks_from_params(params)
    chex.assert_trees_all_equal(masks, state.masks)
    before = [m.sum() for m in kernels(masks)]
    for method, given in ((jaxsparse.static(masks=masks, total_steps=10), None), (rigl(), masks)):
        new = make(method, params=params, masks=given)
        for n in range(1, TOTAL + 1):
            new = step(new, event=new.method.is_due(n))
        assert [m.sum() for m in kernels(new.masks)] == before
        jaxsparse.check(new.params, new.opt_state, new.masks)


def test_it_can_be_described_without_computing():
    state = jax.eval_shape(lambda: make(granet_st(), track_exploration=True))
    real = make(granet_st(), track_exploration=True)
    chex.assert_trees_all_equal_shapes_and_dtypes(*map(jax.tree.leaves, (state, real)))


def test_given_masks_that_hold_on_to_biases_are_mended():
    params = {"kernel": jnp.ones((4, 4)), "bias": jnp.zeros(4)}
    by_hand = jax.tree.map(lambda p: p != 0, params)  # all False at the bias, which starts at 0
    for method, masks in [
        (jaxsparse.rigl(sparsity=0.5, total_steps=10, update_interval=2), by_hand),
        (jaxsparse.static(masks=by_hand, total_steps=10), None),
    ]:
        state = jaxsparse.TrainState.create(
            apply_fn=None,
            params=params,
            tx=optax.sgd(0.1),
            method=method,
            key=jax.random.key(0),
            masks=masks,
        )
        assert state.masks["bias"].all()


@pytest.mark.parametrize(
    ("tx", "tx_args"),
    [
        (optax.contrib.prodigy(1.0), {}),  # keeps the initial params in its state
        (optax.contrib.dowg(1.0), {}),
        (optax.chain(optax.sgd(0.1), optax.contrib.reduce_on_plateau()), {"value": 1.0}),
    ],
    ids=["prodigy", "dowg", "reduce_on_plateau"],
)
def test_donation_with_optimizers_that_alias_params_and_extra_arguments(tx, tx_args):
    params = {"kernel": jnp.ones((4, 4))}
    state = jaxsparse.TrainState.create(
        apply_fn=None,
        params=params,
        tx=tx,
        method=jaxsparse.static(sparsity=0.5, total_steps=10),
        key=jax.random.key(0),
    )
    step = jax.jit(
        lambda state: state.apply_gradients(grads=params, tx_args=tx_args), donate_argnums=0
    )
    state = step(step(state))
    assert int(state.step) == 2
    jaxsparse.check(state.params, (), state.masks)


def test_a_state_counts_by_its_methods_own_rules():
    params = {"body": {"kernel": jnp.ones((10, 10))}, "head": {"kernel": jnp.ones((10, 10))}}
    rules = ((r"head", False), (r"kernel$", True))
    state = jaxsparse.TrainState.create(
        apply_fn=None,
        params=params,
        tx=optax.sgd(0.1),
        method=jaxsparse.static(sparsity=0.9, total_steps=10, prunable=rules),
        key=jax.random.key(0),
    )
    assert state.sparsity == pytest.approx(0.9)
    assert [layer.path for layer in state.summary().layers] == ["body/kernel"]
    assert jaxsparse.sparsity(state.masks) == pytest.approx(0.45)  # the default rules see both


def test_a_skipped_step_leaves_the_optimizers_count_behind():
    params = {"kernel": jnp.ones((4, 4))}
    state = jaxsparse.TrainState.create(
        apply_fn=None,
        params=params,
        tx=optax.adam(0.1),
        method=jaxsparse.rigl(sparsity=0.5, total_steps=8, update_interval=2),
        key=jax.random.key(0),
    )
    for n in range(1, 9):
        state = state.apply_gradients(grads=params, event=state.method.is_due(n))
    events = len(state.method.timetable.events)
    assert events == 2  # at 2 and 4; T_end is 6
    assert int(state.step) == 8
    assert int(optax.tree.get(state.opt_state, "count")) == 8 - events
