"""Layers that fields do not make narrower: refused by name, or handled, in linen and NNX."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from jaxsparse.nn import narrow_module, narrow_nnx
from jaxsparse.structured import channel_groups, check_narrow, plan_of_units
from tests.nn.test_narrow import drawn

X = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 3)), jnp.float32)


class Normed(nn.Module):
    """A group norm between two layers."""

    norm: nn.GroupNorm

    @nn.compact
    def __call__(self, x):
        x = nn.relu(self.norm(nn.Dense(16, name="up")(x)))
        return nn.Dense(2, name="down")(x)


class Einsums(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Einsum((3, 2, 8), "...a,abc->...bc", name="up")(x)
        return nn.Einsum((2, 8, 2), "...bc,bcd->...d", use_bias=False, name="down")(nn.relu(x))


class Recurrent(nn.Module):
    """A cell that reads a layer, along the time."""

    cell: nn.RNNCellBase

    @nn.compact
    def __call__(self, x):
        x = nn.RNN(self.cell, name="rnn")(nn.Dense(6, name="up")(x))
        return nn.Dense(2, name="down")(x[:, -1])


def planned(model, kept, inner=False):
    """The model's variables and the plan that keeps so many units of some groups."""
    variables = drawn(model.init(jax.random.key(0), X))
    groups = channel_groups(model.apply, variables, X, inner=inner)
    return variables, plan_of_units(groups, {name: range(num) for name, num in kept.items()})


@pytest.mark.parametrize("inner", [False, True])
@pytest.mark.parametrize("fields", [{"num_groups": 4}, {"num_groups": None, "group_size": 4}])
def test_groups_of_a_norm_without_leaves(fields, inner):
    norm = nn.GroupNorm(use_scale=False, use_bias=False, name="norm", parent=None, **fields)
    variables, plan = planned(Normed(norm), {"params/up": 2}, inner)
    narrow = narrow_module(Normed(norm), plan)
    message = "^norm is a group norm without scale and bias, so it is not known how many"
    with pytest.raises(ValueError, match=message):
        narrow.init(jax.random.key(0), X)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(narrow.apply, plan.apply(variables), X)
    untouched = plan_of_units(plan.groups, {})
    same = narrow_module(Normed(norm), untouched).apply(variables, X)
    np.testing.assert_array_equal(same, Normed(norm).apply(variables, X))


@pytest.mark.parametrize("leaf", ["use_scale", "use_bias"])
def test_one_leaf_of_a_norm_says_which_groups_are_left(leaf):
    fields = {"use_scale": False, "use_bias": False, leaf: True}
    model = Normed(nn.GroupNorm(4, parent=None, **fields))
    variables, plan = planned(model, {"params/up": 2})
    narrow = narrow_module(model, plan)
    assert check_narrow(plan, model.apply, narrow.apply, variables, X) < 1e-5


def test_einsum():
    model = Einsums()
    variables, plan = planned(model, {"params/up": 1})
    before, after = variables["params"], plan.apply(variables)["params"]
    assert after["up"]["kernel"].size < before["up"]["kernel"].size
    narrow = narrow_module(model, plan)
    assert check_narrow(plan, model.apply, narrow.apply, variables, X) < 1e-5
    shapes = jax.tree.map(jnp.shape, narrow.init(jax.random.key(0), X)["params"])
    assert shapes == jax.tree.map(jnp.shape, after)


CELLS = [nn.LSTMCell, nn.OptimizedLSTMCell, nn.GRUCell, nn.SimpleCell, nn.MGUCell]


@pytest.mark.parametrize("cell", CELLS)
def test_cells_lose_inputs_but_nothing_of_their_carry(cell):
    model = Recurrent(cell(8, name="cell", parent=None))
    _, whole = planned(model, {})
    (carry,) = (group.name for group in whole.groups if group.name.startswith("params/cell"))
    narrow = narrow_module(model, plan_of_units(whole.groups, {carry: range(4)}))
    with pytest.raises(ValueError, match=r"^cell is a recurrent cell, .* but cell/.*\(.*, 8\) to"):
        jax.eval_shape(narrow.init, jax.random.key(0), X)
    variables, plan = planned(model, {"params/up": 3})
    narrow = narrow_module(model, plan)
    assert check_narrow(plan, model.apply, narrow.apply, variables, X) < 1e-5


class NnxNet(nnx.Module):
    """A layer between two."""

    def __init__(self, layer, width=16):
        rngs = nnx.Rngs(0)
        self.up = nnx.Linear(3, 16, rngs=rngs)
        self.layer = layer(rngs)
        self.down = nnx.Linear(width, 2, rngs=rngs)

    def __call__(self, x):
        return self.down(self.layer(nnx.relu(self.up(x))))


def nnx_planned(model, group, num):
    """The model's function, its state, and the plan that keeps so many units of one group."""
    graph, state = nnx.split(model)
    run = lambda state, x: nnx.merge(graph, state)(x)
    groups = channel_groups(run, state, X)
    (name,) = (found.name for found in groups if found.name.startswith(group))
    return run, state, plan_of_units(groups, {name: range(num)})


def nnx_difference(model, group, num):
    run, state, plan = nnx_planned(model, group, num)
    thin = nnx.split(narrow := narrow_nnx(model, plan))[0]
    found = check_narrow(plan, run, lambda state, x: nnx.merge(thin, state)(x), state, X)
    return found, narrow


@pytest.mark.parametrize("cell", [nnx.LSTMCell, nnx.OptimizedLSTMCell, nnx.GRUCell, nnx.SimpleCell])
def test_cells_of_nnx(cell):
    model = NnxNet(lambda rngs: nnx.RNN(cell(16, 8, rngs=rngs), rngs=rngs), width=8)
    _, _, plan = nnx_planned(model, "layer/cell", 4)
    with pytest.raises(ValueError, match=r"^layer/cell is a recurrent cell, whose carry keeps its"):
        narrow_nnx(model, plan)
    found, narrow = nnx_difference(model, "up", 3)
    assert found < 1e-5 and narrow.up.out_features == 3


def test_a_norm_and_einsum_of_nnx():
    norm = lambda **leaves: lambda rngs: nnx.GroupNorm(16, num_groups=4, rngs=rngs, **leaves)
    bare = NnxNet(norm(use_scale=False, use_bias=False))
    _, _, plan = nnx_planned(bare, "up", 2)
    with pytest.raises(ValueError, match="^layer is a group norm without scale and bias, so it is"):
        narrow_nnx(bare, plan)
    narrow_nnx(bare, plan_of_units(plan.groups, {}))
    found, _ = nnx_difference(NnxNet(norm(use_scale=False)), "up", 2)
    assert found < 1e-5
    einsum = NnxNet(lambda rngs: nnx.Einsum("...a,ab->...b", (16, 8), (8,), rngs=rngs), width=8)
    found, narrow = nnx_difference(einsum, "layer", 3)
    assert found < 1e-5
    assert (narrow.layer.kernel_shape, narrow.layer.bias_shape) == ((16, 3), (3,))
