"""`NNXOptimizer` is the sparse optimizer with the interface of `nnx.Optimizer`."""

import chex
import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx

import jaxsparse
from jaxsparse.nn.optimizer_nnx import NNXOptimizer

STEPS = 12
X = jax.random.normal(jax.random.key(3), (16, 8))
METHODS = {
    "snfs": jaxsparse.snfs(sparsity=0.8, total_steps=STEPS, update_interval=3),
    "granet_st": jaxsparse.granet_st(sparsity=0.8, total_steps=STEPS, update_interval=3),
}


@pytest.fixture(autouse=True)
def _flax_adds_biases_by_promotion():
    with jax.numpy_rank_promotion("allow"):
        yield


class Net(nnx.Module):
    """A layer, a norm with statistics, and a head."""

    def __init__(self, rngs: nnx.Rngs):
        self.first = nnx.Linear(8, 16, rngs=rngs)
        self.norm = nnx.BatchNorm(16, rngs=rngs)
        self.head = nnx.Linear(16, 4, rngs=rngs)

    def __call__(self, x):
        return self.head(nnx.relu(self.norm(self.first(x))))


def loss(model):
    return jnp.mean((model(X) - 1.0) ** 2)


@pytest.mark.parametrize("name", METHODS)
def test_it_trains_as_the_functional_form_does(name):
    method, tx, key = METHODS[name], optax.sgd(0.05, momentum=0.9), jax.random.key(1)
    model = Net(nnx.Rngs(0))
    optimizer = NNXOptimizer(model, method, tx, key=key)
    traces = []

    @nnx.jit(static_argnames="event")
    def step(model, optimizer, event):
        traces.append(event)
        optimizer.update(model, nnx.grad(loss)(model), event=event)

    graphdef, params, rest = nnx.split(Net(nnx.Rngs(0)), nnx.Param, ...)
    plain = jaxsparse.sparse_optimizer(method, tx)
    params, rest = nnx.as_pure((params, rest))
    params, state = plain.init(params, key=key)

    def grads_of(params, rest):
        def of_params(params):
            model = nnx.merge(graphdef, params, rest)
            return loss(model), nnx.as_pure(nnx.state(model, nnx.Not(nnx.Param)))

        return jax.grad(of_params, has_aux=True)(params)

    update = jax.jit(plain.update, static_argnames="event")
    for n in range(1, STEPS + 1):
        event = method.is_due(n)
        step(model, optimizer, event=event)
        grads, rest = jax.jit(grads_of)(params, rest)
        params, state = update(grads, state, params, event=event)
    ours = nnx.as_pure(nnx.state(model, nnx.Param))
    chex.assert_trees_all_close(ours, params, rtol=1e-4, atol=1e-6)
    chex.assert_trees_all_equal(optimizer.masks, state.masks)
    assert sorted(traces) == [False, True], "one compiled step per kind"
    optimizer.check(model)
    assert optimizer.summary(model).sparsity == pytest.approx(0.8, abs=0.01)
    assert int(optimizer.state.step[...]) == STEPS


def test_given_masks_frozen_parts_and_a_loop_without_events():
    frozen = optax.partition(
        {"trained": optax.sgd(0.1), "frozen": optax.set_to_zero()},
        lambda params: jax.tree_util.tree_map_with_path(
            lambda path, _: "frozen" if "first" in jax.tree_util.keystr(path) else "trained",
            params,
        ),
    )
    model = Net(nnx.Rngs(0))
    before = model.first.kernel[...]
    masks = jax.tree.map(lambda w: w > 0, nnx.state(model, nnx.Param))
    optimizer = NNXOptimizer(
        model, METHODS["granet_st"], frozen, key=jax.random.key(1), masks=masks
    )
    for _ in range(STEPS):
        optimizer.update(model, nnx.grad(loss)(model))
    chex.assert_trees_all_equal(model.first.kernel[...], before)
    table = optimizer.summary(model)
    assert table.frozen.keys() == {"first/bias", "first/kernel"}
    with pytest.raises(ValueError, match="0 of the 3 events due by step 12 were taken"):
        optimizer.check(model)


def test_masks_of_a_state_work_with_the_plain_optimizer_of_nnx():
    """Params with variables around them, gradients of `nnx.grad`, pure slots: by path."""
    method, key = METHODS["granet_st"], jax.random.key(1)
    model = Net(nnx.Rngs(0))
    masks = method.init(key, nnx.state(model, nnx.Param))
    nnx.update(model, jaxsparse.apply_masks(nnx.state(model, nnx.Param), masks))
    optimizer = nnx.Optimizer(model, jaxsparse.masked(optax.adam(1e-2)), wrt=nnx.Param)
    for n in range(1, STEPS + 1):
        grads = nnx.grad(loss)(model)
        optimizer.update(model, grads, masks=masks)
        if method.is_due(n):
            params = nnx.state(model, nnx.Param)
            event = method.update(params, grads, masks, n, key=key)
            with pytest.raises(ValueError, match=r"nnx.as_pure\(optimizer.opt_state\)"):
                jaxsparse.apply_event(optimizer.tx, event, params, optimizer.opt_state)
            params, opt_state = nnx.as_pure((params, optimizer.opt_state))
            params, opt_state = jaxsparse.apply_event(optimizer.tx, event, params, opt_state)
            nnx.update(model, params)
            nnx.update(optimizer.opt_state, nnx.state(opt_state))
            masks = event.masks
    jaxsparse.check(nnx.state(model, nnx.Param), (), masks)
    assert jaxsparse.sparsity(masks) == pytest.approx(0.8, abs=0.01)
