"""The share of constant channels moves into a bias or a running mean, if it is the same for all."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsparse.structured import channel_groups, compact, fold_constants

pytestmark = pytest.mark.variants  # our own code, which knows little of versions

RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(size=(6, 4)), jnp.float32)
IMAGES = jnp.asarray(RNG.normal(size=(3, 6, 6, 2)), jnp.float32)


class Dense(nn.Module):
    """Two hidden layers, kernels as they come or transposed."""

    @nn.compact
    def __call__(self, x):
        x = nn.gelu(nn.Dense(5)(x))
        x = nn.gelu(nn.Dense(6)(x))
        return nn.Dense(3)(x)


class Convs(nn.Module):
    """A convolution with a norm, one that reads it, and a classifier of means."""

    padding: str
    use_bias: bool = False
    with_norm: bool = True

    @nn.compact
    def __call__(self, x):
        x = nn.BatchNorm(use_running_average=True, name="first")(nn.Conv(4, (3, 3))(x))
        x = nn.Conv(5, (3, 3), padding=self.padding, use_bias=self.use_bias)(nn.relu(x))
        if self.with_norm:
            x = nn.BatchNorm(use_running_average=True, name="second")(x)
        return nn.Dense(3)(nn.relu(x).mean(axis=(1, 2)))


def drawn(model, inputs):
    """Variables whose biases and statistics are no zeros or ones."""
    variables = model.init(jax.random.key(0), inputs)
    leaves, treedef = jax.tree.flatten(variables)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    drawn = [x + 0.3 * jax.random.uniform(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(treedef, drawn)


def folded(model, variables, inputs):
    groups = channel_groups(model.apply, variables, inputs)
    after = fold_constants(groups, model.apply, variables, inputs)
    np.testing.assert_allclose(
        model.apply(after, inputs), model.apply(variables, inputs), rtol=1e-4, atol=1e-5
    )
    return after, compact(groups, model.apply, after, inputs)


def test_a_dense_layers_constant_goes_into_the_next_bias_and_on_from_there():
    model = Dense()
    variables = drawn(model, X)
    params = variables["params"]
    params["Dense_0"]["kernel"] = params["Dense_0"]["kernel"].at[:, 1].set(0)
    # Unit 2 of the second layer is made of unit 1 of the first alone: it is constant then.
    params["Dense_1"]["kernel"] = params["Dense_1"]["kernel"].at[:, 2].set(0).at[1, 2].set(2.0)
    after, plan = folded(model, variables, X)
    constant = nn.gelu(params["Dense_0"]["bias"][1])
    expected = params["Dense_1"]["bias"] + constant * params["Dense_1"]["kernel"][1]
    np.testing.assert_allclose(after["params"]["Dense_1"]["bias"], expected, rtol=1e-5)
    assert not after["params"]["Dense_1"]["kernel"][1].any()
    assert not after["params"]["Dense_2"]["kernel"][2].any()
    assert list(plan.widths.values()) == [4, 5]


def test_nothing_constant_changes_nothing():
    variables = drawn(Dense(), X)
    after, plan = folded(Dense(), variables, X)
    assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), after, variables))
    assert list(plan.widths.values()) == [5, 6]


@pytest.mark.parametrize(
    ("model", "goes"),
    [
        (Convs("VALID"), True),  # into the running mean
        (Convs("VALID", use_bias=True, with_norm=False), True),
        (Convs("SAME"), False),  # zeros around the image
        (Convs("VALID", with_norm=False), False),  # nowhere to go
    ],
    ids=["mean", "bias", "padded", "none"],
)
def test_behind_a_convolution(model, goes):
    variables = drawn(model, IMAGES)
    kernel = variables["params"]["Conv_0"]["kernel"]
    variables["params"]["Conv_0"]["kernel"] = kernel.at[..., 1].set(0)
    variables["params"]["first"]["bias"] = variables["params"]["first"]["bias"].at[1].set(2.0)
    after, plan = folded(model, variables, IMAGES)
    reads = after["params"]["Conv_1"]["kernel"][:, :, 1].any()
    assert bool(reads) is not goes
    assert list(plan.widths.values()) == [4 - goes, 5]
    if model.with_norm and goes:
        moved = after["batch_stats"]["second"]["mean"] != variables["batch_stats"]["second"]["mean"]
        assert moved.all()


def test_kernels_whose_outputs_come_first():
    def mlp(p, x):
        x = jax.nn.relu(x @ p["up"].T + p["up_bias"][None])
        return x @ p["down"].T + p["down_bias"][None]

    params = {"up": RNG.normal(size=(5, 4)), "up_bias": np.ones(5)}
    params |= {"down": RNG.normal(size=(3, 5)), "down_bias": np.zeros(3)}
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
    params["up"] = params["up"].at[2].set(0)
    after = fold_constants(channel_groups(mlp, params, X), mlp, params, X)
    np.testing.assert_allclose(after["down_bias"], params["down"][:, 2], rtol=1e-5)
    assert not after["down"][:, 2].any()


def test_outputs_of_integers_are_refused():
    variables = drawn(Dense(), X)
    labels = lambda v, x: jnp.argmax(Dense().apply(v, x), -1)
    groups = channel_groups(Dense().apply, variables, X)
    with pytest.raises(ValueError, match="an output is int32; give a function of float outputs"):
        fold_constants(groups, labels, variables, X)
