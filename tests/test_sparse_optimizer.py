"""Own training loops: the optimizer does what a method asks, and reports what a loop forgets."""

import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsparse
from jaxsparse.event_counts import UNKNOWN, EventCounts

STEPS, EVERY = 12, 3
RUN = {"sparsity": 0.5, "total_steps": STEPS, "update_interval": EVERY}
PARAMS = {
    "a": {"kernel": jax.random.normal(jax.random.key(0), (6, 8)), "bias": jnp.zeros(8)},
    "b": {"kernel": jax.random.normal(jax.random.key(1), (8, 4))},
}
METHODS = {
    "rigl": jaxsparse.rigl(**RUN),
    "snfs": jaxsparse.snfs(**RUN),
    "set": jaxsparse.set_(**RUN),
    "granet_st": jaxsparse.granet_st(**RUN | {"sparsity": 0.8}),
}


def grads_of(params, n):
    return jax.tree.map(lambda w: jnp.sin(3 * w + n), params)


def run(optimizer, params, *, steps=STEPS, grads=grads_of, take=True, **tx_args):
    """Trains and yields (step, params, state) after every step."""
    update = jax.jit(functools.partial(optimizer.update, **tx_args), static_argnames="event")
    params, state = optimizer.init(params, key=jax.random.key(5))
    for n in range(1, steps + 1):
        event = take and optimizer.method.is_due(n)
        params, state = update(grads(params, n), state, params, event=event)
        yield n, params, state


@pytest.mark.parametrize("name", METHODS)
def test_it_is_the_train_state_bit_for_bit(name):
    method = METHODS[name]
    state = jaxsparse.TrainState.create(
        apply_fn=None, params=PARAMS, tx=optax.adam(0.1), method=method, key=jax.random.key(5)
    )
    step = jax.jit(
        lambda state, grads, event: state.apply_gradients(grads=grads, event=event),
        static_argnums=2,
    )
    for n, params, ours in run(jaxsparse.sparse_optimizer(method, optax.adam(0.1)), PARAMS):
        state = step(state, grads_of(state.params, n), method.is_due(n))
        theirs = [getattr(state, field) for field in ours._fields]
        chex.assert_trees_all_equal((params, *ours), (state.params, *theirs))
    assert int(ours.events.num_taken) == len(method.timetable.events)
    state.check()


def test_events_of_rigl_leave_the_optimizer_out_and_snfs_observes():
    """By hand: an event does not move the momentum, and every step moves the average."""
    method = METHODS["snfs"]
    tx = jaxsparse.masked(optax.sgd(0.1, momentum=0.9))
    params, key = PARAMS, jax.random.key(5)
    masks = method.init(key, params)
    params = jaxsparse.apply_masks(params, masks)
    opt_state, observed = tx.init(params), method.observe.init(params)
    for n, ours, state in run(
        jaxsparse.sparse_optimizer(method, optax.sgd(0.1, momentum=0.9)), PARAMS
    ):
        grads = grads_of(params, n)
        signal, observed = method.observe.update(grads, observed)
        if method.is_due(n):
            event = method.update(params, signal, masks, n, key=key)
            params, opt_state = jaxsparse.apply_event(tx, event, params, opt_state)
            masks = event.masks
        else:
            updates, opt_state = tx.update(grads, opt_state, params, masks=masks)
            params = optax.apply_updates(params, updates)
        chex.assert_trees_all_close((ours, state.masks), (params, masks), rtol=1e-5)


