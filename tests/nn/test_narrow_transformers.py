"""A GPT and a ViT, in linen and NNX, go on training after their MLPs and heads became fewer."""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxsparse.nn import narrow_module, narrow_nnx
from jaxsparse.structured import (
    WidthPlan,
    channel_groups,
    channel_importance,
    check_narrow,
    group_costs,
    plan_widths,
)
from jaxsparse.structured.comparing import difference
from tests import transformers
from tests.transformers import HEADS, NAMES, WIDTH, Network, network

STREAM = "^(Embed_0|patches|tokens)$"
"""The group of what blocks add to."""
TX = optax.sgd(0.1, momentum=0.9)


class Narrow(NamedTuple):
    """A network, the plan that narrows it, and the function (params, inputs) of the narrow one."""

    full: Network
    plan: WidthPlan
    forward: Any


def narrowed(name: str, dtype: Any) -> Narrow:
    """Fewer heads and a narrower MLP; the stream keeps its width, so that no norm is noted."""
    full = network(name, dtype)
    params = jax.tree.map(lambda x: x.astype(dtype), full.params)
    full = full._replace(params=params)
    groups = channel_groups(full.forward, params, full.inputs)
    importance = channel_importance(groups, jax.tree.map(jnp.abs, params))
    plan = plan_widths(
        groups, importance, group_costs(groups), target=0.8, ranking="layer", min_share={STREAM: 1}
    )
    kind = getattr(transformers, name.title().replace(" ", ""))
    if name.startswith("linen"):
        model: Any = narrow_module(kind(dtype), plan)
        forward = lambda params, x: model.apply({"params": params}, x)
    else:
        model = narrow_nnx(kind(dtype, nnx.Rngs(0)), plan)
        graph, state = nnx.split(model)

        def forward(params, x):
            new = jax.tree.map(lambda x: x, state)
            nnx.replace_by_pure_dict(new, params)
            return nnx.merge(graph, new)(x)

    def promoting(params, x):
        with jax.numpy_rank_promotion("allow"):  # flax adds biases so
            return forward(params, x)

    return Narrow(full, plan, promoting)


def stepping(forward: Any, net: Network) -> Any:
    """Returns the compiled (params, state) -> (loss, params, state) of one step."""

    def loss_of(params):
        logits = forward(params, net.inputs).astype(jnp.float32)
        return optax.softmax_cross_entropy_with_integer_labels(logits, net.labels).mean()

    @jax.jit
    def step(params, state):
        loss, grads = jax.value_and_grad(loss_of)(params)
        updates, state = TX.update(grads, state, params)
        return loss, optax.apply_updates(params, updates), state

    return step


@pytest.mark.parametrize(
    ("name", "dtype", "tolerance"),
    [*((name, jnp.float32, 1e-5) for name in NAMES), ("nnx vit", jnp.bfloat16, 0.03)],
)
def test_outputs_and_a_step_are_those_of_the_full_network_with_zeros(name, dtype, tolerance):
    full, plan, narrow = narrowed(name, dtype)
    stream, heads, mlp = plan.widths.values()
    assert (stream, heads) == (WIDTH, HEADS // 2) and mlp < 4 and not plan.notes
    check_narrow(plan, full.forward, narrow, full.params, full.inputs, tolerance=tolerance)

    full_step, narrow_step = stepping(full.forward, full), stepping(narrow, full)
    _, _, state = full_step(full.params, TX.init(full.params))
    loss, params, state_after = narrow_step(plan.apply(full.params), plan.apply(state))
    of_zeros = full_step(plan.zero(full.params), plan.zero(state))
    wanted_loss, *wanted = of_zeros[0], *map(plan.apply, of_zeros[1:])
    chex.assert_trees_all_equal_shapes_and_dtypes([params, state_after], wanted)
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype(dtype)}
    np.testing.assert_allclose(loss, wanted_loss, rtol=tolerance)
    assert difference(wanted, [params, state_after]) < tolerance
    again, _, _ = narrow_step(params, state_after)
    assert again < loss
