"""Mean activations against means of what layers read, in every kind of product."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from jaxsparse.structured import channel_groups, channel_importance, mean_activations
from tests.structured.networks import CASES

pytestmark = pytest.mark.variants  # our own code, which knows little of versions


def numbers(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@pytest.fixture(autouse=True)
def as_users_have_it():
    with jax.numpy_rank_promotion("allow"):
        yield


def close(found, wanted, rtol=1e-5):
    np.testing.assert_allclose(found, np.broadcast_to(wanted, found.shape), rtol=rtol)


def mean(x, *axes):
    return np.abs(np.asarray(x, np.float32)).mean(axes)


def test_products_of_matrices():
    """The kernel first or second, with several summed axes, and in a batch of experts."""
    x = numbers(5, 3, 4)
    weights = {
        "second": numbers(4, 2),
        "first": numbers(2, 4),
        "heads": numbers(2, 3, 4),
        "experts": numbers(4, 2, 3),
        "bias": numbers(2),
    }

    def network(w, x):
        second = x @ w["second"] + w["bias"][None, None]
        first = jnp.einsum("oi,bpi->obp", w["first"], x)
        heads = jnp.einsum("bhd,ohd->bo", x, w["heads"])
        experts = jnp.einsum("bhe,eoh->beo", x, w["experts"])
        return second.sum() + first.sum() + heads.sum() + experts.sum()

    found = mean_activations(network, weights, x)
    close(found["second"], mean(x, 0, 1)[:, None])
    close(found["first"], mean(x, 0, 1)[None])
    close(found["heads"], mean(x, 0)[None])
    close(found["experts"], mean(x, 0).T[:, None])
    assert not found["bias"].any()


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("order", ["HWIO", "OIHW"])
def test_convolutions(groups, order):
    x, shape = numbers(3, 6, 6, 4), {"H": 3, "W": 3, "I": 4 // groups, "O": 8}
    kernel = numbers(*(shape[axis] for axis in order))
    conv = lambda k, x: jax.lax.conv_general_dilated(
        x, k, (1, 1), "SAME", dimension_numbers=("NHWC", order, "NHWC"), feature_group_count=groups
    )
    found = mean_activations(conv, kernel, x).transpose([order.index(axis) for axis in "OIHW"])
    for out in range(8):
        inputs = mean(x, 0, 1, 2).reshape(groups, -1)[out * groups // 8]
        close(found[out], inputs[:, None, None])


@pytest.mark.parametrize("name", CASES)
def test_every_channel_that_a_product_reads_is_measured(name):
    """Attention, experts, tied weights, remat and the like; numbers above 0 leave no ReLU at 0."""
    case = CASES[name]
    params = {path: abs(numbers(*shape)) for path, shape in case.shapes.items()}
    x = jnp.arange(10).reshape(2, 5) % 5 if case.x == (2, 5) else abs(numbers(*case.x))
    if name in ("recurrent", "scanned", "branched"):
        with pytest.raises(ValueError, match="read inside a (scan|cond)"):
            mean_activations(case.apply, params, x)
        return
    found = mean_activations(case.apply, params, x)
    for group in channel_groups(case.apply, params, x, inner=case.inner):
        for member in group.members:
            if member.role in ("input", "both"):
                each = np.moveaxis(np.asarray(found[member.path]), member.axis, 0)
                assert (each.reshape(len(each), -1).sum(1)[member.indices].sum(1) > 0).all()


class Network(nn.Module):
    """A block with a norm, in mixed precision if asked."""

    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(6, (3, 3), dtype=self.dtype, name="a")(x)
        x = nn.relu(nn.BatchNorm(use_running_average=True, dtype=self.dtype, name="norm")(x))
        x = nn.relu(nn.Conv(5, (3, 3), dtype=self.dtype, name="b")(x))
        return nn.Dense(3, dtype=self.dtype, name="c")(x.mean((1, 2)))


@pytest.mark.parametrize(("dtype", "rtol"), [(jnp.float32, 1e-5), (jnp.bfloat16, 2e-2)])
def test_importance_is_the_mean_behind_the_activation_function(dtype, rtol):
    model, x = Network(dtype), numbers(4, 8, 8, 3)
    variables = model.init(jax.random.key(0), x)
    groups = channel_groups(model.apply, variables, x)
    measure = jax.jit(functools.partial(mean_activations, model.apply))
    found = channel_importance(groups, measure(variables, x), of="input")
    _, seen = model.apply(variables, x, capture_intermediates=True)
    norm, conv = (seen["intermediates"][name]["__call__"][0] for name in ("norm", "b"))
    behind = mean(nn.relu(norm), 0, 1, 2), mean(nn.relu(conv).mean((1, 2)), 0)
    for name, wanted in zip(("params/a", "params/b"), behind, strict=True):
        close(found[name], wanted / wanted.mean(), rtol)


def test_nnx_with_integers_and_tokens():
    class Model(nnx.Module):
        def __init__(self, rngs):
            self.embedding = nnx.Embed(7, 4, rngs=rngs)
            self.layer = nnx.Linear(4, 2, rngs=rngs)
            self.steps = nnx.Variable(jnp.int32(3))

        def __call__(self, tokens):
            return self.layer(jax.nn.gelu(self.embedding(tokens)))

    graph, state = nnx.split(Model(nnx.Rngs(0)))
    tokens = jnp.array([[1, 2, 3], [3, 3, 0]])
    apply = lambda state, x: nnx.merge(graph, state)(x)
    found = mean_activations(apply, state, tokens)
    read = jax.nn.gelu(state["embedding"]["embedding"][...][tokens])
    close(found["layer"]["kernel"][...], mean(read, 0, 1)[:, None])
    assert found["steps"][...].dtype == jnp.float32
    assert not found["embedding"]["embedding"][...].any()


def test_weights_off_a_mask_read_nothing():
    x, kernel = numbers(5, 3), numbers(3, 4)
    mask = jnp.arange(12).reshape(3, 4) % 2 == 0
    found = mean_activations(lambda k, x: x @ (k * mask), kernel, x)
    close(found, np.where(mask, mean(x, 0)[:, None], 0))


def test_weights_that_are_read_in_a_loop_are_refused():
    x, kernels = numbers(5, 3), numbers(2, 3, 3)
    stacked = lambda k, x: jax.lax.scan(lambda x, k: (x @ k, None), x, k)[0]
    with pytest.raises(ValueError, match="read inside a scan"):
        mean_activations(stacked, kernels, x)
    inner = lambda k, x: jax.lax.scan(lambda x, _: (x * k[0, 0, 0], None), x, length=2)[0] @ k[0]
    close(mean_activations(inner, kernels, x)[0], mean(x * kernels[0, 0, 0] ** 2, 0)[:, None])


def test_convolutions_in_groups_of_images_are_refused():
    conv = lambda k, x: jax.lax.conv_general_dilated(x, k, (1,), "SAME", batch_group_count=2)
    with pytest.raises(ValueError, match="groups of images"):
        mean_activations(conv, numbers(4, 3, 3), numbers(2, 3, 8))