def test_a_signal_that_was_not_observed_is_refused():
    masks = jaxsparse.dense_masks(PARAMS)
    with pytest.raises(ValueError, match=r"reads an average .* method.observe.update"):
        METHODS["snfs"].update(PARAMS, PARAMS, masks, EVERY, key=jax.random.key(0))


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("bad", [jnp.inf, -jnp.inf, jnp.nan])
def test_a_step_that_is_not_finite_changes_nothing_that_an_event_reads(name, bad):
    """The third of four steps is skipped by the optimizer, and an event on it is left out."""
    method = METHODS[name]
    optimizer = jaxsparse.sparse_optimizer(method, optax.apply_if_finite(optax.adam(0.1), 5))

    def grads(params, n):
        grads = grads_of(params, n)
        return grads | {"b": {"kernel": jnp.where(n == EVERY, bad, grads["b"]["kernel"])}}

    steps = list(run(optimizer, PARAMS, grads=grads))
    (_, before, old), (n, after, new) = steps[EVERY - 2 : EVERY]
    assert n == EVERY and method.is_due(n)
    chex.assert_trees_all_equal((before, old.masks), (after, new.masks))
    chex.assert_trees_all_equal(old.observe_state, new.observe_state)
    assert int(new.event_metrics.num_left_out) == 1
    assert new.event_metrics.num_grown.tolist() == [0, 0]
    _, params, state = steps[-1]
    chex.assert_tree_all_finite((params, state.observe_state))
    due = len(method.timetable.events)
    assert [int(x) for x in state.events] == [due - 1, 1]
    (note,) = optimizer.summary(params, state).notes
    assert note == f"1 of {due} events were left out, because the gradient was not finite"


def test_an_event_that_was_left_out_can_be_taken_at_the_next_step():
    """Both pruning events fall on bad steps, and the run ends at its sparsity all the same."""
    method = METHODS["granet_st"]
    optimizer = jaxsparse.sparse_optimizer(method, optax.apply_if_finite(optax.adam(0.1), 5))
    update = jax.jit(optimizer.update, static_argnames="event")
    params, state = optimizer.init(PARAMS, key=jax.random.key(5))
    for n in range(1, STEPS + 1):
        waits = method.is_due(n - 1) and bool(state.event_metrics.num_left_out)
        grads = jax.tree.map(lambda w: w * (jnp.nan if method.is_due(n) else 1.0), params)  # noqa: B023
        params, state = update(grads, state, params, event=method.is_due(n) or waits)
    assert jaxsparse.num_active(state.masks) == 16  # a fifth of 80
    assert [int(x) for x in state.events] == [3, 3]
    optimizer.check(params, state)


def test_loss_scaling_as_flax_has_it_takes_back_an_event_whole():
    """`flax.training.dynamic_scale` restores params and optimizer, and nothing else."""
    method = METHODS["granet_st"]
    state = jaxsparse.TrainState.create(
        apply_fn=None, params=PARAMS, tx=optax.adam(0.1), method=method, key=jax.random.key(5)
    )
    for n in range(1, STEPS + 1):
        finite = n != EVERY
        grads = jax.tree.map(lambda w, f=finite: w if f else w * jnp.inf, state.params)
        new = state.apply_gradients(grads=grads, event=method.is_due(n))
        keep = lambda new, old, f=finite: new if f else old
        state = new.replace(
            params=jax.tree.map(keep, new.params, state.params),
            opt_state=jax.tree.map(keep, new.opt_state, state.opt_state),
        )
        jaxsparse.check(state.params, state.opt_state, state.masks)
    assert state.sparsity == pytest.approx(0.8)  # the next event has pruned as much more
    with pytest.raises(ValueError, match="1 of 3 events were left out"):
        state.check()


PARTS = {"trained": optax.adam(0.1), "frozen": optax.set_to_zero()}
FROZEN = optax.partition(PARTS, {"a": "frozen", "b": "trained"})
KERNEL = {"a": {"kernel": True, "bias": False}, "b": False}


