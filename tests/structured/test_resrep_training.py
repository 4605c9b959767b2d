"""ResRep from a trained network to a narrower one: a small dense network, all parts together."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

import jaxsparse
from jaxsparse.nn import Compactor
from jaxsparse.paths import leaves_by_path
from jaxsparse.structured import (
    BatchNorm,
    Ruled,
    check_target,
    choose_row_masks,
    compactor_sgd,
    cost_table,
    is_mask_step,
    kept_rows,
    lasso_preflight,
    merge_compactor,
    resrep_optimizer,
    row_masks,
    row_norms,
    unsettled_rows,
    with_row_masks,
)

pytestmark = pytest.mark.variants  # our own code, which knows little of versions

STEPS, EVERY, WIDTH = 1_200, 40, 16
HIDDEN = ("1", "2")


class Net(nn.Module):
    """Two hidden layers with a norm and a compactor; or merged, with the widths that are left."""

    widths: tuple[int, ...] = (WIDTH, WIDTH)
    is_merged: bool = False

    @nn.compact
    def __call__(self, x, train=False):
        for number, width in zip(HIDDEN, self.widths, strict=True):
            x = nn.Dense(width, use_bias=self.is_merged, name=f"dense{number}")(x)
            if not self.is_merged:
                x = nn.BatchNorm(use_running_average=not train, name=f"norm{number}")(x)
                x = Compactor(name=f"compactor{number}")(x)
            x = nn.relu(x)
        return nn.Dense(3, name="fc")(x)


def costs_of(flops):
    one, two = (f"compactor{number}/matrix" for number in HIDDEN)
    ruled = [
        Ruled("dense1/kernel", None, one),
        Ruled("dense2/kernel", one, two),
        Ruled("fc/kernel", two),
    ]
    flops = {path: count for path, count in flops.items() if "compactor" not in path}
    return cost_table(flops, ruled, {one: WIDTH, two: WIDTH})


def flops_of(model, variables, x):
    rest = {name: tree for name, tree in variables.items() if name != "params"}
    forward = lambda params, x: model.apply({"params": params, **rest}, x)
    return jaxsparse.layer_flops(forward, variables["params"], x[:1])


def trained(x, y):
    """Variables, masks and costs after all steps."""
    model, schedule = Net(), optax.cosine_decay_schedule(0.05, STEPS)
    variables = jax.jit(model.init)(jax.random.key(0), x)
    costs = costs_of(flops_of(model, variables, x))
    check_target(costs, costs.widths, target=0.5)
    options = {"lasso": 1e-2, "snap": True}
    assert lasso_preflight(
        schedule, total_steps=STEPS, mask_step=STEPS // 2 - EVERY, **options
    ).settles_at
    tx = resrep_optimizer(schedule, **options)

    @jax.jit
    def steps(params, stats, state):
        def step(carry, _):
            params, stats, state = carry

            def loss(params):
                variables = {"params": params, "batch_stats": stats}
                logits, new = model.apply(variables, x, train=True, mutable=["batch_stats"])
                losses = optax.softmax_cross_entropy_with_integer_labels(logits, y)
                return losses.mean(), new["batch_stats"]

            grads, stats = jax.grad(loss, has_aux=True)(params)
            updates, state = tx.update(grads, state, params)
            return (optax.apply_updates(params, updates), stats, state), None

        return jax.lax.scan(step, (params, stats, state), length=EVERY)[0]

    params, stats = variables["params"], variables["batch_stats"]
    state = tx.init(params)
    for done in range(0, STEPS, EVERY):
        # Masks of the second half would come too late for a row to settle.
        is_early = done < STEPS // 2
        if is_early and is_mask_step(done, start_step=EVERY, update_interval=EVERY):
            masks = choose_row_masks(row_norms(params), row_masks(state), costs, target=0.5)
            state = with_row_masks(state, masks)
        params, stats, state = steps(params, stats, state)
    return {"params": params, "batch_stats": stats}, row_masks(state), costs


def merged_from(variables):
    """The narrower network and its variables, by the functions that any network can use."""
    params, stats = variables["params"], variables["batch_stats"]
    new, keeps = dict(params), []
    for number, reader in zip(HIDDEN, ("dense2", "fc"), strict=True):
        matrix = new.pop(f"compactor{number}")["matrix"]
        norm = {**new.pop(f"norm{number}"), **stats[f"norm{number}"]}
        norm = BatchNorm(norm["scale"], norm["bias"], norm["mean"], norm["var"])
        keeps.append(kept_rows(matrix))
        kernel = new[f"dense{number}"]["kernel"]
        kernel, bias = merge_compactor(kernel, norm, matrix, keeps[-1])
        new[f"dense{number}"] = {"kernel": kernel, "bias": bias}
        new[reader] = {**new[reader], "kernel": new[reader]["kernel"][keeps[-1]]}
    return Net(tuple(int(keep.sum()) for keep in keeps), is_merged=True), {"params": new}


def test_to_half_of_the_cost():
    """Masked rows come to 0, the others stay; the merged network is the one with compactors."""
    x = jax.random.normal(jax.random.key(1), (128, 8))
    y = jnp.argmax(jnp.sin(2 * x @ jax.random.normal(jax.random.key(2), (8, 3))), axis=1)
    variables, masks, costs = trained(x, y)
    norms = row_norms(variables["params"])
    assert unsettled_rows(norms, masks) == {}
    for path, mask in masks.items():
        assert not norms[path][~mask].any() and norms[path][mask].min() > 1e-4
    narrow, merged = merged_from(variables)
    assert narrow.widths == tuple(int(mask.sum()) for mask in masks.values())
    widths = dict(zip(masks, narrow.widths, strict=True))
    assert costs(widths) <= 0.5 * costs({}) and sum(narrow.widths) < 2 * WIDTH
    assert sum(flops_of(narrow, merged, x).values()) == 2 * costs(widths)
    expected, found = jax.jit(Net().apply)(variables, x), jax.jit(narrow.apply)(merged, x)
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())
    assert np.mean(np.argmax(found, axis=1) == y) > 0.6  # a third is chance
    shapes = jax.eval_shape(narrow.init, jax.random.key(0), x)
    assert jax.tree.map(jnp.shape, merged) == jax.tree.map(jnp.shape, shapes)


class Hidden(nnx.Module):
    def __init__(self):
        self.compactor1 = nnx.Module()
        self.compactor1.matrix = nnx.Param(jnp.eye(4))
        self.fc = nnx.Linear(4, 2, rngs=nnx.Rngs(0))


def test_the_optimizer_takes_nnx_states():
    params = nnx.state(Hidden(), nnx.Param)
    tx = resrep_optimizer(0.1, lasso=0.5)
    state = with_row_masks(tx.init(params), {"compactor1/matrix": np.arange(4) > 0})
    grads = jax.tree.map(jnp.ones_like, params)
    updates, _ = tx.update(grads, state, params)
    moved = leaves_by_path(updates)["compactor1/matrix"]
    np.testing.assert_allclose(moved[:, 0], [-0.05, 0, 0, 0], atol=1e-7)
    np.testing.assert_allclose(moved[:, 1], [-0.1, -0.15, -0.1, -0.1], rtol=1e-6)


def test_masks_and_norms_on_a_mesh():
    mesh = jax.make_mesh((8,), ("x",))
    place = lambda x, *axes: jax.device_put(x, NamedSharding(mesh, PartitionSpec(*axes)))
    params = {"compactor1": {"matrix": place(2 * jnp.eye(16), None, "x")}}
    tx = compactor_sgd(0.1)
    state = tx.init(params)
    state = state._replace(masks={"compactor1": {"matrix": place(jnp.ones(16, bool), "x")}})
    new = with_row_masks(state, {"compactor1/matrix": np.arange(16) > 3})
    mask = new.masks["compactor1"]["matrix"]
    assert mask.sharding == state.masks["compactor1"]["matrix"].sharding
    assert row_masks(new)["compactor1/matrix"].sum() == 12
    np.testing.assert_array_equal(row_norms(params)["compactor1/matrix"], 2.0)
    updates, _ = jax.jit(tx.update)(params, new, params)
    alone, _ = tx.update(jax.device_get(params), jax.device_get(new), jax.device_get(params))
    np.testing.assert_allclose(
        updates["compactor1"]["matrix"], alone["compactor1"]["matrix"], rtol=1e-6
    )
