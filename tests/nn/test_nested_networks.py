"""A network of ours inside of another linen module becomes narrower with it, shortcuts and all."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxsparse.nn import BasicBlock, Bottleneck, Narrowed, ResNet, narrow_module
from jaxsparse.structured import channel_groups, check_narrow, plan_of_units
from tests.nn.test_narrow import drawn

IMAGES = jnp.asarray(np.random.default_rng(1).normal(size=(2, 8, 8, 3)), jnp.float32)


class Outer(nn.Module):
    """A network whose outputs another layer reads."""

    block: Any

    @nn.compact
    def __call__(self, x):
        backbone = ResNet((2, 1), self.block, width=4, stem="cifar", num_classes=6, name="backbone")
        return nn.Dense(3, name="head")(nn.relu(backbone(x)))


@pytest.fixture(scope="module", params=[BasicBlock, Bottleneck])
def network(request):
    model = Outer(request.param)
    variables = drawn(jax.jit(model.init)(jax.random.key(0), IMAGES))
    return model, variables, channel_groups(model.apply, variables, IMAGES)


@pytest.mark.parametrize(
    "after",
    [
        lambda width: min(width, 4),  # stages come to be as wide as each other and as the stem
        lambda width: width - 1,
    ],
    ids=["equal", "unequal"],
)
def test_shortcuts_stay_as_they_are(network, after):
    model, variables, groups = network
    plan = plan_of_units(groups, {group.name: range(after(group.width)) for group in groups})
    narrow = narrow_module(model, plan)
    assert isinstance(narrow, Narrowed)
    thin = plan.apply(variables)
    shapes = jax.tree.map(jnp.shape, jax.eval_shape(narrow.init, jax.random.key(0), IMAGES))
    assert shapes == jax.tree.map(jnp.shape, thin)
    assert check_narrow(plan, model.apply, narrow.apply, variables, IMAGES) < 1e-5


def test_a_function_in_place_of_a_class_of_blocks():
    """Its blocks decide by the shapes they see, with the same shortcuts."""
    shapes = [
        jax.eval_shape(Outer(block).init, jax.random.key(0), IMAGES)
        for block in (Bottleneck, lambda **fields: Bottleneck(**fields))
    ]
    assert shapes[0] == shapes[1]