@pytest.mark.parametrize(
    ("tx", "frozen"),
    [
        (optax.adam(0.1), []),
        (optax.sgd(optax.linear_schedule(0.0, 1.0, 9)), []),
        (FROZEN, ["a/bias", "a/kernel"]),
        (optax.chain(optax.clip_by_global_norm(1.0), FROZEN), ["a/bias", "a/kernel"]),
        (optax.chain(FROZEN, optax.add_decayed_weights(0.1)), []),
        (optax.chain(FROZEN, optax.scale(-0.1)), ["a/bias", "a/kernel"]),
        (optax.MultiSteps(FROZEN, 2).gradient_transformation(), ["a/bias", "a/kernel"]),
        (optax.apply_if_finite(FROZEN, 3), ["a/bias", "a/kernel"]),
        (optax.chain(FROZEN, optax.contrib.reduce_on_plateau()), ["a/bias", "a/kernel"]),
        (optax.set_to_zero(), ["a/bias", "a/kernel", "b/kernel"]),
        (
            optax.chain(
                optax.adam(0.1),
                optax.masked(optax.set_to_zero(), KERNEL),
            ),
            ["a/kernel"],
        ),
        (optax.polyak_sgd(0.1), []),
    ],
)
def test_leaves_that_are_never_moved_are_found(tx, frozen):
    assert jaxsparse.frozen_paths(tx, PARAMS) == frozen
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), PARAMS)
    assert jaxsparse.frozen_paths(tx, shapes) == frozen


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("prunable", [None, (("a/kernel", True), ("b", True))])
def test_frozen_leaves_stay_as_they_are_and_are_counted_apart(name, prunable):
    options = dict(RUN, sparsity=0.75, prunable=prunable)
    method = getattr(jaxsparse, f"{name}_" if name == "set" else name)(**options)
    optimizer = jaxsparse.sparse_optimizer(method, FROZEN)
    steps = list(run(optimizer, PARAMS))
    for _, params, _ in steps:
        chex.assert_trees_all_equal(params["a"], PARAMS["a"])
    _, params, state = steps[-1]
    assert state.masks["a"]["kernel"].all()
    assert int(state.masks["b"]["kernel"].sum()) == 8  # a quarter of 32
    table = optimizer.summary(params, state)
    assert (table.num_prunable, table.num_frozen, table.num_other) == (32, 56, 0)
    assert "and 56 frozen parameters: a/bias, a/kernel" in str(table)
    optimizer.check(params, state)
    train_state = jaxsparse.TrainState.create(
        apply_fn=None, params=PARAMS, tx=FROZEN, method=method, key=jax.random.key(5)
    )
    assert train_state.frozen == ("a/bias", "a/kernel")
    assert train_state.summary().num_frozen == 56
    again = train_state.replace(method=jaxsparse.rigl(**RUN))
    assert again.method.targets(PARAMS).shapes.keys() == {"b/kernel"}


def test_a_method_for_frozen_leaves_alone_is_refused():
    for method in (METHODS["rigl"], jaxsparse.rigl(**RUN, prunable=(("a/kernel", True),))):
        with pytest.raises(ValueError, match=r"moves none of the prunable leaves \(a/kernel"):
            jaxsparse.sparse_optimizer(method, optax.set_to_zero()).init(
                PARAMS, key=jax.random.key(0)
            )


@pytest.mark.filterwarnings("ignore:The Fp8DotGeneralOp is deprecated:DeprecationWarning")
def test_fp8_scales_are_overwritten_as_in_flax():
    """Flax's own train state is the oracle, and without sparsity ours is equal to it."""
    from flax.training import train_state

    net = nn.Dense(16, dot_general_cls=nn.Fp8DotGeneralOp)
    x = jax.random.normal(jax.random.key(0), (8, 32))
    variables = net.init(jax.random.key(1), x)
    loss = lambda variables: (net.apply(variables, x) ** 2).mean()
    grads_of = jax.jit(jax.grad(loss))
    flax = train_state.TrainState.create(apply_fn=net.apply, params=variables, tx=optax.adam(1e-2))
    options = {"apply_fn": net.apply, "params": variables, "tx": optax.adam(1e-2)}
    key = jax.random.key(2)
    dense = jaxsparse.TrainState.create(
        **options, method=jaxsparse.dense(total_steps=STEPS), key=key
    )
    method = METHODS["rigl"]
    sparse = jaxsparse.TrainState.create(**options, method=method, key=key)
    for n in range(1, 5):
        flax = flax.apply_gradients(grads=grads_of(flax.params))
        dense = dense.apply_gradients(grads=grads_of(dense.params), event=False)
        sparse = sparse.apply_gradients(grads=grads_of(sparse.params), event=method.is_due(n))
        chex.assert_trees_all_equal(dense.params, flax.params)
        sparse.check()
    scales = sparse.params["_overwrite_with_gradient"]
    amax = max(float(x.max()) for x in jax.tree.leaves(scales) if x.ndim)
    assert amax == pytest.approx(float(jnp.abs(x).max()), rel=1e-6)
    assert sparse.sparsity == 0.5


