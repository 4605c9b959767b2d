"""Networks at half of their multiply-adds and 95 % sparsity train, leave, and run sparsely."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsparse
from jaxsparse import sparse
from jaxsparse.nn import (
    Narrowed,
    choose_forms,
    cifar_resnet,
    layer_shapes,
    narrow_module,
    sparse_execution,
    torchvision_name,
)
from jaxsparse.paths import leaves_by_path, prunable_leaves
from jaxsparse.structured import channel_groups, channel_importance, group_costs, plan_widths
from tests.nn.test_narrow import IMAGES, Cnn, drawn

STEPS, SPARSITY = 4, 0.95
RUN = {"sparsity": SPARSITY, "total_steps": STEPS}
CASES = {
    "resnet": (cifar_resnet(8, width=8), jaxsparse.rigl(update_interval=2, **RUN)),
    "narrowed": (Cnn(), jaxsparse.granet(update_interval=1, stop_step=STEPS - 1, **RUN)),
}


class TrainState(jaxsparse.TrainState):
    batch_stats: Any


@pytest.fixture(scope="module", params=CASES)
def trained(request):
    """A narrow model, its variables at the start, and its state after an event or two."""
    model, method = CASES[request.param]
    variables = drawn(jax.jit(model.init)(jax.random.key(0), IMAGES))
    groups = channel_groups(model.apply, variables, IMAGES)
    importance = channel_importance(groups, jax.tree.map(jnp.abs, variables))
    costs = group_costs(groups, jaxsparse.layer_flops(model.apply, variables, IMAGES[:1]))
    plan = plan_widths(groups, importance, costs, target=0.5, ranking="layer")
    assert costs(plan.widths) <= 0.5 * costs({})
    narrow, start = narrow_module(model, plan), plan.apply(variables)
    state = TrainState.create(
        apply_fn=narrow.apply,
        params=start["params"],
        batch_stats=start["batch_stats"],
        tx=optax.sgd(1e-3, momentum=0.9),
        method=method,
        key=jax.random.key(1),
    )

    def step(state, event):
        def loss(params):
            given = {"params": params, "batch_stats": state.batch_stats}
            logits, new = state.apply_fn(given, IMAGES, train=True, mutable=["batch_stats"])
            return (logits[:, 0] ** 2).mean(), new["batch_stats"]

        grads, stats = jax.grad(loss, has_aux=True)(state.params)
        return state.apply_gradients(grads=grads, batch_stats=stats, event=event)

    step = jax.jit(step, static_argnames="event")
    before = state.masks
    for n in range(1, STEPS + 1):
        state = step(state, event=method.is_due(n))
    changed = jax.tree.map(lambda a, b: bool((a != b).any()), before, state.masks)
    assert any(jax.tree.leaves(changed))
    return narrow, start, state


def test_masks_are_exact_and_leave_for_pytorch(trained):
    narrow, start, state = trained
    state.check()
    num_active = sum(int(mask.sum()) for mask in prunable_leaves(state.masks).values())
    size = sum(mask.size for mask in prunable_leaves(state.masks).values())
    assert abs(num_active - (1 - SPARSITY) * size) <= 1
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    rename = None if isinstance(narrow, Narrowed) else torchvision_name
    entries = jaxsparse.params_to_torch(state.params, state.masks, rename=rename)
    assert ("layer1.0.conv1.weight_orig" in entries) == (rename is not None)
    entries = jaxsparse.params_to_torch(variables, rename=rename)
    again = jaxsparse.params_from_torch(entries, start, rename=rename)
    for path, leaf in leaves_by_path(variables).items():
        np.testing.assert_array_equal(leaves_by_path(again)[path], leaf)


def test_they_run_by_their_active_weights(trained):
    narrow, _, state = trained
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    layers = layer_shapes(narrow.apply, variables, IMAGES)
    masks = prunable_leaves(state.masks)
    assert set(layers) == set(masks)
    assert all(layers[path].size == mask.size for path, mask in masks.items())
    active = sparse.count_active(state.masks)
    forms = choose_forms(narrow, IMAGES, active, exact=True, break_even=lambda *_: 1.0)
    assert set(forms.capacity) == set(masks)
    positions = sparse.find_positions(state.masks, capacity=forms.capacity)
    short = sparse.compress(state, positions)

    @jax.jit
    def run(params, positions):
        with sparse_execution(positions):
            given = {"params": params, "batch_stats": state.batch_stats}
            return forms.model.apply(given, IMAGES)

    found = run(short.params, positions)
    np.testing.assert_allclose(found, narrow.apply(variables, IMAGES), rtol=1e-4, atol=1e-5)