def test_a_loop_that_never_asks_for_events_is_told():
    for name in ("rigl", "granet_st"):
        optimizer = jaxsparse.sparse_optimizer(METHODS[name], optax.sgd(0.1))
        *_, (_, params, state) = run(optimizer, PARAMS, take=False)
        notes = optimizer.summary(params, state).notes
        due = len(METHODS[name].timetable.events)
        assert notes[0] == (
            f"0 of the {due} events due by step 12 were taken; the loop has to pass "
            "event=method.is_due(n)"
        )
        with pytest.raises(ValueError, match=f"0 of the {due} events due by step 12 were taken"):
            optimizer.check(params, state)
    assert notes[1].startswith("the sparsity is 0.5, and granet_st, whose last pruning event is")


def test_counts_that_are_not_known_are_not_judged():
    optimizer = jaxsparse.sparse_optimizer(METHODS["rigl"], optax.sgd(0.1))
    *_, (_, params, state) = run(optimizer, PARAMS, take=False)
    unknown = state._replace(events=EventCounts(jnp.int32(UNKNOWN), jnp.int32(UNKNOWN)))
    assert optimizer.summary(params, unknown).notes == ()


def test_another_method_in_a_run_that_it_can_no_longer_change_is_refused():
    method = METHODS["granet_st"]
    state = jaxsparse.TrainState.create(
        apply_fn=None, params=PARAMS, tx=optax.adam(0.1), method=method, key=jax.random.key(5)
    )
    for n in range(1, STEPS + 1):
        state = state.apply_gradients(grads=state.params, event=method.is_due(n))
    later = jaxsparse.granet_st(**RUN | {"sparsity": 0.95})
    with pytest.raises(ValueError, match=r"sparsity is 0.8, .* step 6, will not bring it to 0.95"):
        state.replace(method=later)
    longer = jaxsparse.granet_st(**RUN | {"sparsity": 0.95, "total_steps": 48})
    state = state.replace(method=longer)
    assert state.summary().notes == ()
    for n in range(STEPS + 1, 49):
        state = state.apply_gradients(grads=state.params, event=longer.is_due(n))
    assert state.sparsity == pytest.approx(0.95, abs=0.01)
    state.check()
    state = state.replace(method=METHODS["snfs"])  # its average begins
    assert float(jax.tree.leaves(state.observe_state.ema)[0].sum()) == 0
    state.replace(step=state.step + 1, method=METHODS["snfs"])


def test_a_traced_event_is_refused():
    optimizer = jaxsparse.sparse_optimizer(METHODS["rigl"], optax.sgd(0.1))
    params, state = optimizer.init(PARAMS, key=jax.random.key(0))
    with pytest.raises(ValueError, match="event is traced, .*static_argnames='event'"):
        jax.jit(optimizer.update)(params, state, params, event=True)
    with pytest.raises(ValueError, match="is_due was asked for a traced step"):
        jax.jit(METHODS["rigl"].is_due)(3)


@pytest.mark.parametrize("name", ["polyak", "plateau"])
def test_arguments_of_the_optimizer_are_handed_on(name):
    tx = {
        "polyak": optax.polyak_sgd(0.1),
        "plateau": optax.chain(optax.sgd(0.1), optax.contrib.reduce_on_plateau()),
    }[name]
    optimizer = jaxsparse.sparse_optimizer(METHODS["granet_st"], tx)
    *_, (_, params, state) = run(optimizer, PARAMS, value=jnp.float32(1.0))
    optimizer.check(params, state)


def test_given_masks_are_the_start():
    masks = jax.tree.map(lambda w: w > 0, PARAMS)
    optimizer = jaxsparse.sparse_optimizer(METHODS["rigl"], optax.sgd(0.1))
    params, state = optimizer.init(PARAMS, key=jax.random.key(0), masks=masks)
    np.testing.assert_array_equal(state.masks["a"]["kernel"], masks["a"]["kernel"])
    assert state.masks["a"]["bias"].all()
    np.testing.assert_array_equal(params["b"]["kernel"] != 0, masks["b"]["kernel"])
